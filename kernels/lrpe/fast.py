"""Relative positions of linear attention (LRPE, arXiv:2307.09270) in queries and keys; the angles have a gradient, as they are learned.

Axes: b rows   t tokens   h heads   k channels of a head
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.dispatch import pointers, register, run
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
    return run("lrpe", backend, (q_bthk, k_bthk, angle_bthk), q_bthk, k_bthk, angle_bthk, dtype)


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


class _Lrpe(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_bthk: Tensor, k_bthk: Tensor, angle_bthk: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = angle_bthk.cos(), angle_bthk.sin()
        (b, t, h, k), rows = q_bthk.shape, len(angle_bthk)
        outputs = [torch.empty(b, t, h, 2 * k, dtype=dtype) for _ in range(2)]
        for x, y in zip((q_bthk, k_bthk), outputs):
            threads = native.threads(x.numel() * 5e-10)
            getattr(_library(), f"apart_{letters(x, y)}")(*map(address, (x, cos, sin, y)), b, rows, t * h, k, threads)
        ctx.save_for_backward(q_bthk, k_bthk, cos, sin)
        ctx.set_materialize_grads(False)
        return outputs[0], outputs[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        q, k, cos, sin = ctx.saved_tensors
        (b, t, h, size), rows = q.shape, len(cos)
        results: list[Tensor | None] = []
        dangle, added = torch.empty_like(cos), 0
        for x, dy in zip((q, k), gradients):
            if dy is None:
                results.append(None)
                continue
            dy, dx = dy.contiguous(), torch.empty_like(x)
            threads = native.threads(x.numel() * 1e-9)
            together = getattr(_library(), f"together_{letters(x, dy)}")
            together(*map(address, (x, cos, sin, dy, dx, dangle)), b, rows, t * h, size, added, threads)
            results.append(dx)
            added = 1
        return *results, dangle if added else None, None


def lrpe_native(q_bthk: Tensor, k_bthk: Tensor, angle_bthk: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One pass in C++ for each of queries and keys, forwards and backwards."""
    q, k = _Lrpe.apply(q_bthk.contiguous(), k_bthk.contiguous(), angle_bthk.float().contiguous(), dtype)
    return q, k


def _serves(*arguments: Any) -> str | None:
    return pointers(*arguments) or _library.missing()


register("lrpe", "reference", lrpe_reference)
register("lrpe", "torch", lrpe_torch)
register("lrpe", "native", lrpe_native, _serves)
