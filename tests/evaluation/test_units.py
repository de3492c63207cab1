"""Measures of units against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.evaluation.units import frame_phones, unit_edit_distance, unit_quality

pytest.importorskip("rapidfuzz")


def test_purity_information_and_perplexity_of_a_table_worked_out_by_hand() -> None:
    # units:   0   1   2        purity: (3 + 2 + 2) / 8
    # phone a: 3   1   0
    # phone b: 0   2   2
    found = unit_quality([np.array([0, 0, 0, 1]), np.array([1, 1, 2, 2])], [list("aaaa"), list("bbbb")])
    entropy = lambda *counts: -sum(n / 8 * np.log(n / 8) for n in counts)  # noqa: E731
    told = entropy(4, 4) + entropy(3, 3, 2) - entropy(3, 1, 2, 2)
    assert found.phone_purity == 7 / 8 and found.frames == 8
    assert found.pnmi == pytest.approx(told / np.log(2), abs=1e-12)
    assert found.perplexity == pytest.approx(np.exp(entropy(3, 3, 2)), abs=1e-12)


def test_units_that_are_phones_tell_everything_and_one_unit_tells_nothing() -> None:
    phones = [list("aabbc")]
    assert unit_quality([np.array([4, 4, 1, 1, 0])], phones).pnmi == pytest.approx(1)
    nothing = unit_quality([np.zeros(5, dtype=int)], phones)
    assert nothing.pnmi == pytest.approx(0) and nothing.perplexity == 1 and nothing.phone_purity == 2 / 5


def test_frames_without_a_phone_are_left_out_and_lengths_must_agree() -> None:
    assert unit_quality([np.array([0, 5, 1])], [["a", None, "b"]]).frames == 2
    with pytest.raises(DataError, match="sound 0: 3 units, but 2 phones"):
        unit_quality([np.array([0, 5, 1])], [["a", "b"]])
    with pytest.raises(DataError, match="no frame has a phone"):
        unit_quality([np.array([0])], [[None]])


def test_a_frame_has_the_phone_at_its_middle() -> None:
    found = frame_phones([("AH", 0.0, 0.031), ("B", 0.031, 0.04), ("S", 0.2, 1.0)], 6, 50)
    assert found == ["AH", "AH", "B", "B", None, None]  # the middles lie at 10, 30, 50, 70, 90 and 110 ms; B ends at 71 ms


def test_edits_are_counted_between_units_without_repetitions() -> None:
    clean = [[1, 1, 2, 2, 3], [5, 5, 5, 6]]
    assert unit_edit_distance(clean, clean) == 0
    assert unit_edit_distance(clean, [[1, 2, 2, 2, 2, 3, 3], [5, 6, 6]]) == 0  # repetitions, as a stretched sound has them
    changed = [[1, 9, 3], [6]]  # one of 3 replaced; one of 2 lost
    assert unit_edit_distance(clean, changed) == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    assert unit_edit_distance(clean, changed, norm="frames") == pytest.approx(100 * (1 / 5 + 1 / 4) / 2)


def test_an_edit_distance_wants_pairs_with_units() -> None:
    with pytest.raises(DataError, match="1 clean sounds and 2 changed ones"):
        unit_edit_distance([[1]], [[1], [2]])
    with pytest.raises(DataError, match="clean sound 1 has no unit"):
        unit_edit_distance([[1], []], [[1], [2]])
