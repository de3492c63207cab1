"""The Mamba-2 recurrence, one token after the other. Source: arXiv:2405.21060, eq. 1 with a scalar decay per head.

Axes: b rows   t tokens   h heads   p channels of a head   g groups of heads   n state channels
"""

from __future__ import annotations

import torch
from torch import Tensor


def ssd_reference(
    x_bthp: Tensor,
    step_bth: Tensor,
    decay_h: Tensor,
    key_btgn: Tensor,
    query_btgn: Tensor,
    document_bt: Tensor,
    state_bhpn: Tensor | None = None,
    continues_b: Tensor | None = None,
    chunk_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(step_t decay) h_{t-1} + step_t x_t key_t^T;  y_t = h_t query_t;  h = 0 where a document begins. Padding changes nothing."""
    b, t, heads, p = x_bthp.shape
    exact = torch.promote_types(torch.promote_types(x_bthp.dtype, step_bth.dtype), torch.float32)
    x, step, decay = x_bthp.to(exact), step_bth.to(exact), decay_h.to(exact)
    key, query = (part.to(exact).repeat_interleave(heads // part.shape[2], dim=2) for part in (key_btgn, query_btgn))
    h = x.new_zeros(b, heads, p, key.shape[-1]) if state_bhpn is None else state_bhpn.to(exact)
    current = torch.zeros_like(document_bt[:, 0])  # the document that h belongs to; 0: none seen yet
    goes_on = torch.ones_like(current, dtype=torch.bool) if continues_b is None else continues_b.bool()
    outputs = []
    for i in range(t):
        document = document_bt[:, i]
        real = document > 0
        kept = torch.where(current == 0, goes_on, document == current)
        new = torch.where(kept[:, None, None, None], h, 0) * (step[:, i] * decay).exp()[:, :, None, None]
        new = new + (step[:, i, :, None] * x[:, i])[..., None] * key[:, i, :, None]
        h = torch.where(real[:, None, None, None], new, h)
        outputs.append(torch.where(real[:, None, None], (h * query[:, i, :, None]).sum(-1), 0))
        current = torch.where(real, document, current)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
    return y.to(x_bthp.dtype), h
