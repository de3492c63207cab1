"""Whether two back ends agree: the check behind every kernel test and every printed ratio."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmlm.kernels.dispatch import available


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted (or over one, where that is tiny); infinite for NaN or another shape."""
    if got.shape != wanted.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    wanted = wanted.detach().double()
    return float((got.detach().double() - wanted).norm() / wanted.norm().clamp_min(1e-6 * max(wanted.numel(), 1) ** 0.5 + 1e-12))


def with_gradients(function: Callable[..., Tensor | Sequence[Tensor]], tensors: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """Outputs of function(**tensors, **options) and the gradients of a weighted sum of them for every tensor that asks for one."""
    tensors = {name: x.detach().requires_grad_(x.requires_grad) for name, x in tensors.items()}
    outputs = function(**tensors, **options)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    found = {f"output {i}": y for i, y in enumerate(outputs)}
    wanted = [name for name, x in tensors.items() if x.requires_grad]
    smooth = [y.double() for y in outputs if y.requires_grad]
    total = sum((y * (torch.arange(y.numel()) % 13 - 5).view_as(y) / 8).sum() for y in smooth)  # weights that bfloat16 holds exactly
    if wanted and isinstance(total, Tensor):
        found |= {f"d {name}": g for name, g in zip(wanted, torch.autograd.grad(total, [tensors[name] for name in wanted]))}
    return found


def disagreements(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """A sentence for each tensor that is further from the wanted one than the tolerance; empty when all agree."""
    if set(got) != set(wanted):
        return [f"{sorted(got)} instead of {sorted(wanted)}"]
    errors = {name: relative_error(got[name], wanted[name]) for name in wanted}
    return [f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}" for name, error in errors.items() if not error <= tolerance]


def forms(op: str, dtypes: Iterable[torch.dtype]) -> list[tuple[str, torch.dtype]]:
    """(back end, dtype): those of an operation that run here, but for the reference, each with the dtypes that it takes."""
    found = itertools.product(available(op, but="reference"), dtypes)
    return [(backend, dtype) for backend, dtype in found if backend == "torch" or dtype != torch.float64]


def covering(strength: int, *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few combinations of one value from each axis, in which the values of any `strength` axes meet in all ways; always the same few."""
    combinations = list(itertools.product(*(range(len(axis)) for axis in axes)))
    chosen = list(itertools.combinations(range(len(axes)), strength))
    meets = {c: {(places, tuple(c[i] for i in places)) for places in chosen} for c in combinations}
    open_ = set().union(*meets.values())
    found = []
    while open_:
        best = max(combinations, key=lambda c: len(meets[c] & open_))  # the first of equals
        open_ -= meets[best]
        found.append(tuple(axis[i] for axis, i in zip(axes, best)))
    return found
