"""Gated linear attention, one token after the other. Source: GLA, arXiv:2312.06635, eq. 3.

Axes: b rows   t tokens   h heads   k key channels   v value channels
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmlm.kernels.recurrence import exact_type, token_by_token


class Gla(NamedTuple):
    """What every back end takes; `gla` tells what it means."""

    query_bthk: Tensor
    key_bthk: Tensor
    value_bthv: Tensor
    decay_bthk: Tensor
    document_bt: Tensor
    state_bhkv: Tensor | None
    continues_b: Tensor | None


def gla_reference(given: Gla) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(decay_t)) S_{t-1} + key_t value_t^T;  y_t = S_t^T query_t;  S = 0 where a document begins. Padding changes nothing."""
    exact = exact_type(given.value_bthv, given.decay_bthk)
    query, key, value, decay = (part.to(exact) for part in given[:4])

    def take(i: int, s: Tensor) -> tuple[Tensor, Tensor]:
        s = decay[:, i, :, :, None].exp() * s + key[:, i, :, :, None] * value[:, i, :, None]
        return s, (s * query[:, i, :, :, None]).sum(-2)

    b, _, heads, k = key.shape
    s = value.new_zeros(b, heads, k, value.shape[-1]) if given.state_bhkv is None else given.state_bhkv.to(exact)
    outputs, s = token_by_token(take, s, given.document_bt, given.continues_b)
    return (torch.stack(outputs, dim=1) if outputs else torch.zeros_like(value)).to(given.value_bthv.dtype), s
