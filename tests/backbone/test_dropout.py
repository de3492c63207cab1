"""Dropout keeps the share and the mean that it says, follows the global generator, and passes gradients where it keeps values."""

from __future__ import annotations

import pytest
import torch

from mmlm.backbone.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_dropped_and_the_mean_stays(p, dtype) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(101, 203, dtype=dtype), p, True)
    share = float((y == 0).float().mean())
    assert abs(share - p) < 4 * (p * (1 - p) / y.numel()) ** 0.5
    assert float(y.max()) == pytest.approx(1 / (1 - p), rel=1e-2 if dtype == torch.bfloat16 else 1e-4) and y.unique().numel() == 2
    for lane in range(4):  # each of the four values that share a random number
        assert abs(float((y.flatten()[lane::4] == 0).float().mean()) - p) < 4 * (p * (1 - p) * 4 / y.numel()) ** 0.5


def test_it_follows_the_seed_and_passes_gradients_through_what_it_keeps() -> None:
    x = torch.randn(7, 9, requires_grad=True)
    torch.manual_seed(3)
    first = dropout(x, 0.3, True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.3, True)) and not torch.equal(first, dropout(x, 0.3, True))
    (grad,) = torch.autograd.grad(first.sum(), x)
    assert torch.equal(grad != 0, first != 0)
    assert dropout(x, 0.3, False) is x and dropout(x, 0.0, True) is x
