"""The delta rule, token by token: DeltaNet (arXiv:2406.06484, eq. 3) and, with a decay, gated DeltaNet (arXiv:2412.06464, eq. 10).

Axes: b rows   t tokens   g groups of heads that share query and key   h heads   k key channels   v value channels
"""

from __future__ import annotations

import torch
from torch import Tensor


def delta_rule_reference(
    query_btgk: Tensor,
    key_btgk: Tensor,
    value_bthv: Tensor,
    beta_bth: Tensor,
    decay_bth: Tensor | None,
    document_bt: Tensor,
    state_bhkv: Tensor | None = None,
    continues_b: Tensor | None = None,
    chunk_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """S <- exp(decay_t) S;  S <- S + key_t (beta_t (value_t - S^T key_t))^T;  y_t = S^T query_t;  S = 0 where a document begins.

    Padding changes nothing.
    """
    b, t, heads, v = value_bthv.shape
    exact = torch.promote_types(torch.promote_types(value_bthv.dtype, beta_bth.dtype), torch.float32)
    query, key = (part.to(exact).repeat_interleave(heads // part.shape[2], dim=2) for part in (query_btgk, key_btgk))
    value, beta = value_bthv.to(exact), beta_bth.to(exact)
    s = value.new_zeros(b, heads, key.shape[-1], v) if state_bhkv is None else state_bhkv.to(exact)
    current = torch.zeros_like(document_bt[:, 0])  # the document that s belongs to; 0: none seen yet
    goes_on = torch.ones_like(current, dtype=torch.bool) if continues_b is None else continues_b.bool()
    outputs = []
    for i in range(t):
        document = document_bt[:, i]
        real = (document > 0)[:, None, None]
        kept = torch.where(current == 0, goes_on, document == current)
        new = torch.where(kept[:, None, None, None], s, 0)
        if decay_bth is not None:
            new = new * decay_bth[:, i, :, None, None].to(exact).exp()
        correction = beta[:, i, :, None] * (value[:, i] - (new * key[:, i, :, :, None]).sum(-2))
        new = new + key[:, i, :, :, None] * correction[:, :, None]
        outputs.append(torch.where(real, (new * query[:, i, :, :, None]).sum(-2), 0))
        s = torch.where(real[..., None], new, s)
        current = torch.where(document > 0, document, current)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(value)
    return y.to(value_bthv.dtype), s
