"""One optimizer step over some micro-batches.

The loss is the sum over names of coefficient * (sum of the sums) / (sum of the weights), over all micro-batches and processes. The
weights are known before the first forward pass (`model.loss_weights`), so each micro-batch is divided by the whole step's weight and
gradients simply add up: accumulation and several processes equal one big batch.

Reading a number from a device waits for it. A step does this once, after the backward pass, for losses and gradient norm together: a
step that is not finite must not reach the weights, under any optimizer. On a CPU the reading costs nothing. All other numbers are added
up on the device and read when a line is logged.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from mmlm.base.errors import MmlmError, RecipeError, unknown_name
from mmlm.training.config import TrainConfig
from mmlm.training.ema import WeightAverage
from mmlm.training.optimizers import set_rate
from mmlm.training.order import derived
from mmlm.training.ranks import Ranks


@dataclass
class Outcome:
    """What a step found. sums: float64 [names] on the device; weights: of the same names; norm: of the whole gradient before clipping.

    fault: what was not finite, empty if the weights were updated.
    """

    names: list[str]
    sums: Tensor
    weights: list[float]
    norm: Tensor
    tokens: int
    fault: str


class Stepper:
    """Forward, backward, guard, clip, update."""

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        optimizers: list[Optimizer],
        average: WeightAverage | None,
        config: TrainConfig,
        ranks: Ranks,
        device: torch.device,
        seed: int,
    ) -> None:
        self.model, self.parameters, self.optimizers, self.average = model, parameters, optimizers, average
        self.config, self.ranks, self.device, self.seed = config, ranks, device, seed
        self.buffers = _saved_buffers(model)
        self.sum_dtype = torch.float32 if device.type == "mps" else torch.float64
        self._is_checked = False

    def __call__(self, batches: Sequence[Any], step: int, rate: float) -> Outcome:
        """Take the step that follows `step` taken ones, at the given rate. A model with a method `begin_step` is told of it first."""
        model: Any = self.model
        if (begin_step := getattr(model, "begin_step", None)) is not None:
            begin_step(step, self.config.steps)
        weights: list[dict[str, float]] = [model.loss_weights(batch) for batch in batches]
        names = sorted({name for found in weights for name in found})
        if unknown := sorted(self.config.loss_weights.keys() - set(names)):
            raise RecipeError(f"train.loss_weights: {unknown_name('loss', unknown[0], names)}")
        *totals, tokens = self.ranks.sums(
            [sum(found.get(name, 0.0) for found in weights) for name in names] + [float(sum(batch.num_tokens for batch in batches))]
        )
        factors = [coefficient(self.config, model, name) for name in names]
        scales = {name: each / total for name, each, total in zip(names, factors, totals, strict=True) if total > 0}
        before = [buffer.clone() for buffer in self.buffers]
        sums = torch.zeros(len(names), dtype=self.sum_dtype, device=self.device)
        for number, batch in enumerate(batches):
            seed_generators(self.seed, step, number, self.ranks.rank)
            sums += self._backward(batch, scales, names, weights[number])
        parameters = list(self.parameters.values())
        sums = self.ranks.sum_gradients(parameters, sums)
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        is_finite = bool(torch.isfinite(sums).all() & torch.isfinite(norm))
        fault = "" if is_finite else self._fault(names, sums)
        if is_finite:
            if self.config.clip_norm:
                clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
            set_rate(self.optimizers, rate)
            for optimizer in self.optimizers:
                optimizer.step()
            if self.average is not None:
                self.average.update(step + 1)
        else:
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)
        for parameter in parameters:
            parameter.grad = None
        return Outcome(names, sums, totals, norm, int(tokens), fault)

    def _backward(self, batch: Any, scales: dict[str, float], names: list[str], expected: dict[str, float]) -> Tensor:
        """Add the gradients of one micro-batch; returns its loss sums in the order of names."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.model(batch.to(self.device))
        if not self._is_checked:
            _check(losses, expected)
            self._is_checked = True
        parts = [losses[name][0] * scale for name, scale in scales.items() if name in losses]
        loss = sum(parts[1:], parts[0]) if parts else None
        if loss is not None and loss.requires_grad:
            loss.backward()
        zero = torch.zeros((), dtype=self.sum_dtype, device=self.device)
        return torch.stack([losses[name][0].detach().to(zero) if name in losses else zero for name in names])

    def _fault(self, names: list[str], sums: Tensor) -> str:
        if wrong := [f"loss {name!r} is {value}" for name, value in zip(names, sums.tolist(), strict=True) if not np.isfinite(value)]:
            return ", ".join(wrong)
        found = [name for name, p in self.parameters.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return f"the gradient of {', '.join(found[:3])}{more} is not finite" if found else "the norm of the gradient overflows"


def coefficient(config: TrainConfig, model: Any, name: str) -> float:
    """How often a loss counts: as train.loss_weights says, times what a model with a method `weight_of` says of it."""
    own = getattr(model, "weight_of", None)
    return config.loss_weights.get(name, 1.0) * (1.0 if own is None else float(own(name)))


def seed_generators(*parts: int) -> None:
    """Set the global generators of torch, NumPy and Python to a state that depends on the parts alone."""
    number = derived("step", *parts)
    torch.manual_seed(number >> 1)
    np.random.seed(number & 0xFFFFFFFF)
    random.seed(number)


def _check(losses: dict[str, tuple[Tensor, Tensor]], expected: dict[str, float]) -> None:
    if faults := sorted(losses.keys() ^ expected.keys()):
        raise MmlmError(f"the model's losses and loss_weights name different terms: {', '.join(faults)}.")
    for name, (_, weight) in losses.items():
        if abs(float(weight) - expected[name]) > 1e-4 * max(1.0, abs(expected[name])):
            raise MmlmError(f"loss {name!r}: its weight is {float(weight)}, but loss_weights said {expected[name]}.")


def _saved_buffers(model: nn.Module) -> list[Tensor]:
    saved = model.state_dict(keep_vars=True)
    return [saved[name] for name, _ in model.named_buffers() if name in saved]


def train_mode(model: nn.Module) -> None:
    """Training mode for what is trained; parts whose parameters are all frozen are used as they will be, without dropout."""
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        model.eval()
        return
    model.training = True
    for part in model.children():
        train_mode(part)
