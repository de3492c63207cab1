"""Rotary positions (RoFormer, arXiv:2104.09864) of queries and keys. The backward pass turns the gradient back.

Axes: b rows   t tokens   h heads   k channels of a head   j turning pairs: channel j goes with channel j + pairs
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.dispatch import GPU_FLOATS, KERNELS, choose, on_gpu, pointers, register
from mmlm.kernels.native import address, letters
from mmlm.kernels.rope.reference import turn_reference


def rope(q_bthk: Tensor, k_btgk: Tensor, cos_btj: Tensor, sin_btj: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Queries [..., t, h, k] and keys [..., t, g, k] with their first 2j channels turned, in the dtypes given.

    cos, sin: [..., t, j], not differentiated; leading axes of size one serve all rows. The torch form takes them in the dtypes of q and k,
    the others compute in float32.
    Raises RecipeError if a head has fewer than 2j channels, where shapes do not fit, or where the back end asked for cannot serve.
    """
    if 2 * cos_btj.shape[-1] > min(q_bthk.shape[-1], k_btgk.shape[-1]):
        raise RecipeError(f"rope: {cos_btj.shape[-1]} pairs do not fit into heads of {min(q_bthk.shape[-1], k_btgk.shape[-1])} channels.")
    for name, x in (("queries", q_bthk), ("keys", k_btgk)):
        across = (*x.shape[:-2], cos_btj.shape[-1])[::-1]  # to which the angles have to stretch
        ours = tuple(cos_btj.shape)[::-1]
        if sin_btj.shape != cos_btj.shape or len(ours) > len(across) or any(size not in (1, whole) for size, whole in zip(ours, across)):
            raise RecipeError(f"rope: cos {list(cos_btj.shape)} and sin {list(sin_btj.shape)} do not fit {name} {list(x.shape)}.")
    turn = KERNELS["rope"][choose("rope", backend, q_bthk, k_btgk, cos_btj, sin_btj)]
    return turn(q_bthk, cos_btj, sin_btj), turn(k_btgk, cos_btj, sin_btj)


def turn_torch(x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
    """The halves turned and put together again."""
    pairs = cos_btj.shape[-1]
    cos, sin = cos_btj.unsqueeze(-2).to(x_bthk.dtype), sin_btj.unsqueeze(-2).to(x_bthk.dtype)
    left, right, rest = x_bthk.split([pairs, pairs, x_bthk.shape[-1] - 2 * pairs], dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)


_TURN = [*[native.ADDRESS] * 5, *[native.SIZE] * 6, native.REAL, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(turn=_TURN))
_Strides = ctypes.c_int64 * 3


def _turn(x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor, sign: float) -> Tensor:
    if x_bthk.stride(-1) != 1:
        x_bthk = x_bthk.contiguous()
    y = torch.empty(x_bthk.shape, dtype=x_bthk.dtype)
    b, t, h, k = x_bthk.shape
    pairs = cos_btj.shape[-1]
    strides = _Strides(*x_bthk.stride()[:3])
    getattr(_library(), f"turn_{letters(x_bthk)}")(
        address(x_bthk),
        address(y),
        address(cos_btj),
        address(sin_btj),
        ctypes.addressof(strides),
        *(b, t, h, k, pairs, 0 if cos_btj.shape[0] == 1 else t * pairs, sign),
        native.threads(x_bthk.numel() * 3e-10),
    )
    return y


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
        ctx.save_for_backward(cos_btj, sin_btj)
        return _turn(x_bthk, cos_btj, sin_btj, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_bthk: Tensor) -> tuple[Tensor, None, None]:
        cos_btj, sin_btj = ctx.saved_tensors
        return _turn(dy_bthk, cos_btj, sin_btj, -1.0), None, None


def in_rows(turn: Callable[..., Tensor], x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
    """turn(x [b, t, h, k], cos, sin [b or 1, t, j] in float32 without gaps), for any leading axes."""
    shape, t, pairs = x_bthk.shape, x_bthk.shape[-3], cos_btj.shape[-1]
    angles = [part.detach().float().expand(*part.shape[:-2], t, pairs) for part in (cos_btj, sin_btj)]
    if len(shape) != 4 or len(angles[0].shape) != 3:
        whole = (*shape[:-3], t, pairs)
        angles = [part.reshape(1, t, pairs) if part.numel() == t * pairs else part.expand(whole).reshape(-1, t, pairs) for part in angles]
        x_bthk = x_bthk.reshape(-1, *shape[-3:])
    return turn(x_bthk, *(part.contiguous() for part in angles)).view(shape)


def turn_native(x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
    """One pass in C++ over a tensor with any strides, forward and backward."""
    return in_rows(_Turn.apply, x_bthk, cos_btj, sin_btj)


def turn_triton(x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
    """Triton programs; triton is imported at the first call."""
    from mmlm.kernels.rope import triton

    return triton.turn_triton(x_bthk, cos_btj, sin_btj)


def _serves(*arguments: Any) -> str | None:
    if any(x.dtype != torch.float32 for x in arguments[2:]):
        return "the angles are not float32"
    return pointers(*arguments) or _library.missing()


register("rope", "reference", turn_reference)
register("rope", "torch", turn_torch)
register("rope", "native", turn_native, _serves)
register("rope", "triton", turn_triton, functools.partial(on_gpu, dtypes=GPU_FLOATS))
