"""Validation and samples while training: the hooks that the trainer calls, the same for every task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from mmlm.base.errors import RecipeError, unknown_name
from mmlm.stream import Batch, Stream
from mmlm.tasks.base import MeasuresMore, Task
from mmlm.training.config import TrainConfig
from mmlm.training.learner import Learner
from mmlm.training.order import validation_rng
from mmlm.training.step import seed_generators

NUM_SHOWN = 4


class Drawn(Protocol):
    """Where validation samples come from. `fingerprint` changes when the samples do."""

    fingerprint: str

    def draw(self, rng: np.random.Generator) -> tuple[Any, Stream]:
        """One record and its stream, prepared by the objective."""

    def collate(self, items: list[Stream]) -> Batch:
        """Streams as one packed batch."""


class Validation:
    """A fixed set of samples: their loss, what the task measures on them, and some of them as files for people.

    Sample i depends on the seed and i alone, so validations are alike whenever they happen and wherever a run was resumed. The loss is the
    sum over the weights of all samples, as in a training step, in micro-batches of the training's size; samples are drawn and packed once.
    """

    def __init__(self, samples: Drawn, task: Task, config: TrainConfig, *, count: int, seed: int) -> None:
        self.task, self.config, self.seed = task, config, seed
        drawn = [samples.draw(validation_rng(seed, number)) for number in range(count)]
        self.records: Sequence[Any] = [record for record, _ in drawn]
        size = config.micro_batch_size or config.batch_size
        self.batches = [samples.collate([stream for _, stream in drawn[at : at + size]]) for at in range(0, count, size)]
        self.fingerprint = repr((samples.fingerprint, count, seed))

    def check(self, learner: Learner) -> None:
        """Raises RecipeError where `keep_best` names no metric that this validation gives. Leaves the learner in evaluation mode."""
        best, names = self.config.keep_best, self.names(learner.eval())
        if best is not None and best.metric not in names:
            raise RecipeError(f"train.keep_best.metric: {unknown_name('validation metric', best.metric, names)}")

    def names(self, learner: Learner) -> list[str]:
        """Of what it gives."""
        losses = {f"loss.{name}" for batch in self.batches for name in learner.loss_weights(batch)}
        further = self.task.further_metrics(self.records) if isinstance(self.task, MeasuresMore) else ()
        return ["loss", *sorted(losses), *self.task.metrics, *further]

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """The loss, its parts by name as training logs them, and the task's metrics."""
        learner: Any = model
        device = learner.model.device
        sums: dict[str, list[float]] = {}
        for number, batch in enumerate(self.batches):
            seed_generators(self.seed, number)  # an objective may draw from them
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
                losses = learner(batch.to(device))
            for name, (total, weight) in losses.items():
                found = sums.setdefault(name, [0.0, 0.0])
                found[0] += float(total)
                found[1] += float(weight)
        means = {name: total / weight for name, (total, weight) in sorted(sums.items()) if weight > 0}
        loss = sum(self.config.loss_weights.get(name, 1.0) * mean for name, mean in means.items())
        measured = self.task.score(self.task.predict(learner.model, self.records), self.records)
        return {"loss": loss, **{f"loss.{name}": mean for name, mean in means.items()}, **measured}

    @torch.no_grad()
    def draw(self, model: nn.Module, step: int, folder: Path) -> None:
        """Write the first samples, with what the model makes of them."""
        learner: Any = model
        shown = self.records[:NUM_SHOWN]
        self.task.write_samples(learner.model, shown, folder)
