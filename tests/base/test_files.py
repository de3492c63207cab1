"""Where files go that are made of others, and which names are no paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmlm.base.errors import CheckpointError, MmlmError
from mmlm.base.files import beside, is_hub_id, without_nan, write_text_whole
from mmlm.interop.load import load
from mmlm.tokenizers.config import TextConfig
from mmlm.tokenizers.text import TextTokenizer


def test_what_is_made_of_a_file_or_folder_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "photos.v2").mkdir()
    assert beside(tmp_path / "a.wav", ".new.wav") == tmp_path / "a.new.wav"
    assert beside(tmp_path / "photos.v2", ".described") == tmp_path / "photos.v2.described"
    monkeypatch.chdir(tmp_path / "photos.v2")
    assert beside(Path("."), ".described") == tmp_path.resolve() / "photos.v2.described"
    assert beside(Path(".."), ".described") == tmp_path.resolve().with_name(f"{tmp_path.name}.described")


def test_a_name_in_another_encoding_is_written_as_json_has_it(tmp_path):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    write_text_whole(tmp_path / "a.json", json.dumps({"image": name, "ü": 1}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"image": name, "ü": 1}


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert is_hub_id("HuggingFaceTB/SmolLM2-135M") and is_hub_id("theirs/model")
    assert not any(map(is_hub_id, ("runs/words", "mine/words", "words", "./a/b", "../b", "a/b/c", "/a/b", ".a/b")))
    import huggingface_hub

    def fetched(*words, **options):
        raise AssertionError("fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    for name in ("runs/words", "mine/words"):
        with pytest.raises(CheckpointError, match="no such folder .a run must be trained first"):
            load(name)
        with pytest.raises(MmlmError, match=f"{name}: cannot be read"):
            TextTokenizer(TextConfig(path=name))


def test_what_is_no_finite_number_becomes_null():
    given = {"a": [1, float("inf"), {"b": float("nan"), "c": "nan"}], "d": (-float("inf"), True, None, 0.5)}
    assert without_nan(given) == {"a": [1, None, {"b": None, "c": "nan"}], "d": [None, True, None, 0.5]}
