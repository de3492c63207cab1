"""RMSNorm on a GPU: one program a few rows, each read once. The weight's gradient is a sum of partial sums in a fixed order.

Axes: n rows   d width
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.programs import put_rows, rows

_PARTS = 512  # programs of the backward pass, each with a partial sum


@triton.jit
def _forward(
    x_ptr, residual_ptr, weight_ptr, total_ptr, y_ptr, inverse_ptr, N, D, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = row < N
    s = rows(x_ptr, row, inside, column, D, D).to(tl.float32)
    if residual_ptr is not None:
        s += rows(residual_ptr, row, inside, column, D, D).to(tl.float32)
        put_rows(total_ptr, s, row, inside, column, D, D)
        s = s.to(total_ptr.dtype.element_ty).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(s * s, 1) / D + eps)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    put_rows(y_ptr, s * inverse[:, None] * weight[None, :], row, inside, column, D, D)
    tl.store(inverse_ptr + row, inverse, mask=inside)


@triton.jit
def _backward(
    total_ptr, weight_ptr, inverse_ptr, dy_ptr, dtotal_ptr, dx_ptr, parts_ptr, N, D, ROWS: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """dx = inverse (weight dy - s inverse^2 mean(weight dy s)) + dtotal; every so many blocks of rows, and their share of the slope."""
    column = tl.arange(0, WIDTH)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    slope = tl.zeros((WIDTH,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = row < N
        s, dy = rows(total_ptr, row, inside, column, D, D).to(tl.float32), rows(dy_ptr, row, inside, column, D, D).to(tl.float32)
        inverse = tl.load(inverse_ptr + row, mask=inside, other=0.0)[:, None]
        slope += tl.sum(dy * s * inverse, 0)
        pull = tl.sum(dy * s * weight, 1)[:, None] / D * inverse * inverse
        dx = inverse * (weight * dy - s * pull)
        if dtotal_ptr is not None:
            dx += rows(dtotal_ptr, row, inside, column, D, D).to(tl.float32)
        put_rows(dx_ptr, dx, row, inside, column, D, D)
    tl.store(parts_ptr + tl.program_id(0) * D + column, slope, mask=column < D)


def _tile(d: int) -> dict[str, int]:
    """Rows and width of a program, and its warps: about 4096 numbers, in registers."""
    width = triton.next_power_of_2(d)
    return {"ROWS": max(1, min(32, 4096 // width)), "WIDTH": width, "num_warps": 4 if width <= 4096 else 8 if width <= 8192 else 16}


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        x, residual = x.contiguous(), None if residual is None else residual.contiguous()
        d = x.shape[-1]
        n = x.numel() // d
        total = None if residual is None else torch.empty_like(x, dtype=torch.promote_types(x.dtype, residual.dtype))
        y, inverse = torch.empty_like(x, dtype=dtype), x.new_empty(n, dtype=torch.float32)
        tile = _tile(d)
        _forward[(triton.cdiv(n, tile["ROWS"]),)](x, residual, weight, total, y, inverse, n, d, eps, **tile)
        ctx.save_for_backward(x if total is None else total, weight, inverse)
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        ctx.set_materialize_grads(False)
        return y, total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dtotal: Tensor | None) -> tuple[Any, ...]:
        total, weight, inverse = ctx.saved_tensors
        of_x, of_residual = ctx.dtypes
        dx, dweight = dtotal, None
        if dy is not None:
            d, n = total.shape[-1], len(inverse)
            tile = _tile(d)
            dx, programs = torch.empty_like(total), min(_PARTS, triton.cdiv(n, tile["ROWS"]))
            parts = inverse.new_empty(programs, d)
            dtotal = None if dtotal is None else dtotal.contiguous()
            _backward[(programs,)](total, weight, inverse, dy.contiguous(), dtotal, dx, parts, n, d, **tile)
            dweight = parts.sum(0).to(weight.dtype)
        return None if dx is None else dx.to(of_x), dweight, None, None if of_residual is None or dx is None else dx.to(of_residual), None


def rms_norm_triton(x: Tensor, weight_d: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Statistics and sums in float32."""
    if x.numel() == 0:
        return (x * weight_d).to(dtype), x if residual is None else x + residual
    y, total = _RmsNorm.apply(x, weight_d.contiguous(), eps, residual, dtype)
    return y, x if total is None else total
