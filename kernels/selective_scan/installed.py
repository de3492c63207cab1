"""The selective scan by the package mamba-ssm, where it is installed with its CUDA part.

Checked against its documented arguments: u, delta, A, B, C, D, z are x, step, decay, key, query, skip, gate with the tokens last; it adds
the bias and takes the softplus itself.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import installed
from mmlm.kernels.documents import documents
from mmlm.kernels.selective_scan.reference import SelectiveScan


class _Last(torch.autograd.Function):
    """The last state, which has a gradient where y has one: the package would leave it out without a word."""

    @staticmethod
    def forward(ctx: Any, last_bin: Tensor, y: Tensor) -> Tensor:
        return last_bin.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        raise RecipeError("selective_scan: mamba-ssm gives no gradient for the last state; set MMLM_KERNEL=selective_scan=triton.")


def selective_scan_mamba_ssm(given: SelectiveScan) -> tuple[Tensor, Tensor]:
    """Rows of one document each."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x_bti, step_bti, step_bias_i, decay_in, key_btn, query_btn, skip_i, gate_bti, *_ = given
    dtype = x_bti.dtype
    x, step, gate, key, query = (
        None if part is None else part.to(dtype).transpose(1, 2).contiguous() for part in (x_bti, step_bti, gate_bti, key_btn, query_btn)
    )
    y, last = selective_scan_fn(
        x,
        step,
        decay_in.float(),
        key,
        query,
        skip_i.float(),
        z=gate,
        delta_bias=step_bias_i.float(),
        delta_softplus=True,
        return_last_state=True,
    )
    return y.transpose(1, 2), _Last.apply(last.float(), y)


def serves(*arguments: Any) -> str | None:
    """Why mamba-ssm cannot serve, or None."""
    reason = installed("mamba-ssm", *arguments, dtypes=(torch.float32, torch.bfloat16, torch.float16))
    if reason is not None or not arguments:
        return reason
    x, decay, document, state, _, negative = arguments[0], arguments[3], *arguments[8:]
    if negative:
        return "it knows no negative decays"
    if decay.shape[1] > 256:
        return f"{decay.shape[1]} state channels (it takes at most 256)"
    if state is not None:
        return "it takes no carried state"
    if x.numel() == 0 or not documents(document).plain:
        return "it takes rows of one document each, without padding"
    if getattr(importlib.import_module("mamba_ssm.ops.selective_scan_interface"), "selective_scan_cuda", None) is None:
        return "it was built without its CUDA part"
    return None
