"""Rotary positions on a GPU: one program a few heads of tokens, read as they lie; the backward pass turns the gradient back.

Axes: b rows   t tokens   h heads   k channels of a head   j turning pairs
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.programs import put_rows
from mmlm.kernels.rope.fast import in_rows


@triton.jit
def _turn(
    x_ptr, cos_ptr, sin_ptr, y_ptr, x_b, x_t, x_h, angles_b, SIZE, T, H, sign,
    K: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # of [b, t, h]
    j, inside = tl.arange(0, BJ), row < SIZE
    b, t, h = row // (T * H), row // H % T, row % H
    start, angle = (b * x_b + t * x_t + h * x_h)[:, None], (b * angles_b + t * PAIRS)[:, None] + j[None, :]
    turning = inside[:, None] & (j < PAIRS)[None, :]
    cos, sin = tl.load(cos_ptr + angle, mask=turning, other=0.0), sign * tl.load(sin_ptr + angle, mask=turning, other=0.0)
    left = tl.load(x_ptr + start + j[None, :], mask=turning, other=0.0).to(tl.float32)
    right = tl.load(x_ptr + start + PAIRS + j[None, :], mask=turning, other=0.0).to(tl.float32)
    put_rows(y_ptr, left * cos - right * sin, row, inside, j, PAIRS, K)
    put_rows(y_ptr + PAIRS, right * cos + left * sin, row, inside, j, PAIRS, K)
    if 2 * PAIRS < K:
        k = 2 * PAIRS + tl.arange(0, BK)
        rest = tl.load(x_ptr + start + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
        put_rows(y_ptr, rest, row, inside, k, K, K)


def _turned(x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor, sign: float) -> Tensor:
    x = x_bthk if x_bthk.stride(-1) == 1 else x_bthk.contiguous()
    b, t, h, k = x.shape
    pairs, y = cos_btj.shape[-1], torch.empty(x.shape, dtype=x.dtype, device=x.device)
    size, wide = b * t * h, triton.next_power_of_2(max(pairs, 1))
    tile = {"ROWS": max(1, min(32, 1024 // wide)), "BJ": wide, "BK": triton.next_power_of_2(max(k - 2 * pairs, 1))}
    if x.numel():
        _turn[(triton.cdiv(size, tile["ROWS"]),)](
            x, cos_btj, sin_btj, y, *x.stride()[:3], 0 if len(cos_btj) == 1 else t * pairs, size, t, h, sign, K=k, PAIRS=pairs, **tile
        )  # fmt: skip
    return y


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
        ctx.save_for_backward(cos_btj, sin_btj)
        return _turned(x_bthk, cos_btj, sin_btj, 1.0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_bthk: Tensor) -> tuple[Tensor, None, None]:
        cos_btj, sin_btj = ctx.saved_tensors
        return _turned(dy_bthk, cos_btj, sin_btj, -1.0), None, None


def turn_triton(x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
    """One pass over a tensor with any strides."""
    return in_rows(_Turn.apply, x_bthk, cos_btj, sin_btj)
