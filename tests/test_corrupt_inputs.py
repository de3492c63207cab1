"""A damaged file of any kind gives what is left of it or one DataError that names it, within 2 s and 1 GiB; so do files made to be huge."""

from __future__ import annotations

import json

import pytest

from mmlm.base.files import parse_json
from tests.corrupt import FORMATS, damaged_files

SAMPLE = range(25)  # of the damages of each format that tests/quality tries 500 of


def test_every_format_is_there():
    assert len(FORMATS) == 32


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path):
    pytest.importorskip("torch")
    assert damaged_files(name, SAMPLE, tmp_path) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, b"\xff\xfe\x00", b"\xc3\x28", "nul", "[1,]", '"\\x"']
)
def test_no_json_has_one_error(text):
    with pytest.raises(json.JSONDecodeError):
        parse_json(text)
