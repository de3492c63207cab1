"""Softmax attention from full scores. Source: arXiv:1706.03762, eq. 1; grouped heads arXiv:2305.13245; soft cap arXiv:2408.00118.

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlm.kernels.documents import documents


class Rule(NamedTuple):
    """What holds for all scores: look back only; keys a query looks back, itself included; first keys that stay visible beyond these;
    factor; soft cap."""

    causal: bool
    window: int | None
    sinks: int
    scale: float
    softcap: float | None

    def among(self, length: int) -> Rule:
        """The rule for so many keys: a window that holds them all hides none, and without one there is nothing beyond it."""
        return self if self.window is not None and self.window < length else self._replace(window=None, sinks=0)


def visible_pairs(t: int, l: int, rule: Rule, device: torch.device) -> Tensor:  # noqa: E741
    """bool [t, l]: query i, standing at l - t + i, sees key j if j is not after it (causal) and less than `window` before it or a sink."""
    key = torch.arange(l, device=device)
    distance = torch.arange(l - t, l, device=device)[:, None] - key
    seen = distance >= 0 if rule.causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if rule.window is None else seen & ((distance < rule.window) | (key < rule.sinks))


def within_documents(mask: Tensor | None, document_bt: Tensor | None) -> Tensor | None:
    """The mask [b or 1, h or 1, t, l] that also keeps the tokens of packed rows to their document; padding sees and shows nothing."""
    if document_bt is None:
        return mask
    known = documents(document_bt)
    segment, real = known.segment, known.real
    same = ((segment[:, :, None] == segment[:, None]) & real[:, :, None] & real[:, None])[:, None]
    return same if mask is None else mask & same


def distance_bias(slopes_h: Tensor, t: int, l: int) -> Tensor:  # noqa: E741
    """-slope |i - j| for query i, standing at l - t + i, and key j: [h, t, l]. Source: ALiBi, arXiv:2108.12409."""
    distance = torch.arange(l - t, l, device=slopes_h.device)[:, None] - torch.arange(l, device=slopes_h.device)
    return -slopes_h[:, None, None] * distance.abs()


def no_fused_form(*arguments: Any) -> str | None:
    """Why forms other than PyTorch's own cannot serve the arguments of an operation here: queries, keys, values, another, slopes, ..."""
    if len({x.dtype for x in arguments[:3]}) > 1:
        return "queries, keys and values differ in dtype"
    if arguments and arguments[4] is not None and arguments[4].requires_grad:
        return "it gives no gradient for slopes"
    return None


def attention_reference(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    slopes_h: Tensor | None,
    rule: Rule,
    document_bt: Tensor | None = None,
) -> Tensor:
    """softmax(cap(q k^T scale) - slope distance) v over the visible keys, in float32 at least; a query that sees no key gets zeros."""
    mask = within_documents(mask, document_bt)
    exact = torch.promote_types(q_bhtk.dtype, torch.float32)
    shared = q_bhtk.shape[1] // k_bglk.shape[1]
    q, k, v = q_bhtk.to(exact), *(part.to(exact).repeat_interleave(shared, dim=1) for part in (k_bglk, v_bglk))
    scores = q @ k.transpose(-1, -2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if slopes_h is not None:
        scores = scores + distance_bias(slopes_h.to(exact), q.shape[2], k.shape[2])
    seen = visible_pairs(q.shape[2], k.shape[2], rule, scores.device)
    seen = (seen if mask is None else seen & mask).expand(scores.shape)
    p = torch.where(seen, scores, -torch.inf).softmax(-1)
    p = torch.where(seen.any(-1, keepdim=True), p, 0)
    return (p @ v).to(q_bhtk.dtype)
