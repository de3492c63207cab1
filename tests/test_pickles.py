"""No file that is read runs anything: pickles that would leave a marker, in every place where weights, tensors and arrays come from."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmlm.backbone.cache import Cache
from mmlm.base.errors import CheckpointError, DataError
from mmlm.data import real_tables
from mmlm.data.points import read_points
from mmlm.data.table_reader import read_table
from mmlm.retrieval.index import Index
from mmlm.tokenizers.config import TextConfig
from mmlm.tokenizers.text import TextTokenizer
from mmlm.training import checkpoint
from mmlm.weights import read_ctranslate2, read_foreign_tensors, read_tensors

MARKER = "MMLM_PICKLE_RAN"


class Marks:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def array(marks: Marks) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([marks, marks], dtype=object), allow_pickle=True)
    return file.getvalue()


def arrays(marks: Marks) -> bytes:
    file = io.BytesIO()
    made = np.array([marks], dtype=object)
    np.savez(file, xyz=made, cells=made, heads=made)
    return file.getvalue()


def archive(marks: Marks) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as held:
        for name in ("data.pkl", "archive/data.pkl", "xyz.npy"):
            held.writestr(name, pickle.dumps(marks))
    return file.getvalue()


def state_dict(marks: Marks, *, is_zip: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(2), "evil": marks}}, file, _use_new_zipfile_serialization=is_zip)
    return file.getvalue()


PAYLOADS: dict[str, Callable[[Marks], bytes]] = {
    **{f"pickle {protocol}": lambda marks, protocol=protocol: pickle.dumps(marks, protocol) for protocol in (0, 2, 4, 5)},
    "packed pickle": lambda marks: gzip.compress(pickle.dumps(marks)),
    "array": array,
    "arrays": arrays,
    "archive": archive,
    "state dict": lambda marks: state_dict(marks, is_zip=True),
    "old state dict": lambda marks: state_dict(marks, is_zip=False),
}


def named(name: str, read: Callable[[Path], Any]) -> Callable[[Path, bytes], Any]:
    def attempt(folder: Path, content: bytes) -> Any:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return attempt


def in_checkpoint(name: str) -> Callable[[Path, bytes], Any]:
    """A checkpoint that whoever made it has also signed."""

    def attempt(folder: Path, content: bytes) -> Any:
        made = checkpoint.save(folder, 1, {"model": {"w": torch.zeros(2)}, "optimizer": {}}, {"step": 1})
        (made / name).write_bytes(content)
        files = {each.name: checkpoint._write(folder / f"copy_{each.name}", [each.read_bytes()]) for each in made.glob("*.safetensors")}
        files[checkpoint.STATE] = checkpoint._write(folder / "copy_state", [(made / checkpoint.STATE).read_bytes()])
        (made / checkpoint.MANIFEST).write_bytes(checkpoint._manifest(1, files))
        return checkpoint.read(made)

    return attempt


def in_index(folder: Path, content: bytes) -> Any:
    (folder / "index.json").write_text(json.dumps({}))
    for name in ("vectors.npy", "vectors.bin", "index.safetensors"):
        (folder / name).write_bytes(content)
    return Index.load(folder)


def in_tokenizer(folder: Path, content: bytes) -> Any:
    TextTokenizer(TextConfig(vocabulary_size=300)).fit(["a b"]).save(folder)
    for path in folder.iterdir():
        path.write_bytes(content)
    return TextTokenizer(TextConfig(vocabulary_size=300)).load(folder)


ENTRIES: dict[str, Callable[[Path, bytes], Any]] = {
    "weights": named("model.safetensors", read_tensors),
    "weights of others": named("pytorch_model.bin", read_foreign_tensors),
    "CTranslate2": named("model.bin", read_ctranslate2),
    "optimizer": in_checkpoint("optimizer.safetensors"),
    "state": in_checkpoint("state.json"),
    "cache of a decoder": named("cache.safetensors", Cache.load),
    "npy": named("points.npy", read_points),
    "npz": named("points.npz", read_points),
    "table": named("table.parquet", read_table),
    "workbook": named("table.xlsx", read_table),
    "tables kept": named("tables.npz", real_tables._unpacked),
    "index": in_index,
    "tokenizer": in_tokenizer,
}


def test_there_are_enough_of_both():
    assert len(PAYLOADS) == 10 and len(ENTRIES) >= 9


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_file_runs_what_it_holds(entry, tmp_path):
    for number, (name, make) in enumerate(PAYLOADS.items()):
        folder, marker = tmp_path / str(number), tmp_path / f"{MARKER}_{number}"
        folder.mkdir()
        wanted = (CheckpointError, DataError) if entry != "tables kept" else Exception  # which is made again, whatever is wrong
        with pytest.raises(wanted):
            ENTRIES[entry](folder, make(Marks(marker)))
        assert not marker.exists(), name


def test_the_payloads_work(tmp_path):
    with pytest.raises(Exception, match=r".*"):
        torch.load(io.BytesIO(PAYLOADS["state dict"](Marks(tmp_path / "a"))), weights_only=True)
    assert not (tmp_path / "a").exists()
    pickle.loads(PAYLOADS["pickle 2"](Marks(tmp_path / "a")))  # noqa: S301
    np.load(io.BytesIO(PAYLOADS["array"](Marks(tmp_path / "b"))), allow_pickle=True)
    torch.load(io.BytesIO(PAYLOADS["old state dict"](Marks(tmp_path / "c"))), weights_only=False)
    assert all((tmp_path / name).is_dir() for name in "abc")
