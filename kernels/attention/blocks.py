"""Attention in blocks of queries in PyTorch: matrix products, softmax and its gradient by elementwise passes in between.

Keys that no query of a block can see (the future, beyond the window) are left out of the products. Of the forward pass only the log of each
softmax's denominator is kept; the backward pass computes the scores again (FlashAttention-2, arXiv:2307.08691).

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels   n = b g   r heads that share keys, times queries
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlm.kernels.attention.reference import Rule, visible_pairs

BLOCK = 256  # queries of a block
SCORES = 1 << 21  # scores at a time


class Part(NamedTuple):
    """One block of scores: rows of the batch times key heads, queries, keys; where its queries stand among the keys; its mask."""

    heads: slice
    queries: slice
    keys: slice
    offset: int
    mask: Tensor | None

    def seen(self, rule: Rule, device: torch.device) -> Tensor | None:
        """bool, broadcast to [n, heads, queries, keys], or None where every query sees all keys of the block."""
        first, last = self.queries.start + self.offset, self.queries.stop - 1 + self.offset
        inside = (not rule.causal or first >= self.keys.stop - 1) and (rule.window is None or last - self.keys.start < rule.window)
        if inside:
            return self.mask
        pairs = visible_pairs(last + 1 - first, last + 1, rule, device)
        if pairs.shape[1] < self.keys.stop:
            pairs = torch.nn.functional.pad(pairs, (0, self.keys.stop - pairs.shape[1]), value=not rule.causal)
        pairs = pairs[:, self.keys]
        return pairs if self.mask is None else pairs & self.mask


def softmax(scores: Tensor, part: Part, rule: Rule, log_sum: Tensor) -> Tensor:
    """Probabilities in the dtype of the raw scores [n, heads, queries, keys]; their log denominators go to log_sum [n, heads, queries]."""
    z, _ = _scaled(scores, part, rule)
    log_sum.copy_(z.logsumexp(-1))
    return z.sub_(log_sum[..., None].clamp_min(-1e30)).exp_().to(scores.dtype)


def differentiate(scores: Tensor, slopes: Tensor, part: Part, rule: Rule, log_sum: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities again, and the gradient of the raw scores from that of the probabilities."""
    z, cap_slope = _scaled(scores, part, rule)
    p = z.sub_(log_sum[..., None].clamp_min(-1e30)).exp_()
    d = slopes.to(p.dtype)
    d = d.sub((d * p).sum(-1, keepdim=True)).mul_(p).mul_(rule.scale)
    return p.to(scores.dtype), (d if cap_slope is None else d * cap_slope).to(scores.dtype)


