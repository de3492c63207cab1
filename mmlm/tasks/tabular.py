"""Tabular prediction in context: example rows and query rows as one stream of cells, the class ids of a table as the options.

Each row is its cells and then its label token: the class id for an example, UNKNOWN for a query, where the class is predicted. Query rows
are branches: they see the examples and themselves, never one another, so a prediction does not depend on the other queries.

Axes: r rows   c columns   t = r (c + 1) tokens   f channels of a cell
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from mmlm.base.errors import DataError
from mmlm.data.episodes import Episode
from mmlm.data.tables import Table
from mmlm.model import MultimodalLM
from mmlm.stream import NO_LABEL, Segment, Stream, pack
from mmlm.tasks.config import TabularConfig
from mmlm.tokenizers.table_cells import MAX_CLASSES, cell_features, num_channels

logger = logging.getLogger(__name__)

LABEL, CELL, AXES = "label", "cell", ("row", "column")
UNKNOWN = MAX_CLASSES


class TabularTask:
    """Streams from tasks, and predictions from a model."""

    vocabulary = {LABEL: MAX_CLASSES + 1}

    def __init__(self, config: TabularConfig) -> None:
        self.config = config
        self.features = {CELL: num_channels(config.cells)}

    def example(self, episode: Episode) -> Stream:
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

    @torch.no_grad()
    def predict_proba(self, model: MultimodalLM, shots: Table, labels: np.ndarray, queries: Table, num_classes: int) -> np.ndarray:
        """Probabilities [queries, classes], averaged over numberings of the classes.

        shots, queries: tables of the same columns, without the target. labels: int [shots], classes 0 to num_classes - 1.
        Raises DataError for more than ten classes or no example.
        """
        if not 2 <= num_classes <= MAX_CLASSES:
            raise DataError(f"in-context prediction takes 2 to {MAX_CLASSES} classes, but was given {num_classes}.")
        if not len(labels):
            raise DataError("in-context prediction needs at least one example row.")
        if len(shots.columns) > self.config.max_columns:
            logger.warning("%d feature columns: only the first %d are read", len(shots.columns), self.config.max_columns)
        names = shots.names[: self.config.max_columns]
        joined = join_rows(shots.select(names), queries.select(names))
        streams, numberings = [], []
        for turn in range(min(self.config.num_orders, num_classes)):
            number = np.roll(np.arange(num_classes), turn * max(1, num_classes // self.config.num_orders))
            unknown = np.zeros(queries.num_rows, dtype=np.int64)
            streams.append(self._stream(joined, np.concatenate([number[labels], unknown]), len(labels), num_classes))
            numberings.append(number)
        h_btd, _ = model.hidden(pack(streams, model.vocabulary))
        scores = model.heads["language_model"].predict(h_btd[0], model.vocabulary.span(LABEL))[:, :num_classes]
        chance = scores.view(len(streams), joined.num_rows, -1, num_classes)[:, len(labels) :, -1].softmax(-1).double().numpy()
        return np.mean([chance[at][:, number] for at, number in enumerate(numberings)], axis=0)


def join_rows(first: Table, second: Table) -> Table:
    """One table of the rows of both; categories are matched by their texts."""
    return _concatenate([first, second])


def _concatenate(tables: Sequence[Table]) -> Table:
    columns = []
    for name in tables[0].names:
        parts = [table.column(name) for table in tables]
        words = list(dict.fromkeys(word for part in parts for word in part.words))
        place = {word: code for code, word in enumerate(words)}
        values = []
        for part in parts:
            mapping = np.array([place[word] for word in part.words] or [0], dtype=np.float64)
            codes = np.where(part.missing, 0, part.values).astype(np.int64) if words else None
            values.append(part.values if codes is None else np.where(part.missing, np.nan, mapping[codes]))
        columns.append(type(parts[0])(name, parts[0].kind, np.concatenate(values), words))
    return Table(tables[0].name, columns)
