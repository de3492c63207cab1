"""Several tasks on one model in one run.

Every optimizer step reads samples of each task, in micro-batches of one task under its own objective, whose losses are told apart by its
name, such as `captions.language_model`. Each is a mean over what its own task asks for, so that a task with many tokens does not drown one
with few. The vocabulary holds every range once: what two tasks both call `text` or `codec.0` is the same to the model, made by the same
tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.adapt import adapter_names, use_adapter
from mmlm.base.errors import RecipeError, unknown_name
from mmlm.evaluation.validation import Validation
from mmlm.model import MultimodalLM
from mmlm.objectives.base import Objective
from mmlm.recipe import Recipe
from mmlm.stream import Batch
from mmlm.training.config import TrainConfig
from mmlm.training.learner import Learner
from mmlm.training.loader import Samples
from mmlm.training.step import coefficient

ANY_SIZE = ("special", "mask")  # ranges of which each task uses the first ids, as many as it needs


@dataclass(frozen=True)
class Part:
    """A task of a run with the recipe of it alone."""

    recipe: Recipe
    task: Any

    @property
    def config(self) -> Any:
        """Options of the task."""
        return self.recipe.tasks[0]

    @property
    def name(self) -> str:
        """What the recipe calls it."""
        return str(self.config.called)

    @property
    def size(self) -> int:
        """Samples of an optimizer step."""
        return int(self.config.batch_size or self.recipe.train.batch_size)


def vocabulary_of(parts: Sequence[Part]) -> dict[str, int]:
    """All ranges with their sizes. Raises RecipeError where two tasks mean different ones by one name."""
    found: dict[str, tuple[int, Part]] = {}
    for part in parts:
        for name, size in part.task.vocabulary.items():
            held, first = found.get(name, (size, part))
            if held != size and name not in ANY_SIZE:
                raise RecipeError(f"tasks: {first.name} has {held} ids {name!r}, {part.name} has {size}; let both use the same tokenizer.")
            found[name] = (max(held, size), first)
    return {name: size for name, (size, _) in found.items()}


def merged(parts: Sequence[Part], what: str) -> dict[str, Any]:
    """What tasks say of `features` or `channels`, by name. Raises RecipeError where two say different things of one name."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in getattr(part.task, what, {}).items():
            if found.setdefault(name, value) != value:
                raise RecipeError(f"tasks: {part.name} gives {what} {name!r} of {value}, another task of {found[name]}; name them apart.")
    return found


@dataclass
class Apart:
    """A batch of one task."""

    name: str
    batch: Batch

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.batch.num_tokens

    def to(self, device: torch.device | str) -> Apart:
        """The same on another device."""
        return Apart(self.name, self.batch.to(device))


class PartSamples:
    """Samples of one task among several, whose batches know whose they are."""

    def __init__(self, name: str, samples: Samples) -> None:
        self.name, self.samples, self.fingerprint = name, samples, samples.fingerprint

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: Any) -> Any:
        """One sample."""
        return self.samples.sample(index, rng)

    def collate(self, items: list[Any]) -> Apart:
        """Samples as one batch."""
        return Apart(self.name, self.samples.collate(items))


class JointSamples:
    """Samples of all tasks; `parts` and `sizes` are for the trainer, which draws from each by itself."""

    def __init__(self, parts: Sequence[Part], samples: Sequence[Samples]) -> None:
        self.parts = [PartSamples(part.name, some) for part, some in zip(parts, samples, strict=True)]
        self.sizes = [part.size for part in parts]
        self.fingerprint = repr([(part.name, part.size, some.fingerprint) for part, some in zip(parts, samples, strict=True)])

    def __len__(self) -> int:
        return min(map(len, self.parts))

    def sample(self, index: int, rng: Any) -> Any:
        """Of the first task."""
        return self.parts[0].sample(index, rng)

    def collate(self, items: list[Any]) -> Apart:
        """Of the first task."""
        return self.parts[0].collate(items)


class JointLearner(nn.Module):
    """A model under the objective of each task, for batches of one task each. objectives, weights: by name of the task."""

    def __init__(self, model: MultimodalLM, objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.model, self.objectives, self.weights = model, dict(objectives), dict(weights)

    def begin_step(self, step: int, steps: int) -> None:
        """Told before each training step: how many were taken, and how many the run has."""
        for objective in self.objectives.values():
            objective.begin_step(step, steps)

    def forward(self, one: Apart) -> dict[str, tuple[Tensor, Tensor]]:
        """Loss sums and weights by the names of task and loss."""
        return {f"{one.name}.{name}": loss for name, loss in self.alone(one.name)(one.batch).items()}

    def loss_weights(self, one: Apart) -> dict[str, float]:
        """The weights that forward will report, without a forward pass."""
        return {f"{one.name}.{name}": weight for name, weight in self.alone(one.name).loss_weights(one.batch).items()}

    def alone(self, name: str) -> Learner:
        """The same model under the objective of one task, with its adapters where it has its own."""
        if name in self.own_adapters:
            use_adapter(self.model, name)
        return Learner(self.model, self.objectives[name])

    @cached_property
    def own_adapters(self) -> list[str]:
        """Tasks with adapters of their own, which were attached before anything is computed."""
        return adapter_names(self.model)

    def weight_of(self, name: str) -> float:
        """How often a loss counts, from the weight of its task."""
        return self.weights[name.partition(".")[0]]


class JointValidation:
    """The validations of all tasks, their metrics told apart by the task's name, their samples in folders of that name."""

    def __init__(self, parts: Sequence[Part], validations: Sequence[Validation], config: TrainConfig) -> None:
        self.parts, self.validations, self.config = parts, validations, config
        self.fingerprint = repr([validation.fingerprint for validation in validations])

    def check(self, learner: JointLearner) -> None:
        """Raises RecipeError where `keep_best` names no metric that these validations give. Leaves the learner in evaluation mode."""
        best, names = self.config.keep_best, ["loss"]
        learner.eval()
        for part, validation in zip(self.parts, self.validations, strict=True):
            names += [f"{part.name}.{name}" for name in validation.names(learner.alone(part.name))]
        if best is not None and best.metric not in names:
            raise RecipeError(f"train.keep_best.metric: {unknown_name('validation metric', best.metric, names)}")

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """All metrics, and the sum of the losses, each counted as often as in training."""
        learner: Any = model
        found = {"loss": 0.0}
        for part, validation in zip(self.parts, self.validations, strict=True):
            metrics = validation(learner.alone(part.name), step)
            for name, value in metrics.items():
                if name.startswith("loss."):
                    found["loss"] += value * coefficient(self.config, learner, f"{part.name}.{name.removeprefix('loss.')}")
            found |= {f"{part.name}.{name}": value for name, value in metrics.items()}
        return found

    def draw(self, model: nn.Module, step: int, folder: Path) -> None:
        """The first samples of each task."""
        learner: Any = model
        for part, validation in zip(self.parts, self.validations, strict=True):
            (folder / part.name).mkdir(parents=True, exist_ok=True)
            validation.draw(learner.alone(part.name), step, folder / part.name)
