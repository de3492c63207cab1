"""Few-shot tasks: some rows of a table with their classes, further rows to classify.

A task is drawn from a table by one random generator: which column is the target, how many rows are examples, which columns are shown, and
which number each class gets. Numeric targets are cut into quantile bins whose edges come from the rows of the task that are examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.config import EpisodeConfig, RealTablesConfig, TableFileConfig
from mmlm.data.real_tables import load_real_tables
from mmlm.data.table_bins import assign, bin_labels, quantile_bins
from mmlm.data.table_reader import read_table
from mmlm.data.tables import Column, Table

TRIES = 50
FEW_NUMBERS = 10  # whole numbers of at most so many values are classes, not quantities


@dataclass(frozen=True)
class Episode:
    """features: the rows, examples first, without the target. labels: int64 [rows], class of each row, -1 for a class that is none of
    `classes`. classes: their texts. target: name of the column. shots_are_trained_on: a loss on the examples would say nothing."""

    features: Table
    labels: np.ndarray
    classes: list[str]
    num_shots: int
    target: str
    shots_are_trained_on: bool = False

    @property
    def shots(self) -> Table:
        """The example rows."""
        return self.features.take(np.arange(self.num_shots))

    @property
    def queries(self) -> Table:
        """The rows to predict."""
        return self.features.take(np.arange(self.num_shots, self.features.num_rows))


class RealTables:
    """Tasks from the real tables of a split."""

    def __init__(self, config: RealTablesConfig) -> None:
        self.tables = load_real_tables(config.split)

    def draw(self, rng: np.random.Generator, config: EpisodeConfig) -> Episode:
        """A task from a table drawn evenly. Raises DataError where no table gives one."""
        for _ in range(TRIES):
            table = self.tables[int(rng.integers(len(self.tables)))]
            found = draw_episode(table, rng, config)
            if found is not None:
                return found
        raise DataError(f"no task could be drawn from {len(self.tables)} tables in {TRIES} tries.")


class OneTable:
    """Tasks from the rows of one table; its own target is always the one predicted.

    where: the table's name in messages. predicted: bool [rows]; these rows alone are predicted, the others, trained on, are examples.
    """

    def __init__(self, table: Table, where: str, predicted: np.ndarray | None = None) -> None:
        self.table, self.where, self.predicted = table, where, predicted

    def draw(self, rng: np.random.Generator, config: EpisodeConfig) -> Episode:
        """One task; of a target that hardly ever changes at last one whose examples are made to differ in it. Raises DataError where the
        table gives none."""
        own = config.model_copy(update={"own_target": 1.0})
        for turn in range(2 * TRIES):
            found = draw_episode(self.table, rng, own, self.predicted, differing=turn >= TRIES)
            if found is not None:
                return replace(found, shots_are_trained_on=self.predicted is not None)
        raise DataError(
            f"{self.where}: no task could be drawn in {2 * TRIES} tries: column {self.table.target!r} shows fewer than two classes among "
            f"the examples, is a date, or has more than {4 * config.max_classes} different texts."
        )


class TableFile(OneTable):
    """Tasks from the rows of a file that are neither held out nor kept back. Which these are depends on the number of rows alone.

    Raises DataError for a file or target that cannot be used.
    """

    def __init__(self, config: TableFileConfig) -> None:
        path = find_file(config.path)
        self.whole = read_table(path, target=config.target, sheet=config.sheet, kinds=config.kinds)
        if not self.whole.features:
            raise DataError(f"{path}: has the target {config.target!r} and no other column; there is nothing to predict it from.")
        place = np.random.default_rng(self.whole.num_rows).random(self.whole.num_rows)
        self.held_out, self.is_known = place < config.hold_out, place >= config.hold_out + config.validate_share
        if config.validate_share and not (~self.held_out & ~self.is_known).any():
            count, share = self.whole.num_rows, config.validate_share
            raise DataError(f"{path}: validate_share: {share:g} of its {count} rows keeps none back; raise it.")
        super().__init__(self.whole.take(np.flatnonzero(self.is_known)), str(path))

    def kept_back(self) -> OneTable | None:
        """Tasks whose examples are training rows and whose rows to predict are kept back for validation."""
        rows = np.flatnonzero(~self.held_out)
        return None if self.is_known[rows].all() else OneTable(self.whole.take(rows), self.where, ~self.is_known[rows])


def find_file(name: str) -> Path:
    """A file or folder at a path, or one shipped beside the recipes. Raises DataError where there is none."""
    import mmlm

    for path in (Path(name), *(Path(root) / "recipes" / name for root in mmlm.__path__)):
        if path.exists():
            return path
    raise DataError(f"{name}: no such file.")


def classes_of(column: Column, num_shots: int, num_bins: int) -> tuple[np.ndarray, list[str]]:
    """(class of each row int64, -1 for none; class texts): categories and whole numbers of few values as they are, others in bins.

    Edges of bins come from the first num_shots rows; where these hold one value alone, no row has a class.
    """
    known = column.values[~column.missing]
    if column.kind == "category" or (column.num_distinct <= FEW_NUMBERS and bool((known == np.floor(known)).all())):
        categories = column.as_category()
        return categories.codes(), categories.words
    labels = np.full(len(column), -1, dtype=np.int64)
    first = column.values[:num_shots][~column.missing[:num_shots]]
    if len(np.unique(first)) < 2:
        return labels, []
    edges = quantile_bins(first, num_bins)
    present = ~column.missing
    labels[present] = assign(column.values[present], edges)
    return labels, bin_labels(edges)


def draw_episode(
    table: Table, rng: np.random.Generator, config: EpisodeConfig, predicted: np.ndarray | None = None, *, differing: bool = False
) -> Episode | None:
    """One task from a table, or None where the draw has no two classes among its rows.

    predicted: bool [rows]; these rows alone are predicted and the others are examples; default: any row is either. differing: two of the
    rows drawn, examples if they are two, have different targets.
    """
    names = table.names
    own = table.target is not None and rng.random() < config.own_target
    target = table.target if own and table.target is not None else names[int(rng.integers(len(names)))]
    column = table.column(target)
    if column.kind == "date" or (column.kind == "category" and column.num_distinct > 4 * config.max_classes):
        return None
    others = [name for name in names if name != target]
    if not others:
        return None
    count = int(rng.integers(1, min(len(others), config.max_columns) + 1)) if rng.random() < 0.5 else min(len(others), config.max_columns)
    shown = [others[i] for i in rng.permutation(len(others))[:count]]
    rows = rng.permutation(np.flatnonzero(~column.missing))
    if len(rows) < 4:
        return None
    shots = int(round(float(np.exp(rng.uniform(np.log(config.min_shots), np.log(config.max_shots))))))
    if predicted is None:
        rows = _differing(rows, column, shots, rng) if differing else rows
        shots = min(shots, config.num_rows - 1, len(rows) - 1)
    else:
        known = rows[~predicted[rows]]
        examples = (_differing(known, column, shots, rng) if differing else known)[:shots]
        rows, shots = np.concatenate([examples, rows[predicted[rows]]]), len(examples)
    rows = rows[: config.num_rows]
    labels, classes = classes_of(column.take(rows), shots, int(rng.integers(2, config.max_bins + 1)))
    return finish(table.select(shown).take(rows), labels, classes, shots, rng, config.max_classes, target)


def _differing(rows: np.ndarray, column: Column, shots: int, rng: np.random.Generator) -> np.ndarray:
    """The rows, of which the first two are of different values, where there are two, and the first `shots` then mixed."""
    others = np.flatnonzero(column.values[rows] != column.values[rows[:1]])
    if len(others):
        other = int(rng.choice(others))
        rows[[1, other]] = rows[[other, 1]]
    rows[:shots] = rng.permutation(rows[:shots])
    return rows


def finish(
    features: Table, labels: np.ndarray, classes: list[str], shots: int, rng: np.random.Generator, max_classes: int, target: str
) -> Episode | None:
    """The task with at most max_classes classes, those of the rows alone, numbered at random; None without two of them."""
    present = np.unique(labels[labels >= 0])
    if len(present) > max_classes:
        present = rng.permutation(present)[:max_classes]
    if len(present) < 2:
        return None
    number = np.full(len(classes), -1, dtype=np.int64)
    number[rng.permutation(present)] = np.arange(len(present))
    labels = np.where(labels >= 0, number[labels], -1)
    keep = labels >= 0
    shots = int(keep[:shots].sum())
    labels = labels[keep]
    if shots < 1 or shots >= len(labels):
        return None
    texts = [""] * len(present)
    for old, new in enumerate(number):
        if new >= 0:
            texts[new] = classes[old]
    return Episode(features.take(np.flatnonzero(keep)), labels, texts, shots, target)
