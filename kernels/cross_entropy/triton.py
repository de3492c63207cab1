"""The elementwise work of the vocabulary's tiles on a GPU: a program takes one token's logits into the running terms, or turns a block of
them into their gradients where they lie.

Axes: n tokens   r rows of a tile
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mmlm.kernels.cross_entropy.tiles import Found, Grads, Running

_BLOCK = 1024


@triton.jit
def _capped(z, cap, CAPPED: tl.constexpr):
    if CAPPED:
        z = cap * (1.0 - 2.0 / (tl.exp(z * (2.0 / cap)) + 1.0))
    return z


@triton.jit
def _gather(
    z_ptr, wanted_ptr, kept_ptr, best_ptr, N, R, first, cap, CAPPED: tl.constexpr, MORE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    kept = kept_ptr + n
    maximum, powers, weighted = tl.load(kept), tl.load(kept + N), tl.load(kept + 2 * N)
    total, best = tl.load(kept + 3 * N), tl.load(best_ptr + n)
    place = tl.load(wanted_ptr + n) - first
    if (place >= 0) & (place < R):
        tl.store(kept + 4 * N, _capped(tl.load(z_ptr + n * R + place).to(tl.float32), cap, CAPPED))
    for start in range(0, R, BLOCK):
        r = start + tl.arange(0, BLOCK)
        inside = r < R
        z = _capped(tl.load(z_ptr + n * R + r, mask=inside, other=0.0).to(tl.float32), cap, CAPPED)
        hidden = tl.where(inside, z, float("-inf"))
        high = tl.max(hidden, 0)
        higher = tl.maximum(maximum, high)
        shift, shrink = maximum - higher, tl.exp(maximum - higher)
        p = tl.exp(hidden - higher)
        if MORE:
            at = tl.min(tl.where(hidden == high, r, R), 0)  # the first of the greatest; R where there is none: NaN
            best = tl.where((high > maximum) & (at < R), at + first, best)
            total += tl.sum(tl.where(inside, z, 0.0), 0)
            before = tl.where(shrink > 0.0, (weighted + tl.where(powers > 0.0, shift, 0.0) * powers) * shrink, 0.0)
            weighted = before + tl.sum(p * tl.where(p > 0.0, hidden - higher, 0.0), 0)
        powers = powers * shrink + tl.sum(p, 0)
        maximum = higher
    tl.store(kept, maximum)
    tl.store(kept + N, powers)
    if MORE:
        tl.store(kept + 2 * N, weighted)
        tl.store(kept + 3 * N, total)
        tl.store(best_ptr + n, best)


@triton.jit
def _differentiate(
    z_ptr, wanted_ptr, log_partition_ptr, found_entropy_ptr, partition_ptr, target_ptr, mean_ptr, entropy_ptr, R, rows, first, cap,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(R, BLOCK)
    n = tl.program_id(0).to(tl.int64) // blocks
    r = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = r < R
    z = _capped(tl.load(z_ptr + n * R + r, mask=inside, other=0.0).to(tl.float32), cap, CAPPED)
    log_p = z - tl.load(log_partition_ptr + n)
    factor = tl.zeros((BLOCK,), tl.float32)
    if partition_ptr is not None:
        factor += tl.load(partition_ptr + n).to(tl.float32)
    if entropy_ptr is not None:
        factor -= tl.load(entropy_ptr + n).to(tl.float32) * (log_p + tl.load(found_entropy_ptr + n))
    d = tl.exp(log_p) * factor
    if target_ptr is not None:
        d += tl.where(r == tl.load(wanted_ptr + n) - first, tl.load(target_ptr + n).to(tl.float32), 0.0)
    if mean_ptr is not None:
        d += tl.load(mean_ptr + n).to(tl.float32) / rows
    if CAPPED:
        d *= 1.0 - (z / cap) * (z / cap)
    tl.store(z_ptr + n * R + r, d.to(z_ptr.dtype.element_ty), mask=inside)


class TritonPasses:
    """The elementwise work in Triton, forwards in one look at a tile, backwards over it."""

    def gather(self, z_nr: Tensor, first: int, running: Running) -> None:
        """Take a tile's raw logits into the running terms."""
        n, r = z_nr.shape
        if n:
            _gather[(n,)](
                z_nr, running.wanted, running.kept, running.best, n, r, first, running.softcap or 0.0,
                CAPPED=running.softcap is not None, MORE=running.more, BLOCK=_BLOCK,
            )  # fmt: skip

    def differentiate(self, z_nr: Tensor, first: int, rows: int, found: Found, grads: Grads) -> Tensor:
        """The gradient of a tile's raw logits, in their memory."""
        n, r = z_nr.shape
        if n:
            _differentiate[(n * triton.cdiv(r, _BLOCK),)](
                z_nr, found.target, found.log_partition, found.entropy, *grads, r, float(rows), first, found.softcap or 0.0,
                CAPPED=found.softcap is not None, BLOCK=_BLOCK,
            )  # fmt: skip
        return z_nr