def _scaled(scores: Tensor, part: Part, rule: Rule) -> tuple[Tensor, Tensor | None]:
    """Scores times scale, capped, minus infinity where unseen, in float32 at least; and the slope of the cap."""
    z = scores.to(torch.promote_types(scores.dtype, torch.float32)) * rule.scale
    slope = None
    if rule.softcap is not None:
        z = torch.tanh(z / rule.softcap)
        slope, z = 1 - z.square(), z * rule.softcap
    seen = part.seen(rule, scores.device)
    return z if seen is None else z.masked_fill_(~seen, -torch.inf), slope


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_bhtk: Tensor, k_bglk: Tensor, v_bglk: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
        b, h, t, size = q_bhtk.shape
        groups, length, channels = v_bglk.shape[1:]
        q = q_bhtk.reshape(b * groups, h // groups, t, size)
        k, v = k_bglk.reshape(b * groups, length, size), v_bglk.reshape(b * groups, length, channels)
        plain = mask is None and rule.window is None and rule.softcap is None and q.shape[3] == channels
        if plain and groups == h and t == length:
            # torch's fused form is quicker forwards; backwards, above all in bfloat16, the blocks are
            found, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q_bhtk, k_bglk, v_bglk, 0.0, rule.causal, scale=rule.scale
            )
            ctx.save_for_backward(q, k, v, mask, sums.reshape(q.shape[:3]).contiguous())
            ctx.rule, ctx.shapes = rule, (q_bhtk.shape, k_bglk.shape, v_bglk.shape)
            return found
        y = q.new_empty(*q.shape[:3], channels)
        log_sum = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        for part in _parts(q, length, groups, mask, rule):
            scores = _product(_rows(q, part), k[part.heads, part.keys].mT, q.shape[1])
            kept = log_sum[part.heads, :, part.queries]
            p = softmax(scores, part, rule, kept)
            y[part.heads, :, part.queries] = _product(p.flatten(1, 2), v[part.heads, part.keys], q.shape[1])
        ctx.save_for_backward(q, k, v, mask, log_sum)
        ctx.rule, ctx.shapes = rule, (q_bhtk.shape, k_bglk.shape, v_bglk.shape)
        return y.view(b, h, t, channels)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_bhtk: Tensor) -> tuple[Any, ...]:
        q, k, v, mask, log_sum = ctx.saved_tensors
        q_shape, k_shape, v_shape = ctx.shapes
        shared = q.shape[1]
        dy = dy_bhtk.reshape(*q.shape[:3], v.shape[2])
        exact = log_sum.dtype
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk, dv = torch.zeros(k.shape, dtype=exact, device=k.device), torch.zeros(v.shape, dtype=exact, device=v.device)
        for part in _parts(q, k.shape[1], k_shape[1], mask, ctx.rule):
            q_rows, dy_rows = _rows(q, part), _rows(dy, part)
            k_part, v_part = k[part.heads, part.keys], v[part.heads, part.keys]
            scores, slopes = _product(q_rows, k_part.mT, shared), _product(dy_rows, v_part.mT, shared)
            p, d = differentiate(scores, slopes, part, ctx.rule, log_sum[part.heads, :, part.queries])
            p, d = p.flatten(1, 2), d.flatten(1, 2)
            dv[part.heads, part.keys] += torch.bmm(p.mT, dy_rows)
            dk[part.heads, part.keys] += torch.bmm(d.mT, q_rows)
            dq[part.heads, :, part.queries] = _product(d, k_part, shared)
        return dq.view(q_shape), dk.to(k.dtype).view(k_shape), dv.to(v.dtype).view(v_shape), None, None


def _parts(q: Tensor, length: int, groups: int, mask: Tensor | None, rule: Rule) -> Iterator[Part]:
    n, shared, t, _ = q.shape
    offset = length - t
    for first in range(0, t, BLOCK):
        last = min(first + BLOCK, t)
        stop = min(length, last + offset) if rule.causal else length
        start = 0 if rule.window is None or rule.sinks else max(0, first + offset - rule.window + 1)
        together = max(1, SCORES // max(shared * (last - first) * (stop - start), 1))
        for head in range(0, n, together):
            heads, queries, keys = slice(head, min(head + together, n)), slice(first, last), slice(start, stop)
            yield Part(heads, queries, keys, offset, _cut(mask, heads, queries, keys, groups, shared))


def _cut(mask: Tensor | None, heads: slice, queries: slice, keys: slice, groups: int, shared: int) -> Tensor | None:
    """The mask [b or 1, h or 1, t, l] of a block, broadcast to [n or 1, heads or 1, queries, keys]."""
    if mask is None:
        return None
    mask = mask[..., queries, keys]
    if mask.shape[0] == 1 and mask.shape[1] == 1:
        return mask
    index = torch.arange(heads.start, heads.stop, device=mask.device)
    row, group = index // groups % mask.shape[0], index % groups
    if mask.shape[1] == 1:
        return mask[row]
    return mask.unflatten(1, (groups, shared))[row, group]


def _rows(x: Tensor, part: Part) -> Tensor:
    """The queries of a block, those of all heads that share keys one after the other: [n, r, k]."""
    return x[part.heads, :, part.queries].flatten(1, 2)


def _product(a: Tensor, b: Tensor, shared: int) -> Tensor:
    return torch.bmm(a, b).unflatten(1, (shared, -1))


def attention_in_blocks(q_bhtk: Tensor, k_bglk: Tensor, v_bglk: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attention in blocks of matrix products."""
    return _Attention.apply(q_bhtk, k_bglk, v_bglk, mask, rule)
