"""The selective scan, one token after the other. Source: Mamba, arXiv:2312.00752, algorithm 2; range of decays: arXiv:2411.12537.

Axes: b rows   t tokens   i channels   n state channels
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.kernels.recurrence import exact_type, token_by_token


class SelectiveScan(NamedTuple):
    """What every back end takes; `selective_scan` tells what it means."""

    x_bti: Tensor
    step_bti: Tensor
    step_bias_i: Tensor
    decay_in: Tensor
    key_btn: Tensor
    query_btn: Tensor
    skip_i: Tensor
    gate_bti: Tensor | None
    document_bt: Tensor
    state_bin: Tensor | None
    continues_b: Tensor | None
    negative: bool


def selective_scan_reference(given: SelectiveScan) -> tuple[Tensor, Tensor]:
    """s = softplus(step + bias);  h_t = a_t h_{t-1} + s_t x_t key_t^T;  y_t = (h_t query_t + skip x_t) silu(gate_t).

    a_t is exp(s_t decay), or 2 exp(s_t decay) - 1 where negative is asked for. h = 0 where a document begins. Padding changes nothing.
    """
    exact = exact_type(given.x_bti, given.decay_in)
    x, key, query, decay, skip = (part.to(exact) for part in (given.x_bti, given.key_btn, given.query_btn, given.decay_in, given.skip_i))
    step = F.softplus(given.step_bti.to(exact) + given.step_bias_i.to(exact))
    gate = None if given.gate_bti is None else F.silu(given.gate_bti.to(exact))

    def take(i: int, h: Tensor) -> tuple[Tensor, Tensor]:
        a = (step[:, i, :, None] * decay).exp()
        a = 2 * a - 1 if given.negative else a
        h = a * h + (step[:, i] * x[:, i])[..., None] * key[:, i, None]
        y = (h * query[:, i, None]).sum(-1) + skip * x[:, i]
        return h, y if gate is None else y * gate[:, i]

    h = x.new_zeros(len(x), *decay.shape) if given.state_bin is None else given.state_bin.to(exact)
    outputs, h = token_by_token(take, h, given.document_bt, given.continues_b)
    return (torch.stack(outputs, dim=1) if outputs else torch.zeros_like(x)).to(given.x_bti.dtype), h
