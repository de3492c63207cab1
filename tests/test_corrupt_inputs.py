"""A damaged file of any kind gives what is left of it or one DataError that names it, within 2 s and 1 GiB; a file that is made to be huge
when it is read is refused before it is; a file that names others, or a program to run, is no sound and no picture."""

from __future__ import annotations

import gzip
import io
import json
import time
import zipfile

import pytest

from mmlm.base.errors import DataError
from mmlm.base.files import parse_json
from tests import corrupt
from tests.corrupt import FORMATS, damaged_files, in_little_memory

SAMPLE = range(25)  # of the damages of each format, of which tests/quality tries 500


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What reads the files, before processes are forked that read them."""
    for name in ("av", "openpyxl", "pandas", "PIL.Image", "pyarrow.parquet", "rdkit.Chem", "soundfile", "torch", "mmlm.data.speech_source"):
        pytest.importorskip(name)
    corrupt.parquet()  # Arrow sets address space aside at its first use


def test_every_format_is_there():
    assert len(FORMATS) == 35


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    assert damaged_files(name, SAMPLE, tmp_path) == []


NO_JSON = ["", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "9" * 301, b"\xff\xfe\x00", b"\xc3\x28", "nul", "[1,]", '"\\x"']


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: f"{text!r:.12}")
def test_what_is_no_json_has_one_error(text):
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)


def zeros(name: str, size: int) -> bytes:
    """An archive of one file of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(name, "w", force_zip64=True) as member:
            for _ in range(size >> 20):
                member.write(bytes(1 << 20))
    return file.getvalue()


def wide() -> bytes:
    """A table of a million columns."""
    return (",".join(f"c{at}" for at in range(1_000_000)) + "\n" + "1," * 999_999 + "1\n").encode()


SMILES = corrupt.read_source("molecule_manifest")
BOMBS = {
    "picture of 400 million pixels": ("x.png", corrupt.huge_png, corrupt.read_picture, "pixels"),
    "an hour of silence": ("x.flac", lambda: corrupt.silence(1.0), corrupt.read_sound, "samples that are read at once"),
    "a million columns": ("x.csv", wide, corrupt.read_table, "has 1000000 columns"),
    "a molecule of 100,000 characters": ("x.jsonl", lambda: corrupt.lines({"smiles": "C" * 100_000}), SMILES, "100,000 characters"),
    "deep brackets": ("x.jsonl", lambda: b"[" * 10_000_000, SMILES, "nested too deeply"),
    "a packed list": ("x.jsonl.gz", lambda: gzip.compress(bytes(200 << 20), 9), SMILES, "unpacks to"),
    "a packed sweep": ("x.npz", lambda: zeros("xyz.npy", 200 << 20), corrupt.read_points, "unpacks to"),
    "a workbook": ("x.xlsx", lambda: zeros("xl/workbook.xml", 200 << 20), corrupt.read_table, "unpacks to"),
}


def test_eight_bombs_are_tried():
    assert len(BOMBS) == 8


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_is_made_to_be_huge_is_refused_before_it_is(name, tmp_path):
    file, make, read, told = BOMBS[name]
    (tmp_path / file).write_bytes(make())

    def refused() -> tuple[str, float]:
        begun = time.process_time()
        with pytest.raises(DataError) as error:
            read(tmp_path / file)
        return str(error.value), time.process_time() - begun

    message, seconds = in_little_memory(refused, 150 << 20)
    assert file in message and told in message and len(message) < 400 and seconds < corrupt.LONGEST_SECONDS


@pytest.mark.parametrize(
    "content", ["ffconcat version 1.0\nfile s.mp3\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\ns.mp3\n#EXT-X-ENDLIST\n"]
)
def test_a_list_that_names_other_files_is_no_sound(content, tmp_path):
    (tmp_path / "s.mp3").write_bytes(corrupt.sound("MP3"))
    (tmp_path / "list.m4a").write_text(content)
    with pytest.raises(DataError, match="list.m4a: is not audio"):
        corrupt.read_sound(tmp_path / "list.m4a")


def test_a_program_that_draws_is_no_picture_and_is_not_run(tmp_path, monkeypatch):
    marker = tmp_path / "run"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="x.png: is no picture of a known format"):
        corrupt.read_picture(tmp_path / "x.png")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "\ud800"])
@pytest.mark.parametrize("read", [corrupt.read_sound, corrupt.read_picture, corrupt.read_points], ids=["sound", "picture", "points"])
def test_a_name_that_no_file_can_have_is_told(read, name, tmp_path):
    with pytest.raises(DataError):
        read(tmp_path / f"{name}.npy")
