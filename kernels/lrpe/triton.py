"""Relative positions of linear attention on a GPU: one program some rows of a head's channels.

Axes: b rows   n tokens times heads   k channels of a head
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.programs import put_rows, rows


@triton.jit
def _apart(x_ptr, cos_ptr, sin_ptr, y_ptr, SIZE, ANGLES, K, ROWS: tl.constexpr, BK: tl.constexpr):
    row, k = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BK)
    inside, angle = row < SIZE, row % ANGLES
    x = rows(x_ptr, row, inside, k, K, K).to(tl.float32)
    put_rows(y_ptr, x * rows(cos_ptr, angle, inside, k, K, K), row, inside, k, K, 2 * K)
    put_rows(y_ptr + K, x * rows(sin_ptr, angle, inside, k, K, K), row, inside, k, K, 2 * K)


@triton.jit
def _together(
    x_ptr, cos_ptr, sin_ptr, dy_ptr, dx_ptr, dangle_ptr, SHARED, ANGLES, K, ADDED: tl.constexpr, ROWS: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    angle, k = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BK)
    inside = angle < ANGLES
    cos, sin = rows(cos_ptr, angle, inside, k, K, K), rows(sin_ptr, angle, inside, k, K, K)
    total = tl.zeros((ROWS, BK), tl.float32)
    if ADDED:
        total = rows(dangle_ptr, angle, inside, k, K, K)
    for b in range(SHARED):
        row = angle + b * ANGLES
        left = rows(dy_ptr, row, inside, k, K, 2 * K).to(tl.float32)
        right = rows(dy_ptr + K, row, inside, k, K, 2 * K).to(tl.float32)
        put_rows(dx_ptr, left * cos + right * sin, row, inside, k, K, K)
        total += rows(x_ptr, row, inside, k, K, K).to(tl.float32) * (right * cos - left * sin)
    put_rows(dangle_ptr, total, angle, inside, k, K, K)


def apart(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor) -> None:
    """y [b, t, h, 2 k] of x [b, t, h, k]."""
    size, angles, k = x.shape[:3].numel(), cos.shape[:3].numel(), x.shape[3]
    tile = _tile(k)
    if x.numel():
        _apart[(triton.cdiv(size, tile["ROWS"]),)](x, cos, sin, y, size, angles, k, **tile)


def together(x: Tensor, cos: Tensor, sin: Tensor, dy: Tensor, dx: Tensor, dangle: Tensor, added: bool) -> None:
    """dx and dangle of dy; dangle is added to where told."""
    angles, k = cos.shape[:3].numel(), x.shape[3]
    tile = _tile(k)
    if x.numel():
        _together[(triton.cdiv(angles, tile["ROWS"]),)](x, cos, sin, dy, dx, dangle, len(x) // len(cos), angles, k, ADDED=added, **tile)


def _tile(k: int) -> dict[str, int]:
    wide = triton.next_power_of_2(k)
    return {"ROWS": max(1, min(32, 1024 // wide)), "BK": wide}
