"""The terms of the language-model loss in tiles of the vocabulary, each computed in the forward and again in the backward pass.

Only one tile of logits exists at a time, and the gradient of each weight row is written once (chunks of tokens would reread and rewrite
it). Logits that are small as a whole are kept instead. With p = softmax(z) and gradients a, b, c, e of log sum exp,
target, mean and entropy:
    dz_v = p_v (a - e (log p_v + entropy)) + b [v = target] + c / rows

Axes: n tokens   d width   v vocabulary rows, r those of a tile
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

TILE = 2048  # rows of the vocabulary; the tile of 1024 tokens then lies in the second-level cache
KEEP = 2_000_000  # logits that are kept for the backward pass rather than computed again


class Passes(Protocol):
    """The elementwise work on a tile of logits: in PyTorch here, in C++ in native.py."""

    def gather(self, z_nr: Tensor, first: int, running: Running) -> None:
        """Take a tile's raw logits into the running terms."""

    def differentiate(self, z_nr: Tensor, first: int, rows: int, found: Found, grads: Grads) -> Tensor:
        """The gradient of a tile's raw logits, in their memory where it can be."""


class Running:
    """Running terms of n tokens: maximum, sum of p = exp(z - maximum), sum of p (z - maximum), sum of z, z at the target, argmax."""

    def __init__(self, target_n: Tensor, dtype: torch.dtype, softcap: float | None) -> None:
        n, device = len(target_n), target_n.device
        self.wanted, self.softcap = target_n, softcap
        self.maximum = torch.full((n,), -torch.inf, dtype=dtype, device=device)
        self.sum, self.weighted, self.total, self.target = (torch.zeros(n, dtype=dtype, device=device) for _ in range(4))
        self.best = torch.zeros(n, dtype=torch.long, device=device)

    def terms(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """log partition, logit of the target, mean logit, entropy, argmax."""
        log_sum = self.sum.log()
        return self.maximum + log_sum, self.target, self.total / rows, log_sum - self.weighted / self.sum, self.best


class Found(NamedTuple):
    """What the backward pass needs of the forward pass: targets, soft cap, log partition and entropy of each token."""

    target: Tensor
    softcap: float | None
    log_partition: Tensor
    entropy: Tensor


class Grads(NamedTuple):
    """Gradients of log partition, target logit, mean logit and entropy, [n] each."""

    partition: Tensor | None
    target: Tensor | None
    mean: Tensor | None
    entropy: Tensor | None


class TorchPasses:
    """The elementwise work in PyTorch."""

    def gather(self, z_nr: Tensor, first: int, running: Running) -> None:
        """Take a tile's raw logits into the running terms."""
        z = _capped(z_nr.to(running.sum.dtype), running.softcap)
        running.total += z.sum(1)
        place = running.wanted - first
        inside = (place >= 0) & (place < z.shape[1])
        running.target = torch.where(inside, z.gather(1, place.clamp(0, z.shape[1] - 1)[:, None])[:, 0], running.target)
        high, best = z.max(1)
        running.best = torch.where(high > running.maximum, best + first, running.best)
        maximum = torch.maximum(high, running.maximum)
        shift = running.maximum - maximum
        shrink = shift.exp()
        z = z - maximum[:, None]
        p = z.exp()
        old = torch.where(shrink > 0, (running.weighted + shift * running.sum) * shrink, 0)
        running.weighted = old + (p * z).sum(1)
        running.sum = running.sum * shrink + p.sum(1)
        running.maximum = maximum

    def differentiate(self, z_nr: Tensor, first: int, rows: int, found: Found, grads: Grads) -> Tensor:
        """The gradient of a tile's raw logits."""
        z = _capped(z_nr.to(found.log_partition.dtype), found.softcap)
        log_p = z - found.log_partition[:, None]
        factor = z.new_zeros(len(z), 1) if grads.partition is None else grads.partition[:, None]
        if grads.entropy is not None:
            factor = factor - grads.entropy[:, None] * (log_p + found.entropy[:, None])
        dz = log_p.exp_() * factor
        if grads.target is not None:
            place = found.target - first
            inside = (place >= 0) & (place < z.shape[1])
            dz.scatter_add_(1, place.clamp(0, z.shape[1] - 1)[:, None], torch.where(inside, grads.target, 0)[:, None])
        if grads.mean is not None:
            dz += (grads.mean / rows)[:, None]
        if found.softcap is not None:
            dz *= 1 - (z / found.softcap).square()
        return dz


def _capped(z: Tensor, softcap: float | None) -> Tensor:
    return z if softcap is None else softcap * torch.tanh(z / softcap)


class _LogitTerms(torch.autograd.Function):
    """(log partition, target logit, mean logit, entropy, argmax) of each token, without the full logits."""

    @staticmethod
    def forward(
        ctx: Any,
        x_nd: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        target_n: Tensor,
        softcap: float | None,
        product_dtype: torch.dtype,
        passes: Passes,
    ) -> tuple[Tensor, ...]:
        x = x_nd.to(product_dtype)
        running = Running(target_n, torch.promote_types(x_nd.dtype, torch.float32), softcap)
        keep = x.shape[0] * weight_vd.shape[0] <= KEEP
        logits = None
        for first, tile in _tiles(weight_vd, len(weight_vd) if keep else TILE, product_dtype):
            logits = _logits(x, tile, bias_v, first, None if keep else logits)
            passes.gather(logits, first, running)
        terms = running.terms(len(weight_vd))
        ctx.softcap, ctx.passes, ctx.product_dtype = softcap, passes, product_dtype
        ctx.save_for_backward(x_nd, weight_vd, bias_v, logits if keep else None, target_n, terms[0], terms[3])
        ctx.mark_non_differentiable(terms[-1])
        ctx.set_materialize_grads(False)
        return terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        x_nd, weight_vd, bias_v, kept, target_n, log_partition, entropy = ctx.saved_tensors
        found = Found(target_n, ctx.softcap, log_partition, entropy)
        given = Grads(*(None if g is None else g.contiguous() for g in grads[:4]))
        product_dtype, rows = ctx.product_dtype, len(weight_vd)
        x = x_nd.to(product_dtype)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx = torch.zeros_like(x_nd, dtype=log_partition.dtype) if need_x else None
        dweight = torch.empty_like(weight_vd) if need_weight else None
        dbias = torch.empty_like(bias_v) if need_bias else None
        logits = product = slope = None
        for first, tile in _tiles(weight_vd, rows if kept is not None else TILE, product_dtype):
            part = slice(first, first + len(tile))
            logits = _logits(x, tile, bias_v, first, logits) if kept is None else kept
            dz_exact = ctx.passes.differentiate(logits, first, rows, found, given)
            dz = dz_exact.to(product_dtype)
            if dx is not None and product_dtype == dx.dtype:
                dx.addmm_(dz, tile)
            elif dx is not None:
                product = torch.mm(dz, tile) if product is None else torch.mm(dz, tile, out=product)
                dx += product
            if dweight is not None and product_dtype == dweight.dtype:
                torch.mm(dz.T, x, out=dweight[part])
            elif dweight is not None:
                slope = torch.mm(dz.T, x) if slope is None else torch.mm(dz.T, x, out=slope.resize_(len(tile), x.shape[1]))
                dweight[part] = slope
            if dbias is not None:
                dbias[part] = dz_exact.sum(0, dtype=log_partition.dtype)
        return None if dx is None else dx.to(x_nd.dtype), dweight, dbias, None, None, None, None


def logit_terms(
    passes: Passes,
    x_nd: Tensor,
    weight_vd: Tensor,
    target_n: Tensor,
    bias_v: Tensor | None,
    softcap: float | None,
    product_dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """The terms of each token, computed tile by tile with the given elementwise passes."""
    return _LogitTerms.apply(x_nd, weight_vd, bias_v, target_n, softcap, product_dtype, passes)


def _tiles(weight_vd: Tensor, size: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows in the dtype of the products); one buffer serves all tiles."""
    copy: Tensor | None = None
    for first in range(0, len(weight_vd), max(size, 1)):
        tile = weight_vd[first : first + size]
        if tile.dtype != dtype:
            copy = torch.empty(tile.shape, dtype=dtype, device=tile.device) if copy is None else copy
            tile = copy[: len(tile)].copy_(tile)
        yield first, tile


def _logits(x_nd: Tensor, tile_rd: Tensor, bias_v: Tensor | None, first: int, into: Tensor | None) -> Tensor:
    """x tile^T + bias, in the memory of `into` where it fits."""
    if into is not None and into.shape == (len(x_nd), len(tile_rd)):
        z = torch.mm(x_nd, tile_rd.T, out=into)
    else:
        z = torch.mm(x_nd, tile_rd.T)
    return z if bias_v is None else z.add_(bias_v[first : first + len(tile_rd)].to(z.dtype))
