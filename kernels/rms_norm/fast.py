"""RMSNorm over the last axis, alone or with the addition to the residual stream before it. Statistics are float32.

Source: arXiv:1910.07467.
Axes: n rows   d width
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.kernels import native
from mmlm.kernels.dispatch import FLOATS, GPU_FLOATS, check_shapes, on_gpu, pointers, register, run
from mmlm.kernels.native import address, letters
from mmlm.kernels.rms_norm.reference import rms_norm_reference


def rms_norm(x: Tensor, weight_d: Tensor, eps: float = 1e-6, *, dtype: torch.dtype | None = None, backend: str = "auto") -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in `dtype` (default: that of x).

    Raises RecipeError where the weight is not one number a channel of x, or where the back end asked for cannot serve.
    """
    check_shapes("rms_norm", f"x {list(x.shape)}", {"weight": (weight_d, x.shape[-1:])})
    return run("rms_norm", backend, x, weight_d, eps, None, dtype or x.dtype)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight_d: Tensor, eps: float = 1e-6, *, dtype: torch.dtype | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The norm of x + residual in `dtype` (default: that of x), and x + residual, the stream that goes on.

    x and residual have one shape, or such that their sum is defined. Raises RecipeError as `rms_norm` does.
    """
    check_shapes("rms_norm", f"x {list(x.shape)}", {"weight": (weight_d, x.shape[-1:])})
    return run("rms_norm", backend, x, weight_d, eps, residual, dtype or x.dtype)


def rms_norm_torch(x: Tensor, weight_d: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """torch's own norm, or in half precision, where that is slow on a CPU, its parts."""
    total = x if residual is None else x + residual
    if total.dtype in (torch.float32, torch.float64):
        return F.rms_norm(total, weight_d.shape, weight_d.to(total.dtype), eps).to(dtype), total
    s = total.float()
    return (s * torch.rsqrt(s.square().mean(-1, keepdim=True) + eps)).to(dtype) * weight_d.to(dtype), total


_POINTER, _SIZE = native.ADDRESS, native.SIZE
_FORWARD = [*[_POINTER] * 6, _SIZE, _SIZE, native.REAL, ctypes.c_int]
_BACKWARD = [*[_POINTER] * 7, _SIZE, _SIZE, ctypes.c_int]
_library = native.Library(
    Path(__file__).parent / "fast.cpp",
    {f"forward_{types}": _FORWARD for types in ("fff", "ffb", "bff", "bfb", "bbf", "bbb")}
    | {f"backward_{types}": _BACKWARD for types in ("ff", "fb", "bf", "bb")},
)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_d: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        library = _library()
        d = x.shape[-1]
        x = x.contiguous()
        total = None
        if residual is not None:
            residual = residual.contiguous()
            if letters(x, residual) == "fb":  # the stream is float32 where either is
                x, residual = residual, x
            total = torch.empty_like(residual)
        weight = weight_d.detach().float().contiguous()
        y = torch.empty_like(x, dtype=dtype)
        rows = x.numel() // max(d, 1)
        inverse = torch.empty(rows, dtype=torch.float32)
        threads = native.threads(x.numel() * 4e-10)
        getattr(library, f"forward_{letters(x, x if total is None else total, y)}")(
            address(x), address(residual), address(total), address(weight), address(y), address(inverse), rows, d, eps, threads
        )
        ctx.save_for_backward(x if total is None else total, weight, inverse)
        ctx.weight_dtype, ctx.has_residual = weight_d.dtype, residual is not None
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None) -> tuple[Any, ...]:
        total, weight, inverse = ctx.saved_tensors
        if dy is None:
            return dtotal, None, None, dtotal if ctx.has_residual else None, None
        d, rows = total.shape[-1], len(inverse)
        dy = dy.contiguous()
        dtotal = None if dtotal is None else dtotal.contiguous()
        dx = torch.empty_like(total)
        threads = native.threads(total.numel() * 6e-10)
        dweight = torch.zeros(threads, d, dtype=torch.float32)
        getattr(_library(), f"backward_{letters(total, dy)}")(
            *(address(part) for part in (total, weight, inverse, dy, dtotal, dx, dweight)), rows, d, threads
        )
        return dx, dweight.sum(0).to(ctx.weight_dtype), None, dx if ctx.has_residual else None, None


def rms_norm_native(x: Tensor, weight_d: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One pass over each row in C++, forward and backward."""
    y, total = _RmsNorm.apply(x, weight_d, eps, residual, dtype if dtype in FLOATS else torch.float32)
    return y.to(dtype), x if total is None else total


def rms_norm_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Triton programs; triton is imported at the first call."""
    from mmlm.kernels.rms_norm import triton

    return triton.rms_norm_triton(*arguments)


MOST_CHANNELS_GPU = 16384  # a program of the Triton form holds a row in registers


def _serves_triton(*arguments: Any) -> str | None:
    if arguments:
        x, _, _, residual, dtype = arguments
        if residual is not None and x.shape != residual.shape:
            return "x and the residual differ in shape"
        if x.shape[-1] > MOST_CHANNELS_GPU:
            return f"rows of {x.shape[-1]} numbers (it takes at most {MOST_CHANNELS_GPU})"
        if dtype not in GPU_FLOATS:
            return f"outputs of {str(dtype).removeprefix('torch.')}"
    return on_gpu(*arguments, dtypes=GPU_FLOATS)


def _serves(*arguments: Any) -> str | None:
    if arguments and arguments[3] is not None and arguments[0].shape != arguments[3].shape:
        return "x and the residual differ in shape"
    return pointers(*arguments) or _library.missing()


register("rms_norm", "reference", rms_norm_reference)
register("rms_norm", "torch", rms_norm_torch)
register("rms_norm", "native", rms_norm_native, _serves)
register("rms_norm", "triton", rms_norm_triton, _serves_triton)
