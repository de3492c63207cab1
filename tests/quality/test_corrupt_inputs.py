"""500 damages of each kind of file, see tests/test_corrupt_inputs.py."""

from __future__ import annotations

import pytest

from tests.corrupt import FORMATS, damaged_files

pytestmark = pytest.mark.quality
COUNT = 500


@pytest.mark.parametrize("name", FORMATS)
def test_five_hundred_damaged_files_are_read_or_refused(name, tmp_path):
    assert len(FORMATS) * COUNT >= 6000
    assert damaged_files(name, range(COUNT), tmp_path) == []
