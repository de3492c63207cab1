"""The sequences that packed or gridded tokens attend in, those of equal length together.

Axes: n tokens, or sequences   l tokens of a sequence
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bucket:
    """Sequences of one length. index: [n, l] places in the flattened tokens.   start: the place of the first token where the sequences
    lie one after the other without a gap, else None.   visible: bool [n or 1, l, l], or None where all (or, if causal, all earlier)
    tokens of a sequence are visible."""

    index: Tensor
    start: int | None
    visible: Tensor | None


@dataclass(frozen=True)
class Plan:
    """Sequences of a layout in buckets of equal length. order: place of each token of the buckets, one after the other, in the flattened
    tokens; inverse: for each flattened token its place in that order (the number of ordered tokens for padding); ordered: the order is
    that of the flattened tokens and none is padding."""

    buckets: list[Bucket]
    order: Tensor
    inverse: Tensor
    ordered: bool

    @cached_property
    def pairs(self) -> int:
        """Scores of a head."""
        return sum(bucket.index.numel() * bucket.index.shape[1] for bucket in self.buckets)

    @cached_property
    def table(self) -> tuple[Tensor, Tensor | None]:
        """For compiled code: of each sequence [n, 4] first token in `order`, length, first byte of its mask (-1: none) and stride of its
        keys; and all masks as bytes, the queries of a key side by side."""
        rows, masks, first, used = [], [], 0, 0
        for bucket in self.buckets:
            count, length = bucket.index.shape
            place = torch.arange(count)
            at = torch.full_like(place, -1)
            if bucket.visible is not None:
                masks.append(bucket.visible.mT.reshape(-1))
                at = used + (place if len(bucket.visible) > 1 else 0 * place) * length**2
                used += masks[-1].numel()
            rows.append(torch.stack([first + place * length, torch.full_like(place, length), at, torch.full_like(place, length)], dim=1))
            first += count * length
        return torch.cat(rows) if rows else torch.zeros(0, 4, dtype=torch.long), torch.cat(masks) if masks else None


class _Reorder(torch.autograd.Function):
    """Rows in another order; the gradient takes the way back instead of adding into place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        return _rows(x, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _, back = ctx.saved_tensors
        return _rows(grad, back), None, None


def _rows(x: Tensor, index: Tensor) -> Tensor:
    if len(index) > len(x):  # the other side has padding, whose place is one row after the last
        x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])
    return x.index_select(0, index)


def reorder(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Rows `index` of x; `back` is the inverse. Where one side has more rows, its extra rows are zero."""
    return _Reorder.apply(x, index, back)
