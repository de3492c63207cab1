"""The Mamba-2 recurrence, one token after the other. Source: arXiv:2405.21060, eq. 1 with a scalar decay per head.

Axes: b rows   t tokens   h heads   p channels of a head   g groups of heads   n state channels
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmlm.kernels.recurrence import exact_type, token_by_token


class Ssd(NamedTuple):
    """What every back end takes; `ssd` tells what it means."""

    x_bthp: Tensor
    step_bth: Tensor
    decay_h: Tensor
    key_btgn: Tensor
    query_btgn: Tensor
    document_bt: Tensor
    state_bhpn: Tensor | None
    continues_b: Tensor | None
    chunk_size: int


def ssd_reference(given: Ssd) -> tuple[Tensor, Tensor]:
    """h_t = exp(step_t decay) h_{t-1} + step_t x_t key_t^T;  y_t = h_t query_t;  h = 0 where a document begins. Padding changes nothing."""
    b, _, heads, p = given.x_bthp.shape
    exact = exact_type(given.x_bthp, given.step_bth)
    x, step, decay = given.x_bthp.to(exact), given.step_bth.to(exact), given.decay_h.to(exact)
    key, query = (part.to(exact).repeat_interleave(heads // part.shape[2], dim=2) for part in (given.key_btgn, given.query_btgn))

    def take(i: int, h: Tensor) -> tuple[Tensor, Tensor]:
        h = h * (step[:, i] * decay).exp()[:, :, None, None]
        h = h + (step[:, i, :, None] * x[:, i])[..., None] * key[:, i, :, None]
        return h, (h * query[:, i, :, None]).sum(-1)

    h = x.new_zeros(b, heads, p, key.shape[-1]) if given.state_bhpn is None else given.state_bhpn.to(exact)
    outputs, h = token_by_token(take, h, given.document_bt, given.continues_b)
    return (torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)).to(given.x_bthp.dtype), h
