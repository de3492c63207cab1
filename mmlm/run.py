"""From a recipe to a run folder: the place that puts task, data, model, objective and trainer together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmlm.adapt import adapt
from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.data.real_tables import load_real_tables
from mmlm.data.tables import Table
from mmlm.evaluation.protocol import compare, summary
from mmlm.evaluation.report import write_report
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.objectives.base import Objective
from mmlm.recipe import Recipe
from mmlm.stream import Batch, Stream
from mmlm.tasks.tabular import TabularTask
from mmlm.training.learner import Learner
from mmlm.training.trainer import Result, Trainer
from mmlm.vocabulary import Vocabulary

RECIPE, METRICS = "recipe.yaml", "metrics.json"
ENDLESS = 1 << 40  # samples that a source of drawn tasks claims to have


class DrawnSamples:
    """Streams drawn from weighted sources; sample number and seed decide everything."""

    def __init__(self, recipe: Recipe, task: TabularTask, objective: Objective, vocabulary: Vocabulary) -> None:
        self.task, self.objective, self.vocabulary = task, objective, vocabulary
        self.episode = recipe.tasks[0].episode
        self.sources = [source.build() for source in recipe.data.train]
        weights = np.array([source.weight for source in recipe.data.train])
        self.borders = np.cumsum(weights / weights.sum())
        self.fingerprint = repr((recipe.data.model_dump(), recipe.tasks[0].model_dump()))

    def __len__(self) -> int:
        return ENDLESS

    def sample(self, index: int, rng: np.random.Generator) -> Stream:
        """One task as a stream, prepared by the objective."""
        source = self.sources[int(np.searchsorted(self.borders, rng.random(), side="right").clip(max=len(self.sources) - 1))]
        return self.objective.prepare(self.task.example(source.draw(rng, self.episode)), self.vocabulary, rng)

    def collate(self, items: list[Stream]) -> Batch:
        """Streams as one packed batch."""
        return self.objective.collate(items, self.vocabulary)


def build_model(recipe: Recipe, task: TabularTask) -> MultimodalLM:
    """The model of a recipe with its first weights, which the seed decides."""
    if recipe.backbone.pretrained is not None:
        raise RecipeError("backbone.pretrained: a task of feature tokens starts from scratch; leave it out.")
    missing = task.features.keys() - recipe.encoders.keys()
    if missing:
        raise RecipeError(f"encoders: the task {recipe.tasks[0].type!r} needs an encoder named {', '.join(sorted(missing))}.")
    torch.manual_seed(recipe.seed)
    return MultimodalLM(
        ModelConfig(
            schema=1,
            vocabulary=task.vocabulary,
            backbone=recipe.backbone,
            encoders=recipe.encoders,
            features=task.features,
            heads=recipe.heads,
        )
    )


def train(recipe: Recipe, *, fresh: bool = False, progress: Callable[[int, dict[str, Any]], None] | None = None) -> Result:
    """Train (or go on training) and leave a run folder that `load_run` reads.

    Raises RecipeError, DataError, CheckpointError or NumericsError.
    """
    if not recipe.tasks:
        raise RecipeError(f"recipe {recipe.name!r}: `task` is missing; nothing can be trained without one.")
    task = recipe.tasks[0].build()
    objective = recipe.objective.build()
    model = build_model(recipe, task)
    samples = DrawnSamples(recipe, task, objective, model.vocabulary)
    learner = Learner(model, objective)
    adapt(learner, recipe.adapt, recipe.seed)
    folder = Path(recipe.output)
    result = Trainer(learner, samples, recipe.train, folder, seed=recipe.seed, progress=progress).fit(fresh=fresh)
    if result.reason != "signal":
        model.save_pretrained(folder)
        (folder / RECIPE).write_text(recipe.dump())
    return result


def load_run(folder: Path | str) -> tuple[Recipe, TabularTask, MultimodalLM]:
    """The recipe, task and model of a finished run. Raises CheckpointError where the folder holds none."""
    path = Path(folder) / RECIPE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no finished run: {RECIPE} is missing.")
    recipe = Recipe.read(path)
    return recipe, recipe.tasks[0].build(), MultimodalLM.from_pretrained(folder)


def dry(recipe: Recipe) -> Recipe:
    """The same recipe for two steps, in a folder of its own."""
    short = recipe.train.model_copy(update={"steps": min(2, recipe.train.steps), "max_seconds": None, "log_every": 1})
    return recipe.model_copy(update={"train": short, "output": recipe.output.rstrip("/") + "-dry-run"})


def evaluate(folder: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compare a finished run with the baselines on held-out tables; writes metrics.json and report.html and returns the metrics."""
    recipe, task, model = load_run(folder)
    if overrides:
        recipe = Recipe.read(Path(folder) / RECIPE, overrides)
    config = recipe.evaluate

    def predict(shots: Table, labels: np.ndarray, queries: Table, num_classes: int) -> np.ndarray:
        return task.predict_proba(model, shots, labels, queries, num_classes)

    found = compare(load_real_tables(config.split), predict, config)
    metrics = summary(found, config)
    (Path(folder) / METRICS).write_text(json.dumps(metrics, indent=2) + "\n")
    write_report(Path(folder), recipe, found, metrics)
    return metrics
