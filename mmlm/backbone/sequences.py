"""Tokens taken out of their rows as sequences (documents, lines along an axis) and put back.

Axes: n rows of a matrix, or sequences of one length   d its columns   b rows   t tokens   l tokens of a sequence   h heads
k key channels   v value channels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmlm.kernels.attention.plan import reorder
from mmlm.layout import Layout


def by_sequence(layout: Layout, work: Callable[..., Tensor], *tensors: Tensor, over: str | None = None, who: str) -> Tensor:
    """`work` on whole sequences: documents, or lines along one position axis. Padding comes out as zero.

    tensors: [b, t, ...]. work: [n, l, ...] of each, sequences of one length without padding, -> [n, l, channels]. Returns [b, t, channels].
    """
    if over is None and layout.is_simple:
        return work(*tensors)
    plan = layout.plan(over, causal=False, who=who)
    taken = [x.flatten(0, 1).flatten(1) if plan.ordered else reorder(x.flatten(0, 1).flatten(1), plan.order, plan.inverse) for x in tensors]
    sizes = [bucket.index.numel() for bucket in plan.buckets]  # split: the gradient of a slice would be as long as the whole
    outputs = []
    for bucket, *parts in zip(plan.buckets, *(x.split(sizes) for x in taken)):
        parts = [part.view(*bucket.index.shape, *x.shape[2:]) for part, x in zip(parts, tensors)]
        outputs.append(work(*parts).flatten(0, 1))
    y_nd = torch.cat(outputs)
    return (y_nd if plan.ordered else reorder(y_nd, plan.inverse, plan.order)).unflatten(0, layout.document.shape)


def linear_attention(q_nlhk: Tensor, k_nlhk: Tensor, v_nlhv: Tensor) -> Tensor:
    """Every token's query with the sum of key value^T over all tokens of its sequence: [n, l, h * v]."""
    return torch.einsum("nlhk,nhkv->nlhv", q_nlhk, torch.einsum("nlhk,nlhv->nhkv", k_nlhk, v_nlhv)).flatten(2)
