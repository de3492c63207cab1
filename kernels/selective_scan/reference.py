"""The selective scan, one token after the other. Source: Mamba, arXiv:2312.00752, algorithm 2; range of decays: arXiv:2411.12537.

Axes: b rows   t tokens   i channels   n state channels
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    x_bti: Tensor,
    step_bti: Tensor,
    step_bias_i: Tensor,
    decay_in: Tensor,
    key_btn: Tensor,
    query_btn: Tensor,
    skip_i: Tensor,
    gate_bti: Tensor | None,
    document_bt: Tensor,
    state_bin: Tensor | None = None,
    continues_b: Tensor | None = None,
    negative: bool = False,
) -> tuple[Tensor, Tensor]:
    """s = softplus(step + bias);  h_t = a_t h_{t-1} + s_t x_t key_t^T;  y_t = (h_t query_t + skip x_t) silu(gate_t).

    a_t is exp(s_t decay), or 2 exp(s_t decay) - 1 where negative is asked for. h = 0 where a document begins. Padding changes nothing.
    """
    b, t, channels = x_bti.shape
    exact = torch.promote_types(torch.promote_types(x_bti.dtype, decay_in.dtype), torch.float32)
    x, key, query, decay = (part.to(exact) for part in (x_bti, key_btn, query_btn, decay_in))
    step = F.softplus(step_bti.to(exact) + step_bias_i.to(exact))
    h = x.new_zeros(b, channels, decay.shape[1]) if state_bin is None else state_bin.to(exact)
    current = document_bt.new_zeros(b)  # the document that h belongs to; 0: none seen yet
    goes_on = torch.ones_like(current, dtype=torch.bool) if continues_b is None else continues_b.bool()
    outputs = []
    for i in range(t):
        document = document_bt[:, i]
        real = document > 0
        kept = torch.where(current == 0, goes_on, document == current)
        a = (step[:, i, :, None] * decay).exp()
        a = 2 * a - 1 if negative else a
        new = a * torch.where(kept[:, None, None], h, 0) + (step[:, i] * x[:, i])[..., None] * key[:, i, None]
        h = torch.where(real[:, None, None], new, h)
        y = (h * query[:, i, None]).sum(-1) + skip_i.to(exact) * x[:, i]
        outputs.append(torch.where(real[:, None], y, 0))
        current = torch.where(real, document, current)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
    if gate_bti is not None:
        y = torch.where((document_bt > 0)[..., None], y * F.silu(gate_bti.to(exact)), 0)
    return y.to(x_bti.dtype), h
