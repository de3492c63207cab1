"""Codebook patterns: nothing is lost, nothing is written twice, and where each cell goes."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import check
from mmlm.tokenizers.config import CodebookOrder
from mmlm.tokenizers.patterns import EMPTY, CodebookPattern

ORDERS = ["flatten", "parallel", "delay", "coarse_fine", "ar_nar"]


def pattern(order, books, coarse=None):
    return CodebookPattern(check(CodebookOrder, {"order": order} | ({"num_coarse": coarse} if coarse else {}), "test"), books)


def codes(frames, books):
    return torch.randint(0, 50, (frames, books), generator=torch.Generator().manual_seed(100 * frames + books))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frames", [0, 1, 2, 5, 13])
@pytest.mark.parametrize("books", [2, 3, 8])
def test_the_inverse_of_a_pattern_gives_the_codes_and_every_cell_is_written_once(order, frames, books):
    made, given = pattern(order, books), codes(frames, books)
    steps = made.forward(given)
    assert torch.equal(made.inverse(steps), given)
    written = torch.cat(steps)
    assert sorted(written[written != EMPTY].tolist()) == sorted(given.flatten().tolist())
    for part, some in zip(made.parts, steps, strict=True):
        assert len(some) == part.num_steps(frames)
        for frame in range(frames):
            for book in part.books:
                assert some[part.step(frame, book), book] == given[frame, book]
        if frames:
            assert bool((some != EMPTY).any(1).all()), "a step writes nothing"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frames", [0, 1, 4])
@pytest.mark.parametrize("books", [1, 3])
def test_the_end_stands_behind_the_last_frame_of_the_first_codebook(order, frames, books):
    if (order, books) == ("coarse_fine", 1):
        return
    for part in pattern(order, books).parts:
        steps = part.forward(codes(frames, books), end=77)
        assert (steps == 77).nonzero().tolist() == [[part.step(frames, part.books.start), part.books.start]]
        plain = part.forward(codes(frames, books))
        assert torch.equal(steps[: len(plain)].masked_fill(steps[: len(plain)] == 77, EMPTY), plain)
        assert torch.equal(part.inverse(steps, frames), part.inverse(plain))


def test_patterns_as_they_are_written_by_hand():
    given = torch.tensor([[1, 11, 21], [2, 12, 22]])
    by_hand = {
        "flatten": [[[1, -1, -1], [-1, 11, -1], [-1, -1, 21], [2, -1, -1], [-1, 12, -1], [-1, -1, 22]]],
        "parallel": [[[1, 11, 21], [2, 12, 22]]],
        "delay": [[[1, -1, -1], [2, 11, -1], [-1, 12, 21], [-1, -1, 22]]],
        "coarse_fine": [[[1, -1, -1], [2, -1, -1]], [[-1, 11, -1], [-1, -1, 21], [-1, 12, -1], [-1, -1, 22]]],
        "ar_nar": [[[1, -1, -1], [2, -1, -1]], [[-1, 11, -1], [-1, 12, -1]], [[-1, -1, 21], [-1, -1, 22]]],
    }
    for order in ORDERS:
        assert [part.tolist() for part in pattern(order, 3).forward(given)] == by_hand[order], order
    assert [part.books for part in pattern("coarse_fine", 3, 2).parts] == [range(2), range(2, 3)]
    assert [part.at_once for part in pattern("ar_nar", 3).parts] == [False, True, True]


def test_faults_are_told():
    with pytest.raises(RecipeError, match="num_coarse must be below the number of codebooks, 2, but is 2"):
        pattern("coarse_fine", 2, 2)
    with pytest.raises(RecipeError, match="at least 1 codebook"):
        pattern("delay", 0)
    with pytest.raises(RecipeError, match="only order coarse_fine has coarse codebooks"):
        check(CodebookOrder, {"order": "delay", "num_coarse": 2}, "test")
    part = pattern("delay", 3).parts[0]
    with pytest.raises(DataError, match=r"a pattern of 3 codebooks cannot lay out codes of shape \(4, 2\)"):
        part.forward(codes(4, 2))
    with pytest.raises(DataError, match="4 frames take 6 steps, but there are 5"):
        part.inverse(codes(5, 3), 4)
    with pytest.raises(DataError, match="5 steps of the order 'flatten' are no whole number of frames"):
        pattern("flatten", 3).parts[0].inverse(codes(5, 3))
    with pytest.raises(DataError, match="the pattern has 2 parts, but was given 1"):
        pattern("coarse_fine", 3).inverse([codes(4, 3)])
    with pytest.raises(DataError, match=r"different numbers of frames: \[1, 2\]"):
        pattern("ar_nar", 2).inverse([codes(1, 2), codes(2, 2)])
