"""Windows over tokens: all are covered, neighbours share, and what windows hold is put together without a gap or a repetition."""

from __future__ import annotations

import pytest
import torch

from mmlm.tasks.windows import joined, windows


@pytest.mark.parametrize("count", [0, 1, 7, 19, 20, 21, 37, 38, 39, 200, 201])
def test_windows_cover_all_tokens_and_join_to_them(count):
    spans, all_t = windows(count, 20), torch.arange(count)
    assert spans[0][0] == 0 and spans[-1][1] == count and all(0 <= end - start <= 20 for start, end in spans)
    assert all(before[1] - after[0] == 2 for before, after in zip(spans, spans[1:], strict=False))
    assert torch.equal(joined([all_t[start:end] for start, end in spans], spans), all_t)
    assert len(spans) == 1 or count > 20


def test_of_what_two_windows_share_each_gives_the_half_at_its_own_side():
    spans = windows(38, 20)
    assert spans == [(0, 20), (18, 38)]
    told = joined([torch.full((20, 2), 1), torch.full((20, 2), 2)], spans)
    assert told[:19].unique().tolist() == [1] and told[19:].unique().tolist() == [2] and told.shape == (38, 2)
