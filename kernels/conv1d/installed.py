"""The causal convolution by the package causal-conv1d, where it is installed.

Checked against its documented arguments: channels before tokens, which may be a transposed view; `seq_idx` numbers documents; carried
inputs are `initial_states`; it takes one of the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmlm.kernels.dispatch import installed
from mmlm.kernels.documents import documents


def convolve(
    x_btc: Tensor, weight_ck: Tensor, bias_c: Tensor | None, document_bt: Tensor, state_bck: Tensor | None, activation: str | None
) -> Tensor:
    """y [b, t, c] of rows that `serves` lets through."""
    from causal_conv1d import causal_conv1d_fn

    known = documents(document_bt)
    held = None if state_bck is None else state_bck.to(x_btc.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    y = causal_conv1d_fn(
        x_btc.transpose(1, 2),
        weight_ck,
        None if bias_c is None else bias_c.to(weight_ck.dtype),
        seq_idx=None if known.plain else known.segment.int().contiguous(),
        initial_states=held,
        activation=activation,
    ).transpose(1, 2)
    return y if known.plain else torch.where(known.real[..., None], y, 0)


def serves(*arguments: Any) -> str | None:
    """Why causal-conv1d cannot serve, or None."""
    reason = installed("causal-conv1d", *arguments, dtypes=(torch.float32, torch.bfloat16, torch.float16))
    if reason is not None or not arguments:
        return reason
    x, weight, _, document, state, continues, _ = arguments
    if not 2 <= weight.shape[1] <= 4:
        return f"{weight.shape[1]} taps (it takes 2 to 4)"
    if x.numel() == 0:
        return "there are no tokens"
    if x.shape[2] % 8 or x.stride(2) != 1 or x.stride(0) % 8 or x.stride(1) % 8:
        return f"{x.shape[2]} channels in rows {x.stride(1)} apart (it takes multiples of 8)"
    known = documents(document)
    if not known.plain and state is not None or not known.padded_at_end:
        return "it takes no carried inputs beside documents, and padding at the end alone"
    if continues is not None and not bool(continues.all()):
        return "it takes carried inputs for all rows or for none"
    return None
