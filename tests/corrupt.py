"""Files of every kind that is read, and ways to damage them. What reads a damaged file gives something or a DataError, soon and in little
memory; nothing else."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import multiprocessing
import os
import random
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmlm.base.errors import DataError

LONGEST_SECONDS, MOST_BYTES = 2.0, 1 << 30


class Format(NamedTuple):
    """One kind of file. name: of the file. make: its content, whole. read: all that a training would read of it."""

    name: str
    make: Callable[[], bytes]
    read: Callable[[Path], Any]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One damage, or sometimes several."""
    for _ in range(1 if rng.random() < 0.8 else rng.randrange(2, 30)):
        data = _damaged(data, rng) or data
    return data


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, a bit turned, bytes replaced, left out, put in or repeated, numbers made extreme, or odd texts in between."""
    at = rng.randrange(len(data) if rng.random() < 0.6 else min(len(data), 200))  # headers hold what matters most
    some = min(len(data) - at, rng.choice((1, 2, 4, 16, 200)))
    kind = rng.randrange(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(some) + data[at + some :]
    if kind == 3:
        return data[:at] + data[at + some :]
    if kind == 4:
        return data[:at] + rng.randbytes(some) + data[at:]
    if kind == 5:
        return data[:at] + data[at : at + some] * rng.choice((2, 3, 50)) + data[at + some :]
    if kind == 6:
        number = struct.pack(rng.choice(("<I", ">I", "<H", ">H")), rng.choice((0, 1, 0x7FFF, 0xFFFF)))
        number = rng.choice((number, b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", bytes(8), b"\xff" * 8))
        return data[:at] + number + data[at + len(number) :]
    return data[:at] + rng.choice(ODD) + data[at + rng.choice((0, 1, 4)) :]


ODD = (
    b"\0", b"\n", b"\r", b'"', b"'", b",", b";", b"{", b"}", b"]", b"[" * 3000, b'{"a":' * 3000, b"(" * 3000, b"C1" * 400, b"=" * 50,
    b"-1", b"NaN", b"Infinity", b"1e999", b"-1e308", b"9" * 30, b"9" * 5000, b"null", b"true", b"0x10", b"1_000", b"\\ud800", b"\\u0000",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\xed\xa0\x80", b"../../x", b"/etc/passwd", b"%s%n", b"\xe2\x80\xae", b" " * 1000, b"\t",
    b"[#1]", b"%99",
)  # fmt: skip


def sound(kind: str, subtype: str | None = None) -> bytes:
    """0.4 s of a swept tone with noise."""
    import soundfile

    rng, file, time_n = np.random.default_rng(0), io.BytesIO(), np.arange(3200) / 8000
    wave_n = 0.4 * np.sin(2 * np.pi * (200 + 800 * time_n) * time_n) + 0.01 * rng.standard_normal(len(time_n))
    soundfile.write(file, wave_n.astype(np.float32), 8000, subtype, format=kind)
    return file.getvalue()


def picture(kind: str, **options: Any) -> bytes:
    """24 x 16 pixels."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def huge_png() -> bytes:
    """20,000 x 20,000 pixels of one colour, 49 kB."""
    head, body = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0), zlib.compress(bytes(2501) * 20_000, 9)
    parts = [(b"IHDR", head), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def silence(hours: float) -> bytes:
    """FLAC at 32 kHz."""
    import soundfile

    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 32_000, 1, "PCM_16", format="FLAC") as writer:
        for _ in range(round(hours * 60)):
            writer.write(np.zeros(32_000 * 60, dtype=np.int16))
    return file.getvalue()


def lines(*records: Any) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def table() -> bytes:
    """40 rows of numbers, words, dates and gaps."""
    rows = "".join(
        f'{i},{i / 7:.3f},{["red", "green", "blue"][i % 3]},2021-03-{i % 28 + 1:02},"a, ""b"" {i}",{"" if i % 5 else i}\n'
        for i in range(40)
    )
    return ("number,share,colour,day,words,gaps\n" + rows).encode()


def frame() -> Any:
    """The same as a frame of pandas."""
    import pandas as pd

    return pd.read_csv(io.BytesIO(table()), parse_dates=["day"])


