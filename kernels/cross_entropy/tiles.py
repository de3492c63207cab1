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

TILE = 1024  # rows of the vocabulary; with 1024 tokens a tile of bfloat16 logits then lies in the second-level cache
KEEP = 1 << 23  # logits that are kept for the backward pass rather than computed again


class Passes(Protocol):
    """The elementwise work on a tile of logits: in PyTorch here, in C++ in fast.py."""

    def gather(self, z_nr: Tensor, first: int, running: Running) -> None:
        """Take a tile's raw logits into the running terms."""

    def differentiate(self, z_nr: Tensor, first: int, rows: int, found: Found, grads: Grads) -> Tensor:
        """The gradient of a tile's raw logits, in their memory where it can be."""


class Running:
    """Running terms of n tokens. kept [5, n]: maximum, sum of p = exp(z - maximum), sum of p (z - maximum), sum of z, z of the target.

    more: whether the third and fourth and the argmax are asked for; else they stay zero.
    """

    def __init__(self, wanted_n: Tensor, dtype: torch.dtype, softcap: float | None, more: bool) -> None:
        self.wanted, self.softcap, self.more = wanted_n, softcap, more
        self.kept = torch.zeros(5, len(wanted_n), dtype=dtype, device=wanted_n.device)
        self.kept[0] = -torch.inf
        self.best = torch.zeros_like(wanted_n)

    def terms(self, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """log partition, logit of the target, mean logit, entropy, argmax."""
        maximum, powers, weighted, total, target = self.kept
        log_sum = powers.log()
        return maximum + log_sum, target.clone(), total / rows, log_sum - weighted / powers, self.best


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
        before, powers, weighted, total, target = running.kept
        z = _capped(z_nr.to(powers.dtype), running.softcap)
        place = running.wanted - first
        inside = (place >= 0) & (place < z.shape[1])
        target = torch.where(inside, z.gather(1, place.clamp(0, z.shape[1] - 1)[:, None])[:, 0], target)
        high, best = z.max(1)
        maximum = torch.maximum(high, before)
        shift = before - maximum
        shrink = shift.exp()
        if running.more:
            running.best = torch.where(high > before, best + first, running.best)
            total = total + z.sum(1)
            weighted = torch.where(shrink > 0, (weighted + shift * powers) * shrink, 0)
        z = z - maximum[:, None] if z is z_nr else z.sub_(maximum[:, None])
        p = z.exp() if running.more else z.exp_()
        powers = powers * shrink + p.sum(1)
        if running.more:
            weighted = weighted + torch.where(p > 0, p * z, 0).sum(1)
        running.kept = torch.stack([maximum, powers, weighted, total, target])

    def differentiate(self, z_nr: Tensor, first: int, rows: int, found: Found, grads: Grads) -> Tensor:
        """The gradient of a tile's raw logits."""
        z = _capped(z_nr.to(found.log_partition.dtype), found.softcap)
        log_p = z - found.log_partition[:, None] if z is z_nr or found.softcap is not None else z.sub_(found.log_partition[:, None])
        factor = z.new_zeros(len(z), 1) if grads.partition is None else grads.partition[:, None]
        if grads.entropy is not None:
            factor = factor - grads.entropy[:, None] * (log_p + found.entropy[:, None])
        dz = log_p.exp_().mul_(factor)
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
        run: range,
        softcap: float | None,
        product_dtype: torch.dtype,
        more: bool,
        passes: Passes,
    ) -> tuple[Tensor, ...]:
        x = x_nd.to(product_dtype)
        running = Running(target_n, torch.promote_types(x_nd.dtype, torch.float32), softcap, more)
        keep = len(x) * len(run) <= KEEP
        logits = None
        for part, tile in _tiles(weight_vd, run, len(run) if keep else TILE, product_dtype):
            logits = _logits(x, tile, bias_v, part, None if keep else logits)
            passes.gather(logits, part.start - run.start, running)
        terms = running.terms(len(run))
        ctx.run, ctx.softcap, ctx.passes, ctx.product_dtype = run, softcap, passes, product_dtype
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
        product_dtype, run = ctx.product_dtype, ctx.run
        x = x_nd.to(product_dtype)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx = torch.zeros_like(x_nd, dtype=log_partition.dtype) if need_x else None
        make = torch.empty_like if len(run) == len(weight_vd) else torch.zeros_like
        dweight = make(weight_vd) if need_weight else None
        dbias = make(bias_v) if need_bias else None
        logits = product = slope = None
        for part, tile in _tiles(weight_vd, run, len(run) if kept is not None else TILE, product_dtype):
            logits = _logits(x, tile, bias_v, part, logits) if kept is None else kept.clone()
            raw = logits if dbias is None else logits.to(log_partition.dtype)  # its sum over tokens asks for more digits
            dz_exact = ctx.passes.differentiate(raw, part.start - run.start, len(run), found, given)
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
        return None if dx is None else dx.to(x_nd.dtype), dweight, dbias, None, None, None, None, None, None


def logit_terms(
    passes: Passes,
    x_nd: Tensor,
    weight_vd: Tensor,
    target_n: Tensor,
    bias_v: Tensor | None,
    run: range,
    softcap: float | None,
    product_dtype: torch.dtype,
    more: bool = True,
) -> tuple[Tensor, ...]:
    """The terms of each token, computed tile by tile with the given elementwise passes.

    target: places within the run of rows that take part. more: mean, entropy and argmax too.
    """
    return _LogitTerms.apply(x_nd, weight_vd, bias_v, target_n, run, softcap, product_dtype, more, passes)


def _tiles(weight_vd: Tensor, run: range, size: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(place, rows in the dtype of the products); one buffer serves all tiles."""
    copy: Tensor | None = None
    for first in range(run.start, run.stop, max(size, 1)):
        part = slice(first, min(first + size, run.stop))
        tile = weight_vd[part]
        if tile.dtype != dtype:
            copy = torch.empty(tile.shape, dtype=dtype, device=tile.device) if copy is None else copy
            tile = copy[: len(tile)].copy_(tile)
        yield part, tile


def _logits(x_nd: Tensor, tile_rd: Tensor, bias_v: Tensor | None, part: slice, into: Tensor | None) -> Tensor:
    """x tile^T + bias, in the memory of `into` where it fits."""
    if into is not None and into.shape == (len(x_nd), len(tile_rd)):
        z = torch.mm(x_nd, tile_rd.T, out=into)
    else:
        z = torch.mm(x_nd, tile_rd.T)
    return z if bias_v is None else z.add_(bias_v[part].to(z.dtype))
