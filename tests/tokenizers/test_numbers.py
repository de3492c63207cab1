"""Numbers go into digits and come back; the fixed encodings of digits keep their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError
from mmlm.model import FixedNumber
from mmlm.tokenizers.config import NumbersConfig


def test_ten_thousand_numbers_come_back_exactly():
    tokenizer, rng = NumbersConfig(whole_digits=4, decimals=6).build(), np.random.default_rng(0)
    numbers = np.round(rng.uniform(-9999, 9999, 10_000) * 10.0 ** rng.integers(-6, 1, 10_000), 6).tolist()
    lengths = set()
    for number in numbers:
        ids = tokenizer.ids(number)
        lengths.add(len(ids))
        assert tokenizer.number(ids) == number
    assert lengths == {len(tokenizer)} == {12}


def test_the_most_places_that_a_recipe_may_ask_for_can_be_written():
    tokenizer = NumbersConfig(whole_digits=15, decimals=15).build()
    assert tokenizer.decode(tokenizer.encode(123456789012345.25)) == 123456789012345.25


def test_a_number_is_sign_digits_and_point_with_their_orders():
    tokenizer = NumbersConfig(whole_digits=2, decimals=2).build()
    assert [tokenizer.symbol(index) for index in tokenizer.ids(-3.94)] == ["-", "0e1", "3e0", ".", "9e-1", "4e-2"]
    whole = NumbersConfig(whole_digits=1, decimals=0).build()
    assert [whole.symbol(index) for index in whole.ids(7)] == ["+", "7e0"]


def test_rounding_is_to_the_last_place_and_never_gives_a_negative_zero():
    tokenizer = NumbersConfig(whole_digits=1, decimals=1).build()
    assert tokenizer.decode(tokenizer.encode(0.26)) == 0.3
    assert tokenizer.symbol(tokenizer.ids(-0.01)[0]) == "+"


@pytest.mark.parametrize(
    ("number", "told"), [(100.0, "does not fit"), (99.999, "does not fit"), (-1e300, "does not fit"), (float("nan"), "not finite")]
)
def test_numbers_that_do_not_fit_are_refused(number, told):
    with pytest.raises(DataError, match=told):
        NumbersConfig(whole_digits=2, decimals=2).build().encode(number)


def test_what_is_no_number_is_read_as_none():
    tokenizer = NumbersConfig(whole_digits=1, decimals=1).build()
    ids = tokenizer.ids(2.5)
    assert tokenizer.number(ids) == 2.5
    assert tokenizer.number(ids[::-1]) is None and tokenizer.number(ids[:-1]) is None


def test_encodings_are_further_apart_the_further_digits_are_and_zero_elsewhere():
    tokenizer, width = NumbersConfig(whole_digits=2, decimals=2).build(), 16
    spread = FixedNumber(width)
    for row in range(4):
        digits = torch.tensor([3 + 10 * row + digit for digit in range(10)])
        encoded = spread(tokenizer.values(digits)[None])[0]
        far = torch.cdist(encoded, encoded)
        steps = [float(far[left, right]) for left in range(10) for right in range(left, 10)]
        gaps = [right - left for left in range(10) for right in range(left, 10)]
        means = [np.mean([step for step, gap in zip(steps, gaps, strict=True) if gap == size]) for size in range(10)]
        spreads = [np.ptp([step for step, gap in zip(steps, gaps, strict=True) if gap == size]) for size in range(10)]
        assert (np.diff(means) > 0).all() and max(spreads) < 1e-4
    assert not bool(tokenizer.values(torch.tensor([0, 1, 2])).any())
    assert float(tokenizer.values(torch.tensor([12])).max()) == pytest.approx(10.0)
    assert spread.row[:4].tolist() == pytest.approx([1, -1, 1 / 3, -1 / 3])


def test_the_encoding_is_not_trained_and_not_saved():
    spread = FixedNumber(8)
    assert not list(spread.parameters()) and not spread.state_dict()
    spread.row.zero_()
    spread.reset_buffers()
    assert float(spread.row[0]) == 1.0


def test_a_run_of_other_places_is_refused(tmp_path):
    NumbersConfig(decimals=3).build().save(tmp_path)
    NumbersConfig(decimals=3).build().load(tmp_path)
    with pytest.raises(CheckpointError, match="the recipe asks for"):
        NumbersConfig(decimals=2).build().load(tmp_path)