def parquet() -> bytes:
    """The same as Parquet."""
    file = io.BytesIO()
    frame().to_parquet(file)
    return file.getvalue()


def workbook() -> bytes:
    """The same as a workbook of Excel."""
    file = io.BytesIO()
    frame().to_excel(file, index=False)
    return file.getvalue()


POINTS = np.random.default_rng(0).normal(0, 20, (60, 4)).astype(np.float32)


def array(**arrays: np.ndarray) -> bytes:
    """A .npz of arrays, or the .npy of one without a name."""
    file = io.BytesIO()
    np.savez(file, **arrays) if arrays else np.save(file, POINTS)
    return file.getvalue()


def pcd(form: str) -> bytes:
    """Points as the Point Cloud Library writes them."""
    head = f"VERSION .7\nFIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH 60\nHEIGHT 1\nPOINTS 60\nDATA {form}\n"
    body = POINTS.tobytes() if form == "binary" else "\n".join(" ".join(f"{v:.4f}" for v in row) for row in POINTS).encode()
    return head.encode() + body


def las() -> bytes:
    """Points as LAS 1.2, point format 0."""
    head = bytearray(227)
    head[:4], head[24:26] = b"LASF", bytes([1, 2])
    struct.pack_into("<HI", head, 94, 227, 227)
    struct.pack_into("<BHI", head, 104, 0, 20, len(POINTS))
    struct.pack_into("<6d", head, 131, 0.01, 0.01, 0.01, 0, 0, 0)
    rows = [struct.pack("<3iH6x", *(int(100 * v) for v in row[:3]), 500) for row in POINTS]
    return bytes(head) + b"".join(rows)


