"""What is remembered of files: told apart by where they lie, and written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from mmlm.data.remembered import Remembered, key_of


@dataclass
class Size:
    """What is found in a file."""

    size: int


def known() -> Remembered[Size]:
    return Remembered(Size, "sizes", "data/list.jsonl", "files", 1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mmlm" / "sizes"


def test_files_of_one_name_in_two_folders_are_two(tmp_path, monkeypatch):
    keys = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with open("a.wav", "wb") as file:
            file.write(name[:1].encode())
        os.utime("a.wav", ns=(0, 0))
        path = type(tmp_path)("a.wav")
        keys += [key_of(path), key_of(path.absolute())]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_a_full_disk_leaves_what_was_there_and_nothing_beside_it(cache, monkeypatch, caplog):
    first = known()
    first.put("a", Size(1))
    first.write()
    assert known().get("a") == Size(1)
    second = known()
    second.put("b", Size(2))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    second.write()
    assert "No space left on device" in caplog.text and known().get("a") == Size(1) and known().get("b") is None
    assert len(list(cache.iterdir())) == 1
