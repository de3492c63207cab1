"""Tabular prediction in context: example rows and query rows as one stream of cells, the class ids of a table as the options.

Each row is its cells and then its label token: the class id for an example, UNKNOWN for a query, where the class is predicted. Query rows
are branches: they see the examples and themselves, never one another, so a prediction does not depend on the other queries.

Axes: r rows   c columns   t = r (c + 1) tokens   f channels of a cell
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mmlm.base.errors import DataError
from mmlm.data.config import EpisodeConfig
from mmlm.data.episodes import Episode
from mmlm.data.tables import Table, cell_texts
from mmlm.model import MultimodalLM
from mmlm.stream import NO_LABEL, Segment, Stream, pack
from mmlm.tasks.answers import ClassAnswers
from mmlm.tasks.config import TabularConfig
from mmlm.tokenizers.table_cells import MAX_CLASSES, cell_features, num_channels

logger = logging.getLogger(__name__)

LABEL, CELL, AXES = "label", "cell", ("row", "column")
UNKNOWN = MAX_CLASSES


class TabularTask(ClassAnswers):
    """Streams from tasks, and predictions from a model."""

    vocabulary = {LABEL: MAX_CLASSES + 1}
    max_classes: int | None = MAX_CLASSES

    def __init__(self, config: TabularConfig, tokenizers: Mapping[str, Any]) -> None:
        self.config, self.tokenizers = config, tokenizers
        self.features = {CELL: num_channels(config.cells)}

    @property
    def asks(self) -> EpisodeConfig:
        """How training tasks are drawn."""
        return self.config.episode

    def example(self, episode: Episode, rng: np.random.Generator) -> Stream:
        """The stream of a task; loss on the query rows."""
        return self._stream(episode.features, episode.labels, episode.num_shots, len(episode.classes))

    def _stream(self, features: Table, labels: np.ndarray, num_shots: int, num_classes: int) -> Stream:
        cells_rcf = cell_features(features.columns, labels[:num_shots], num_classes, self.config.cells)
        rows, columns, channels = cells_rcf.shape
        place = np.arange(rows * (columns + 1)).reshape(rows, columns + 1)
        ids = np.zeros(place.shape, dtype=np.int64)
        ids[:num_shots, -1], ids[num_shots:, -1] = labels[:num_shots], UNKNOWN
        wanted = np.full(place.shape, NO_LABEL)
        wanted[num_shots:, -1] = labels[num_shots:]
        row, column = np.divmod(place, columns + 1)
        branch = np.where(row < num_shots, 0, row + 1)
        segment = Segment(
            LABEL,
            ids=torch.from_numpy(ids.ravel()),
            features=torch.from_numpy(cells_rcf.reshape(-1, channels)),
            encoder=CELL,
            feature_at=torch.from_numpy(place[:, :-1].ravel()),
            weight=1.0,
            labels=torch.from_numpy(wanted.ravel()),
            num_options=num_classes,
            position=torch.from_numpy(np.stack([row.ravel(), column.ravel()], axis=1)),
            branch=torch.from_numpy(branch.ravel()),
        )
        return Stream([segment], axes=AXES)

    def shown(self, problem: Episode) -> str:
        """The examples and the first row to predict as cells: one token each, then the token of the class."""
        rows = problem.num_shots + 1
        columns = problem.features.columns[: self.config.max_columns]
        texts = [[column.name, *(text or "-" for text in cell_texts(column.take(np.arange(rows)), 3))] for column in columns]
        classes = [problem.classes[label] if label >= 0 else "-" for label in problem.labels[: problem.num_shots]]
        texts.append([problem.target, *classes, "?"])
        widths = [min(24, max(map(len, column))) for column in texts]
        padded = [[cell[:width].ljust(width) for cell in column] for column, width in zip(texts, widths, strict=True)]
        return "\n".join("  ".join(row) for row in zip(*padded, strict=True))

    @torch.no_grad()
    def predict_proba(self, model: MultimodalLM, problem: Episode) -> np.ndarray:
        """Probabilities [queries, classes], averaged over numberings of the classes.

        Raises DataError for more than ten classes or no example.
        """
        num_classes, num_shots = len(problem.classes), problem.num_shots
        if not 2 <= num_classes <= MAX_CLASSES:
            raise DataError(f"in-context prediction takes 2 to {MAX_CLASSES} classes, but was given {num_classes}.")
        if not num_shots:
            raise DataError("in-context prediction needs at least one example row.")
        features, labels = problem.features, problem.labels[:num_shots]
        if len(features.columns) > self.config.max_columns:
            logger.warning("%d feature columns: only the first %d are read", len(features.columns), self.config.max_columns)
            features = features.select(features.names[: self.config.max_columns])
        unknown = np.zeros(features.num_rows - num_shots, dtype=np.int64)
        streams, numberings = [], []
        for turn in range(min(self.config.num_orders, num_classes)):
            number = np.roll(np.arange(num_classes), turn * max(1, num_classes // self.config.num_orders))
            streams.append(self._stream(features, np.concatenate([number[labels], unknown]), num_shots, num_classes))
            numberings.append(number)
        h_btd, _ = model.hidden(pack(streams, model.vocabulary).to(model.device))
        scores = model.heads["language_model"].predict(h_btd[0], model.vocabulary.span(LABEL))[:, :num_classes]
        chance = scores.view(len(streams), features.num_rows, -1, num_classes)[:, num_shots:, -1].softmax(-1).double().cpu().numpy()
        return np.mean([chance[at][:, number] for at, number in enumerate(numberings)], axis=0)
