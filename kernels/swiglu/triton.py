"""The gate of SwiGLU on a GPU, one pass forwards and one backwards.

Axes: n rows   f inner width
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _place(SIZE, F, BLOCK: tl.constexpr):
    """Numbers of the output, where their gates lie, and which there are."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at // F * 2 * F + at % F, at < SIZE


@triton.jit
def _forward(x_ptr, y_ptr, SIZE, F, BLOCK: tl.constexpr):
    at, place, inside = _place(SIZE, F, BLOCK)
    gate = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + place + F, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (gate / (1.0 + tl.exp(-gate)) * up).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(x_ptr, dy_ptr, dx_ptr, SIZE, F, BLOCK: tl.constexpr):
    at, place, inside = _place(SIZE, F, BLOCK)
    gate = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + place + F, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    dgate = dy * up * (sigmoid + gate * sigmoid * (1.0 - sigmoid))
    tl.store(dx_ptr + place, dgate.to(dx_ptr.dtype.element_ty), mask=inside)
    tl.store(dx_ptr + place + F, (dy * gate * sigmoid).to(dx_ptr.dtype.element_ty), mask=inside)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        f = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], f)
        _forward[(triton.cdiv(y.numel(), _BLOCK),)](x, y, y.numel(), f, BLOCK=_BLOCK)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        _backward[(triton.cdiv(dy.numel(), _BLOCK),)](x, dy.contiguous(), dx, dy.numel(), dy.shape[-1], BLOCK=_BLOCK)
        return dx


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """Nothing is kept but the input."""
    return _Swiglu.apply(gate_up.contiguous()) if gate_up.numel() else gate_up[..., : gate_up.shape[-1] // 2]
