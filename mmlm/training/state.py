"""What a run must remember besides weights, and how all of it goes into a checkpoint and comes back."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmlm.base.errors import CheckpointError
from mmlm.training import checkpoint
from mmlm.training.ema import WeightAverage
from mmlm.training.optimizers import load_optimizer_state, optimizer_state
from mmlm.weights import copy_tensors, with_aliases, without_aliases

logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """Counters of a run. samples: how many have been consumed; the position in the data is this number and nothing else.

    window: [sum, weight] of each loss since the last log line.   logged, validated, drawn: last step of each.
    validation: what the metrics were measured on.
    """

    seed: int
    data: str
    config: dict[str, Any]
    step: int = 0
    samples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_row: int = 0
    window: dict[str, list[float]] = field(default_factory=dict)
    logged: int = 0
    validated: int = 0
    drawn: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    log_bytes: int = 0
    validation: str = ""


@dataclass
class Parts:
    """Everything of a run that a checkpoint holds."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizers: list[Optimizer]
    average: WeightAverage | None
    state: RunState

    def save(self, root: Path) -> Path:
        """Write the checkpoint of the present step. Raises SaveError."""
        state = self.state
        tensors, numbers = optimizer_state(self.optimizers, self._names())
        files = {"model": without_aliases(self.model.state_dict()), "optimizer": tensors}
        if self.average is not None:
            files["ema"] = dict(self.average.average)
        metrics = {name: value if value is not None and math.isfinite(value) else None for name, value in state.metrics.items()}
        content = {**dataclasses.asdict(state), "metrics": metrics, "optimizer": numbers}
        return checkpoint.save(root, state.step, files, content)

    def restore(self, folder: Path) -> None:
        """Take over everything from a checkpoint. Raises CheckpointError where it is damaged or of another run."""
        files, content = checkpoint.read(folder)
        numbers = content.pop("optimizer")
        found = RunState(**content)
        now = self.state
        for what, theirs, ours in (("seed", found.seed, now.seed), ("data", found.data, now.data)):
            if theirs != ours:
                theirs, ours = where_different(str(theirs), str(ours))
                raise CheckpointError(
                    f"{folder}: was written with {what} {theirs}, but the run has {ours}. Start over with --fresh or choose another output."
                )
        if found.config.get("optimizer", {}).get("type") != now.config["optimizer"]["type"]:
            raise CheckpointError(
                f"{folder}: holds states of {found.config['optimizer']['type']!r}, but train.optimizer is "
                f"{now.config['optimizer']['type']!r}. Start over with --fresh."
            )
        for key in sorted(now.config.keys() | found.config.keys()):
            if now.config.get(key) != found.config.get(key):
                logger.info("train.%s was %s and is %s from step %d on", key, found.config.get(key), now.config.get(key), found.step)
        load_weights(self.model, files["model"], folder)
        load_optimizer_state(self.optimizers, self._names(), files["optimizer"], numbers, str(folder / "optimizer.safetensors"))
        if self.average is not None:
            own = self.average.average
            if "ema" in files:
                copy_tensors(own, files["ema"], str(folder / "ema.safetensors"))
            else:
                copy_tensors(own, {name: self.parameters[name].detach() for name in own}, str(folder))
        changed = (found.validation, found.config.get("keep_best")) != (now.validation, now.config["keep_best"])
        if changed and found.best_step is not None:
            logger.info("what is best is measured otherwise from step %d on: the best checkpoint so far is forgotten", found.step)
            found = dataclasses.replace(found, validated=0, best_step=None, best_value=None)
        self.state = dataclasses.replace(found, config=now.config, validation=now.validation)

    def hold_final_weights(self, root: Path) -> None:
        """Give the model the weights to use: of the best checkpoint if there is one, and their average if there is one."""
        if self.state.best_step is not None:
            load_model(self.model, root / checkpoint.step_name(self.state.best_step))
        elif self.average is not None:
            _overlay(self.model, self.average.average)

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.parameters.items()}


def load_model(model: nn.Module, folder: Path) -> None:
    """Give a model the weights of a checkpoint as they are used: averaged where the run kept an average.

    Raises CheckpointError where the checkpoint is damaged or does not fit the model.
    """
    files, _ = checkpoint.read(folder)
    load_weights(model, files["model"], folder)
    _overlay(model, files.get("ema", {}))


def load_weights(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy the weights of a checkpoint into a model. Raises CheckpointError naming what does not fit."""
    own = model.state_dict()
    copy_tensors(own, with_aliases(own, tensors), str(folder / "model.safetensors"))


def _overlay(model: nn.Module, averaged: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in averaged.items():
            own[name].copy_(tensor)


def where_different(one: str, other: str, shown: int = 30) -> tuple[str, str]:
    """Of two texts as much as tells them apart: what differs first, with some letters on both sides."""
    same = len(os.path.commonprefix([one, other]))

    def cut(text: str) -> str:
        before, behind = "..." if same > shown else "", "..." if len(text) > same + shown else ""
        return f"{before}{text[max(0, same - shown) : same + shown]}{behind}"

    return cut(one), cut(other)
