"""Texts: what is read from files, how it is drawn, dealt to the splits, and what is told of what cannot be read."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import check
from mmlm.data import texts
from mmlm.data.config import DataConfig, PythonDocsConfig, TextFilesConfig
from mmlm.data.texts import Part, PythonDocs, TextFiles, Texts, cut, docstrings, read_texts


def files(path, **options) -> TextFiles:
    return TextFiles(TextFilesConfig(path=str(path), **options))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "a.txt").write_text("first text\nof two lines\n", encoding="utf-8")
    (tmp_path / "below" / "b.md").write_text("\ufeff# Überschrift\n", encoding="utf-8")
    lines = [json.dumps({"text": f"line {number}", "other": 1}) for number in range(3)]
    (tmp_path / "c.jsonl").write_text("\n".join([*lines[:2], "", lines[2]]) + "\n", encoding="utf-8")
    (tmp_path / "d.csv").write_text("not,read\n")
    return tmp_path


def test_all_texts_below_a_folder_are_read_with_where_they_stand(folder):
    found = read_texts(folder, "text")
    assert [part.text for part in found] == ["first text\nof two lines\n", "# Überschrift\n", "line 0", "line 1", "line 2"]
    assert found[-1].name == f"{folder / 'c.jsonl'}, line 4"
    assert all(part.begins and part.ends for part in found)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": 3}\n', "x.jsonl, line 2: 'text' must be a text, but is 3."),
        ("x.jsonl", b'{"text": ""}\n{"body": ""}', "line 2: must be an object with the key 'text' (field in the source). It has 'body'."),
        ("x.jsonl", b'{"text": "a"\n', "x.jsonl, line 1: is not JSON"),
        ("x.txt", b"caf\xe9", "x.txt: is not UTF-8 text (byte 3)."),
        ("x.txt", b"", "x.txt: holds no text."),
        ("x.pdf", b"%PDF", "x.pdf: must end in .txt, .md, .jsonl, or be a folder with such files."),
        ("folder/x.pdf", b"%PDF", "folder: no file below this folder ends in .txt, .md, .jsonl."),
        ("x.txt", b"one text alone", "hold_out: 0.05 of 1 text is none"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(name, content, told, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        files(path.parent if path.parent != tmp_path else path, hold_out=0.05)
    assert told in str(error.value)
    with pytest.raises(DataError, match=r"nothing\.txt: no such file"):
        files(tmp_path / "nothing.txt")


def test_long_texts_are_cut_at_paragraphs_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 40)
    text = "aaaa bbbb\n\n" * 10 + "c" * 100 + "\n" + "dd\n" * 9
    pieces = cut(Part(text, name="n"))
    assert "".join(piece.text for piece in pieces) == text and max(len(piece.text) for piece in pieces) <= 40
    assert [piece.begins for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[0].text.endswith("\n\n") and cut(Part("short")) == [Part("short")]


def test_passages_begin_evenly_over_all_text_and_short_ones_are_filled_up():
    source = Texts([Part("x" * 3000, name="long"), Part("y" * 1000, name="short"), Part("zz", name="tiny")], "here")
    drawn = [source.draw(np.random.default_rng(number), 100) for number in range(2000)]
    first = Counter(passage.parts[0].name for passage in drawn)
    assert 0.70 < first["long"] / 2000 < 0.80 and 0.2 < first["short"] / 2000 < 0.3
    assert {sum(len(part.text) for part in passage.parts) for passage in drawn} == {100}
    filled = [passage for passage in drawn if passage.parts[0].name == "tiny"]
    assert all(len(passage.parts) > 1 and passage.parts[0] == Part("zz", name="tiny") for passage in filled)
    assert any(not passage.parts[0].begins for passage in drawn) and any(not passage.parts[0].ends for passage in drawn)
    words = Texts([Part("word " * 500)], "here")
    starts = {words.draw(np.random.default_rng(number), 50).parts[0].text[:4] for number in range(50)}
    assert starts == {"word"}


def test_held_out_and_kept_back_texts_are_apart_and_all_are_somewhere(tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps({"body": f"text {number}"}) + "\n" for number in range(100)))
    source = files(path, field="body", hold_out=0.2, validate_share=0.1)
    groups = [source.parts, source.held_out_records().parts, source.kept_back().parts]
    assert [len(group) for group in groups] == [70, 20, 10]
    assert {part.text for group in groups for part in group} == {f"text {number}" for number in range(100)}
    assert [part.text for part in files(path, field="body", hold_out=0.2, validate_share=0.1).parts] == [part.text for part in source.parts]
    whole = files(path, field="body", hold_out=0)
    assert whole.held_out_records() is None and whole.kept_back() is None and len(whole.everything()) == 100
    assert all(passage.is_whole and len(passage.parts) == 1 for passage in whole.everything())


def test_a_text_that_stands_there_twice_is_in_one_part(tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number % 40}"}) + "\n" for number in range(100)))
    source = files(path, hold_out=0.2, validate_share=0.2)
    groups = [{part.text for part in each.parts} for each in (source, source.held_out_records(), source.kept_back())]
    assert min(map(len, groups)) > 2 and sum(map(len, groups)) == 40


def test_the_docs_of_python_are_there_dealt_to_splits_that_share_nothing():
    parts = {split: PythonDocs(PythonDocsConfig(split=split)).parts for split in ("train", "valid", "test")}
    sizes = {split: sum(len(part.text) for part in found) for split, found in parts.items()}
    assert sizes["train"] > 400_000 and min(sizes["valid"], sizes["test"]) > 10_000
    names = {split: {part.name for part in found} for split, found in parts.items()}
    assert not names["train"] & names["test"] and not names["train"] & names["valid"] and not names["valid"] & names["test"]
    text = "\n".join(part.text for part in parts["train"])
    assert "expression" in text and "module" in text


def test_docstrings_come_in_their_order():
    code = '"""M."""\nclass A:\n    """C."""\n    def f(self):\n        """F."""\nasync def g():\n    """G."""\nx = """no docstring"""\n'
    assert list(docstrings(code)) == ["M.", "C.", "F.", "G."]


def test_texts_that_are_trained_on_are_not_tested_on(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    for key in ("validate", "test"):
        same = [{"type": "text_files", "path": str(path)}]
        with pytest.raises(RecipeError, match=rf"{key}\.0: the text in .*a\.txt is trained on too"):
            check(DataConfig, {"train": same, key: same}, "data")
    with pytest.raises(RecipeError, match="the train split of python_docs is trained on too"):
        check(DataConfig, {"train": ["python_docs"], "test": ["python_docs"]}, "data")
    with pytest.raises(RecipeError, match="leave nothing to train on"):
        check(TextFilesConfig, {"path": "x", "hold_out": 0.6, "validate_share": 0.4}, "source")
