"""The gate of a SwiGLU feed-forward, from one tensor that holds gate and up side by side. Source: arXiv:2002.05202.

Axes: n rows   f inner width
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.dispatch import GPU_FLOATS, on_gpu, pointers, register, run
from mmlm.kernels.native import address, letters
from mmlm.kernels.swiglu.reference import swiglu_reference


def swiglu(gate_up: Tensor, *, backend: str = "auto") -> Tensor:
    """silu(gate) * up [..., f] of [..., 2 f], gate first, in the dtype given.

    Raises RecipeError for an odd last axis, or where the back end asked for cannot serve.
    """
    if gate_up.shape[-1] % 2:
        raise RecipeError(f"swiglu: the last axis holds gate and up, but its size {gate_up.shape[-1]} is odd.")
    return run("swiglu", backend, gate_up)


def swiglu_torch(gate_up: Tensor) -> Tensor:
    """Two operations of torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


_SIZES = [native.SIZE, native.SIZE, ctypes.c_int]
_FORWARD, _BACKWARD = [*[native.ADDRESS] * 2, *_SIZES], [*[native.ADDRESS] * 3, *_SIZES]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(forward=_FORWARD, backward=_BACKWARD))


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        f = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], f)
        threads = native.threads(x.numel() * 6e-10)
        getattr(_library(), f"forward_{letters(x)}")(address(x), address(y), y.numel() // max(f, 1), f, threads)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        f = dy.shape[-1]
        threads = native.threads(x.numel() * 1e-9)
        getattr(_library(), f"backward_{letters(x)}")(address(x), address(dy), address(dx), dy.numel() // max(f, 1), f, threads)
        return dx


def swiglu_native(gate_up: Tensor) -> Tensor:
    """One pass in C++, forward and backward; nothing is kept but the input."""
    return _Swiglu.apply(gate_up)


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """Triton programs; triton is imported at the first call."""
    from mmlm.kernels.swiglu import triton

    return triton.swiglu_triton(gate_up)


def _serves(*arguments: Any) -> str | None:
    return pointers(*arguments) or _library.missing()


register("swiglu", "reference", swiglu_reference)
register("swiglu", "torch", swiglu_torch)
register("swiglu", "native", swiglu_native, _serves)
register("swiglu", "triton", swiglu_triton, functools.partial(on_gpu, dtypes=GPU_FLOATS))
