"""Records drawn from weighted sources, and the streams that a task makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import beyond_defaults
from mmlm.data.base import Drawn, KeepsBack, Listed, Source
from mmlm.objectives.base import Objective
from mmlm.recipe import Recipe
from mmlm.stream import Batch, Stream
from mmlm.tasks.base import ReadsAhead, Task
from mmlm.vocabulary import Vocabulary

TRIES = 50


class DrawnSamples(Drawn):
    """Streams of records drawn from weighted sources; sample number and seed decide everything."""

    def __init__(self, task: Task, objective: Objective, vocabulary: Vocabulary, records: Records) -> None:
        self.task, self.objective, self.vocabulary, self.records = task, objective, vocabulary, records
        self.fingerprint = records.fingerprint
        if isinstance(task, ReadsAhead):
            task.read_ahead(records.everything())

    def draw(self, rng: np.random.Generator) -> tuple[Any, Stream]:
        """A record, and its stream prepared by the objective. One that gives no stream is followed by others of its source, so that the
        shares of the samples are those of the weights; where many of these give none either, by those of any. Raises DataError where none
        of many records gives one."""
        source: Source | None = None
        for turn in range(TRIES):
            drawn = self.records.source(rng)  # at every turn, so that a single source draws the same with and without this rule
            source = drawn if source is None or turn >= TRIES // 2 else source
            record = source.draw(rng, self.records.asks)
            stream = self.task.example(record, rng)
            if stream is not None:
                return record, self.objective.prepare(stream, self.vocabulary, rng)
        raise DataError(
            f"none of {TRIES} drawn records gives a sample: each is too long for the context of the task, or lacks what it asks for. The "
            f"last one: {self.task.title(record)[:100]}"
        )

    def collate(self, items: list[Stream]) -> Batch:
        """Streams as one packed batch."""
        return self.objective.collate(self.task.arrange(items), self.vocabulary)


class Records:
    """Records from weighted sources. asks: what they are told when they draw. origin: says which they are and what is made of them, for
    the fingerprint."""

    def __init__(self, sources: Sequence[tuple[Source, float]], asks: Any, origin: Any = None) -> None:
        self.asks, self.fingerprint = asks, repr(origin)
        self.sources = [source for source, _ in sources]
        weights = np.array([weight for _, weight in sources])
        self.borders = np.cumsum(weights / weights.sum())

    @classmethod
    def of_training(cls, recipe: Recipe, task: Task) -> Records:
        """Those of data.train."""
        sources = [(source.build(), source.weight) for source in recipe.data.train]
        return cls(sources, task.asks, ({"train": beyond_defaults(recipe.data.train)}, *cls._made(recipe)))

    @staticmethod
    def _made(recipe: Recipe) -> tuple[Any, Any]:
        return beyond_defaults(recipe.tasks[0]), beyond_defaults(recipe.tokenizers)

    def for_validation(self, recipe: Recipe) -> Records:
        """Those of data.validate, and of what these sources, of data.train, keep back. Raises RecipeError without any."""
        sources: list[tuple[Source, float]] = [(source.build(), source.weight) for source in recipe.data.validation]
        for source, config in zip(self.sources, recipe.data.train, strict=True):
            kept = source.kept_back() if isinstance(source, KeepsBack) else None
            sources += [] if kept is None else [(kept, config.weight)]
        if not sources:
            raise RecipeError("data.validate: is empty, and no source of data.train keeps anything back.")
        origin = beyond_defaults([recipe.data.validation, recipe.data.train])
        return Records(sources, self.asks, (origin, *self._made(recipe)))

    def everything(self) -> list[Any]:
        """All records of the sources that can tell them."""
        return [record for source in self.sources if isinstance(source, Listed) for record in source.everything()]

    def source(self, rng: np.random.Generator) -> Source:
        """One of the sources, by their weights."""
        return self.sources[int(np.searchsorted(self.borders, rng.random(), side="right").clip(max=len(self.sources) - 1))]

    def draw(self, rng: np.random.Generator) -> Any:
        """One record of one source."""
        return self.source(rng).draw(rng, self.asks)
