"""The causal depthwise convolution, one token after the other.

Axes: b rows   t tokens   c channels   k taps, the last one for the current token
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_reference(
    x_btc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    document_bt: Tensor,
    state_bck: Tensor | None = None,
    continues_b: Tensor | None = None,
    activation: str | None = "silu",
) -> tuple[Tensor, Tensor]:
    """y_t = act(bias + sum_i weight[k - 1 - i] x_{t - i}) over the tokens of one document; padding is not among them."""
    (b, t, channels), taps = x_btc.shape, weight_ck.shape[1]
    exact = torch.promote_types(x_btc.dtype, torch.float32)
    x, weight = x_btc.to(exact), weight_ck.to(exact)
    held = x.new_zeros(b, channels, taps - 1) if state_bck is None else state_bck.to(exact)
    current = document_bt.new_zeros(b)
    goes_on = torch.ones_like(current, dtype=torch.bool) if continues_b is None else continues_b.bool()
    outputs = []
    for i in range(t):
        document = document_bt[:, i]
        real = document > 0
        kept = torch.where(current == 0, goes_on, document == current)
        seen = torch.cat([torch.where(kept[:, None, None], held, 0), x[:, i, :, None]], dim=2)
        y = (seen * weight).sum(-1)
        if bias_c is not None:
            y = y + bias_c.to(exact)
        y = F.silu(y) if activation == "silu" else y
        outputs.append(torch.where(real[:, None], y, 0))
        held = torch.where(real[:, None, None], seen[..., 1:], held)
        current = torch.where(real, document, current)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)
    return y.to(x_btc.dtype), held.to(x_btc.dtype)