def molecules() -> bytes:
    """A list of molecules and a protein."""
    made = ["CCO", "c1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "C%12CCCCC%12", "[13CH4]", "O=C(C)Oc1ccccc1C(=O)O"]
    held = [{"smiles": smiles, "properties": {"esol": -0.7 * at}} for at, smiles in enumerate(made)]
    return lines(*held, {"protein": "MKTAYIAKQR", "id": "p1"})


def smiles() -> bytes:
    """A table of molecules."""
    return b"smiles,esol\n" + b"".join(f"{'C' * (i + 1)}c1ccc(N)cc1[N+](=O)[O-],{-i / 3:.2f}\n".encode() for i in range(12))


def boxes() -> bytes:
    """A list of one picture with everything that can be known of it."""
    thing = {"label": "cat", "box": [1, 2, 10, 12]}
    phrases = [{"span": [2, 5], "boxes": [[1, 2, 10, 12], [3, 3, 9.5, 9]]}]
    asked = [{"question": "what?", "answer": "a cat", "kind": "what"}]
    told = [{"text": "the cat", "box": [1, 2, 10, 12]}]
    whole = {"image": "p.png", "caption": "a cat sits", "phrases": phrases, "expressions": told, "questions": asked, "things": [thing]}
    return lines(whole, {"image": "p.png", "caption": "again", "id": 7})


def coco() -> bytes:
    """COCO's annotations of one picture."""
    images = [{"id": 1, "file_name": "p.png", "width": 24, "height": 16}]
    marks = [{"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 2, 9, 10]}, {"id": 6, "image_id": 1, "caption": "a cat"}]
    return json.dumps({"images": images, "categories": [{"id": 3, "name": "cat"}], "annotations": marks}).encode()


def things() -> bytes:
    """The labels of a sweep."""
    xyz = lambda x, y, z: {"x": x, "y": y, "z": z}  # noqa: E731
    psr = {"position": xyz(4, 1, 0), "scale": xyz(4, 2, 1.5), "rotation": xyz(0, 0, 0.3)}
    return json.dumps([{"obj_type": "Car", "psr": psr, "obj_id": "1"}, {"obj_type": "Bus", "psr": psr}]).encode()


def regions() -> bytes:
    """Regions as Visual Genome has them."""
    some = [{"region_id": 3, "x": 1, "y": 2, "width": 9, "height": 10, "phrase": "a cat"}]
    return json.dumps([{"id": 1, "regions": some}, {"id": 2, "regions": some}]).encode()


def entities() -> bytes:
    """Boxes as Flickr30k Entities has them."""
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>12</ymax></bndbox>"
    return f"<annotation><filename>p.jpg</filename><object><name>7</name>{box}</object></annotation>".encode()


def fasta() -> bytes:
    """Proteins."""
    return b">one first of them\nMKTAYIAKQRQISFVK\nSHFSRQ*\n\n>two\nGGAVLK\n"


def noises() -> bytes:
    """The index of a folder of noises."""
    return lines({"file": "s.wav", "kind": "noise", "label": "rain 1"}, {"file": "s.wav"}, {"file": "s.wav", "kind": "rir"})


def recordings() -> bytes:
    """A list of recordings."""
    first = {"audio": "s.wav", "text": "one", "speaker": "a", "language": "en", "start": 0.1, "end": 0.3, "channel": 0, "rate_hz": 8000}
    return lines(first, {"audio": "s.wav", "text": "two", "seconds": 0.4, "id": "two", "mood": "calm"})


def read_sound(path: Path) -> Any:
    from mmlm.data.audio_files import read_sound, sound_facts

    sound_facts(path)
    read_sound(path, start_seconds=0.1, seconds=0.2, rate_hz=16000)
    return read_sound(path)


def read_picture(path: Path) -> Any:
    from mmlm.data.picture_files import picture_facts, read_picture

    return picture_facts(path), read_picture(path, 8)


def read_table(path: Path) -> Any:
    from mmlm.data.table_reader import read_table

    return read_table(path, target="number" if path.suffix != ".jsonl" else None)


def read_points(path: Path) -> Any:
    from mmlm.data.points import read_points

    return read_points(path)


def read_things(path: Path) -> Any:
    from mmlm.data.sweep_source import read_labels

    return read_labels(path, 90.0)


def read_noises(path: Path) -> Any:
    from mmlm.data.audio_rooms import listed_sounds

    return [read_sound(each.path) for each in listed_sounds(str(path.parent), "noise")]


def read_source(type: str, **keys: Any) -> Callable[[Path], Any]:
    """Reads as training does, with a source of a recipe: all its records, and a draw."""

    def read(path: Path) -> Any:
        from mmlm.data.config.base import SOURCES

        places: dict[str, dict[str, Any]] = {
            "coco": {"path": str(path.parent), "annotations": [str(path)]},
            "yolo": {"path": str(path.parent)},
            "visual_genome": {"path": str(path.parent), "image_data": str(path.with_name("images.json")), "regions": str(path)},
            "flickr30k": {"path": str(path.parent.parent), "annotations": str(path.parent.parent)},
        }
        place = places.get(type, {"path": str(path)})
        source = SOURCES.get(type).model_validate({"type": type, "hold_out": 0.0, "validate_share": 0.0, **place, **keys}).build()
        for held in source.everything()[:20]:
            getattr(held, "read", lambda: None)()
        return source.draw(np.random.default_rng(0), 100)

    return read


FORMATS = {
    "wav": Format("x.wav", lambda: sound("WAV"), read_sound),
    "float wav": Format("x.wav", lambda: sound("WAV", "FLOAT"), read_sound),
    "flac": Format("x.flac", lambda: sound("FLAC"), read_sound),
    "ogg": Format("x.ogg", lambda: sound("OGG"), read_sound),
    "mp3": Format("x.mp3", lambda: sound("MP3"), read_sound),
    "aiff": Format("x.aiff", lambda: sound("AIFF"), read_sound),
    "png": Format("x.png", lambda: picture("PNG"), read_picture),
    "jpeg": Format("x.jpg", lambda: picture("JPEG"), read_picture),
    "webp": Format("x.webp", lambda: picture("WEBP"), read_picture),
    "gif": Format("x.gif", lambda: picture("GIF"), read_picture),
    "tiff": Format("x.tif", lambda: picture("TIFF", compression="tiff_lzw"), read_picture),
    "bmp": Format("x.bmp", lambda: picture("BMP"), read_picture),
    "csv": Format("x.csv", table, read_table),
    "parquet": Format("x.parquet", parquet, read_table),
    "xlsx": Format("x.xlsx", workbook, read_table),
    "jsonl": Format("x.jsonl", lambda: frame().to_json(orient="records", lines=True, date_format="iso").encode(), read_table),
    "las": Format("x.las", las, read_points),
    "pcd": Format("x.pcd", lambda: pcd("binary"), read_points),
    "ascii pcd": Format("x.pcd", lambda: pcd("ascii"), read_points),
    "bin": Format("x.bin", POINTS.tobytes, read_points),
    "npy": Format("x.npy", array, read_points),
    "npz": Format("x.npz", lambda: array(xyz=POINTS[:, :3], intensity=POINTS[:, 3]), read_points),
    "molecules": Format("x.jsonl", molecules, read_source("molecule_manifest")),
    "packed molecules": Format("x.jsonl.gz", lambda: gzip.compress(molecules()), read_source("molecule_manifest")),
    "fasta": Format("x.fasta", fasta, read_source("molecule_manifest")),
    "yolo": Format("p.txt", lambda: b"0 0.5 0.5 0.2 0.3\n1 0.25 0.5 0.1 0.1\n", read_source("yolo", names=["cat", "dog"])),
    "regions": Format("x.json", regions, read_source("visual_genome")),
    "entities": Format("p.xml", entities, read_source("flickr30k")),
    "noises": Format("index.jsonl", noises, read_noises),
    "smiles": Format("x.csv", smiles, read_source("molecule_table", properties={"esol": "esol"})),
    "boxes": Format("x.jsonl", boxes, read_source("picture_manifest")),
    "coco": Format("x.json", coco, read_source("coco")),
    "cuboids": Format("x.json", things, read_things),
    "recordings": Format("x.jsonl", recordings, read_source("speech_manifest")),
    "texts": Format("x.jsonl", lambda: lines({"text": "one two"}, {"text": "three"}), read_source("text_files")),
}


def in_little_memory(work: Callable[[], Any], most_bytes: int) -> Any:
    """What a function gives, in a process of its own that may take so many bytes more than it has; None where the process dies."""
    reader, writer = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_limited, args=(work, most_bytes, writer))
    process.start()
    writer.close()
    try:
        return reader.recv()
    except EOFError:
        return None
    finally:
        process.join(10)


def _limited(work: Callable[[], Any], most_bytes: int, writer: Any) -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders write there on their own
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + most_bytes
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    writer.send(work())


def damaged_files(name: str, numbers: range, folder: Path) -> list[str]:
    """What goes wrong when so many damaged files of a format are read."""
    faults = in_little_memory(lambda: _read_all(name, numbers, folder), MOST_BYTES)
    return [f"{name}: the process died at damage {(folder / 'number').read_text()}"] if faults is None else faults


def _read_all(name: str, numbers: range, folder: Path) -> list[str]:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # what is remembered of files is of this process
    kind, faults, count = FORMATS[name], [], folder / "number"
    if name == "entities":
        (folder / "Sentences").mkdir()
        (folder / "Sentences" / "p.txt").write_text("[/EN#7/animals A cat] sits .\n")
        (folder / "p.jpg").write_bytes(picture("JPEG"))
        folder = folder / "Annotations"
        folder.mkdir()
    path, whole = folder / kind.name, kind.make()
    (folder / "p.png").write_bytes(picture("PNG"))  # what lists name
    (folder / "s.wav").write_bytes(sound("WAV"))
    (folder / "images.json").write_text(json.dumps([{"image_id": key, "width": 24, "height": 16, "url": "p.png"} for key in (1, 2)]))
    path.write_bytes(whole)
    if (told := outcome(kind, path)) != "read":
        faults.append(f"{name}: whole: {told}")
    for number in numbers:
        path.write_bytes(mutated(whole, random.Random(f"{name} {number}")))
        count.write_text(str(number))
        begun = time.process_time()
        told = outcome(kind, path)
        if time.process_time() - begun > LONGEST_SECONDS:
            told = f"took {time.process_time() - begun:.1f} s"
        if told not in ("read", "refused"):
            faults.append(f"{name}: damage {number}: {told}")
    return faults


def outcome(kind: Format, path: Path) -> str:
    """read | refused, or what went wrong: another error than DataError, or a message that does not name the file."""
    try:
        kind.read(path)
    except DataError as error:
        return "refused" if path.name in str(error) else f"does not name the file: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"
