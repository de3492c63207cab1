"""Relative positions of linear attention (LRPE, arXiv:2307.09270) in queries and keys; the angles have a gradient, as they are learned.

Axes: b rows   t tokens   h heads   k channels of a head
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.dispatch import FLOATS, GPU_FLOATS, on_gpu, pointers, register, run
from mmlm.kernels.lrpe.reference import lrpe_reference
from mmlm.kernels.native import address, letters


def lrpe(q_bthk: Tensor, k_bthk: Tensor, angle_bthk: Tensor, dtype: torch.dtype, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Queries and keys [b, t, h, 2 k] in a dtype: x cos(angle), then x sin(angle).

    angle: [b or 1, t, h, k]; one row serves all.
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    shape = tuple(q_bthk.shape)
    if tuple(k_bthk.shape) != shape or tuple(angle_bthk.shape) not in (shape, (1, *shape[1:])):
        raise RecipeError(f"lrpe: queries {list(shape)}, keys {list(k_bthk.shape)} and angles {list(angle_bthk.shape)} do not fit.")
    return run("lrpe", backend, q_bthk, k_bthk, angle_bthk, dtype)


def lrpe_torch(q_bthk: Tensor, k_bthk: Tensor, angle_bthk: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines once for both."""
    cos, sin = angle_bthk.cos(), angle_bthk.sin()
    q, k = (torch.cat([x * cos, x * sin], dim=-1).to(dtype) for x in (q_bthk, k_bthk))
    return q, k


_POINTER, _SIZE = native.ADDRESS, native.SIZE
_APART, _TOGETHER = [*[_POINTER] * 4, *[_SIZE] * 4, ctypes.c_int], [*[_POINTER] * 6, *[_SIZE] * 5, ctypes.c_int]
_KINDS = ("ff", "fb", "bf", "bb")  # types of what goes in and comes out
_library = native.Library(
    Path(__file__).parent / "fast.cpp",
    {f"apart_{kind}": _APART for kind in _KINDS} | {f"together_{kind}": _TOGETHER for kind in _KINDS},
)


class Passes(NamedTuple):
    """The elementwise work. apart(x, cos, sin, y): y = [x cos, x sin]. together(x, cos, sin, dy, dx, dangle, added): the gradients, that
    of the angles summed over what shares a row of them, and added to what is there where told."""

    apart: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    together: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool], None]


class _Lrpe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_bthk: Tensor, k_bthk: Tensor, angle_bthk: Tensor, dtype: torch.dtype, passes: Passes) -> tuple[Tensor, Tensor]:
        cos, sin = angle_bthk.cos(), angle_bthk.sin()
        outputs = [x.new_empty(*x.shape[:3], 2 * x.shape[3], dtype=dtype) for x in (q_bthk, k_bthk)]
        for x, y in zip((q_bthk, k_bthk), outputs):
            passes.apart(x, cos, sin, y)
        ctx.save_for_backward(q_bthk, k_bthk, cos, sin)
        ctx.passes = passes
        ctx.set_materialize_grads(False)
        return outputs[0], outputs[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        q, k, cos, sin = ctx.saved_tensors
        dangle, results = torch.empty_like(cos), [None, None]
        for at, (x, dy) in enumerate(zip((q, k), gradients)):
            if dy is not None:
                results[at] = torch.empty_like(x)
                ctx.passes.together(x, cos, sin, dy.contiguous(), results[at], dangle, at > 0 and gradients[0] is not None)
        return *results, None if gradients == (None, None) else dangle, None, None


def lrpe_in_passes(passes: Passes, q_bthk: Tensor, k_bthk: Tensor, angle_bthk: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One pass for each of queries and keys, forwards and backwards."""
    q, k = _Lrpe.apply(q_bthk.contiguous(), k_bthk.contiguous(), angle_bthk.float().contiguous(), dtype, passes)
    return q, k


def _apart(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor) -> None:
    b, t, h, k = x.shape
    call = getattr(_library(), f"apart_{letters(x, y)}")
    call(*map(address, (x, cos, sin, y)), b, len(cos), t * h, k, native.threads(x.numel() * 5e-10))


def _together(x: Tensor, cos: Tensor, sin: Tensor, dy: Tensor, dx: Tensor, dangle: Tensor, added: bool) -> None:
    b, t, h, k = x.shape
    call = getattr(_library(), f"together_{letters(x, dy)}")
    call(*map(address, (x, cos, sin, dy, dx, dangle)), b, len(cos), t * h, k, int(added), native.threads(x.numel() * 1e-9))


def lrpe_native(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The passes in C++."""
    return lrpe_in_passes(Passes(_apart, _together), *arguments)


def lrpe_triton(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The passes as Triton programs; triton is imported at the first call."""
    from mmlm.kernels.lrpe import triton

    return lrpe_in_passes(Passes(triton.apart, triton.together), *arguments)


def _serves(*arguments: Any) -> str | None:
    if arguments and (dtype := arguments[3]) not in FLOATS:
        return f"outputs of {str(dtype).removeprefix('torch.')}"
    return pointers(*arguments) or _library.missing()


register("lrpe", "reference", lrpe_reference)
register("lrpe", "torch", lrpe_torch)
register("lrpe", "native", lrpe_native, _serves)
register("lrpe", "triton", lrpe_triton, functools.partial(on_gpu, dtypes=GPU_FLOATS))
