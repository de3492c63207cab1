"""Sources that may hold the same records are not trained and measured on at once."""

from __future__ import annotations

import pytest

from mmlm.base.errors import RecipeError
from mmlm.base.schema import check
from mmlm.data.config import DataConfig

EN = {"type": "asterisk", "languages": ["en"]}
SAID = {"type": "synthesized", "sentences": ["One.", "Two.", "Three."]}
STYLED = {"type": "styled_speech", "speech": EN}
COCO = {"type": "coco", "path": "pictures", "annotations": ["instances.json", "captions.json"]}
FLICKR = {"type": "flickr30k", "path": "pictures", "annotations": "told"}
TABLE = {"type": "table_file", "path": "a.xlsx", "target": "y"}


def told(train: object, other: object) -> str:
    """What is wrong with a source to train on and one to validate on, or nothing."""
    try:
        check(DataConfig, {"train": [train], "validate": [other]}, "data")
    except RecipeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (EN, {**EN, "languages": ["fr", "en"]}),
        ({**EN, "speakers": ["allison"]}, EN),
        (EN, STYLED),
        (STYLED, {**STYLED, "copies": 1}),
        (SAID, {**SAID, "sentences": ["Four.", "Two. "]}),
        ({**SAID, "path": "said.txt"}, {**SAID, "path": "said.txt", "sentences": ["Four."]}),
        (COCO, {**COCO, "annotations": ["captions.json"]}),
        (FLICKR, {**FLICKR, "ids": "test.txt"}),
        ("moses", {"type": "moses", "count": 1000}),
        ({"type": "moses", "count": 1000, "offset": 3}, {"type": "moses", "count": 500, "offset": 3}),
        (TABLE, {**TABLE, "sheet": "first"}),
        ({"type": "table_folder", "path": "tables"}, {**TABLE, "path": "tables/a.csv"}),
    ],
)
def test_what_may_be_the_same_records_is_refused(train, test):
    assert "validate.0: " in told(train, test) and "is trained on too" in told(train, test)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (EN, {**EN, "languages": ["fr", "it"]}),
        ({**EN, "speakers": ["allison"]}, {**EN, "languages": ["en", "fr"], "speakers": ["june"]}),
        (SAID, {**SAID, "sentences": ["Four."]}),
        (COCO, {**COCO, "annotations": ["others.json"]}),
        ({**FLICKR, "ids": "train.txt"}, {**FLICKR, "ids": "test.txt"}),
        ("moses", {"type": "moses", "split": "test", "count": 1000}),
        ({"type": "moses", "count": 1000}, {"type": "moses", "count": 1000, "offset": 1}),
        ({**TABLE, "sheet": "first"}, {**TABLE, "sheet": "second"}),
        ("scenes", {"type": "scenes", "split": "test"}),
    ],
)
def test_other_records_are_other_records(train, test):
    assert told(train, test) == ""


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "text_files"},
        {"type": "speech_folder"},
        {"type": "picture_folder"},
        {"type": "yolo", "names": ["cat"]},
        {"type": "sweep_folder"},
    ],
    ids=lambda kind: kind["type"],
)
def test_a_folder_holds_what_lies_below_it(kind, tmp_path):
    for name in ("all/test", "all-test"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "all")
    whole, inside, beside, link = ({**kind, "path": str(tmp_path / name)} for name in ("all", "all/test", "all-test", "link"))
    assert "is trained on too" in told(whole, inside) and "is trained on too" in told(inside, whole)
    assert "is trained on too" in told(inside, link)
    assert told(whole, beside) == "" and told(inside, beside) == ""


def test_a_table_of_texts_need_not_name_all_below_it(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "metadata.csv").write_text("a|One.\n")
    whole, inside = ({"type": "speech_folder", "path": str(tmp_path / name)} for name in ("", "test"))
    assert told(whole, inside) == ""
    assert "is trained on too" in told({**whole, "texts": "none"}, inside)
