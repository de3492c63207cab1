"""A finished tabular run as a predictor with scikit-learn's methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, RecipeError, require
from mmlm.data.episodes import Episode, classes_of
from mmlm.data.table_bins import bin_means, quantile_bins
from mmlm.data.table_reader import read_table
from mmlm.data.tables import Column, Table, join_rows
from mmlm.run import load_run

MAX_BINS = 10


class TabularPredictor:
    """Predicts a column from example rows, in context: `fit` keeps the examples, no weight changes.

    run: the folder of a finished tabular run. A numeric y of more than ten distinct values is predicted as the mean of quantile bins
    weighted by their probabilities; then there is no predict_proba.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = run

    def fit(self, x: Any, y: Any) -> TabularPredictor:
        """Keep the examples. x: frame, array or Table [rows, columns]; y: [rows]. Raises DataError for one class only."""
        pandas = require("pandas", "tabular")
        table = _table(x)
        frame = pandas.DataFrame({"target": np.asarray(y) if not hasattr(y, "to_numpy") else y.to_numpy()})
        return self._keep(table, Table.from_frame(frame, "target").column("target"))

    def _keep(self, table: Table, target: Column) -> TabularPredictor:
        if len(target) != table.num_rows:
            raise DataError(f"x has {table.num_rows} rows, but y has {len(target)}.")
        present = np.flatnonzero(~target.missing)
        table, target = table.take(present), target.take(present)
        if target.num_distinct < 2:
            raise DataError("the examples show fewer than two distinct target values; at least two are needed.")
        _, self.task_, self.model_ = load_run(self.run)
        bins = min(MAX_BINS, max(2, len(target) // 4))
        self.labels_, texts = classes_of(target, len(target), bins)
        self.is_regression_ = target.kind != "category" and len(texts) != target.num_distinct
        if self.is_regression_:
            self.means_ = bin_means(target.values, quantile_bins(target.values, bins))
            self.classes_ = np.arange(len(texts))
        else:
            seen = np.unique(self.labels_)
            self.labels_ = np.searchsorted(seen, self.labels_)
            words = [texts[code] for code in seen]
            self.classes_ = np.array(words if target.kind == "category" else [float(word) for word in words])
            texts = words
        self.texts_, self.target_, self.shots_ = texts, target.name, table
        return self

    def _chances(self, x: Any) -> np.ndarray:
        if not hasattr(self, "shots_"):
            raise RecipeError("this predictor has no examples yet: call fit first.")
        queries = _table(x)
        if missing := [name for name in self.shots_.names if name not in queries.names]:
            raise DataError(f"the rows to predict lack the column {missing[0]!r} of the examples.")
        parts = []
        for start in range(0, queries.num_rows, 256):
            rows = np.arange(start, min(start + 256, queries.num_rows))
            joined = join_rows([self.shots_, queries.select(self.shots_.names).take(rows)])
            labels = np.concatenate([self.labels_, np.full(len(rows), -1)])
            problem = Episode(joined, labels, self.texts_, len(self.labels_), self.target_)
            parts.append(self.task_.predict_proba(self.model_, problem))
        return np.concatenate(parts)

    def predict_proba(self, x: Any) -> np.ndarray:
        """Probabilities [rows, classes], in the order of `classes_`. Raises RecipeError for a numeric target."""
        if getattr(self, "is_regression_", False):
            raise RecipeError("the target is a number: there are no classes; use predict.")
        return self._chances(x)

    def predict(self, x: Any) -> np.ndarray:
        """Classes [rows], or numbers for a numeric target."""
        chances = self._chances(x)
        return chances @ self.means_ if self.is_regression_ else self.classes_[chances.argmax(1)]


def _table(x: Any) -> Table:
    if isinstance(x, Table):
        return x
    pandas = require("pandas", "tabular")
    frame = x if isinstance(x, pandas.DataFrame) else pandas.DataFrame(np.asarray(x))
    return Table.from_frame(frame.rename(columns=str), "x")


def fill_column(run: str | Path, table_file: Path, target: str, shots_file: Path, output: Path) -> int:
    """Fill the target of a table from the examples of another, write it as CSV; returns the number of rows filled.

    Rows that have a value keep it. Raises DataError where files or columns do not fit.
    """
    pandas = require("pandas", "tabular")
    shots = read_table(shots_file, target=target)
    table = read_table(table_file)
    features = [name for name in shots.names if name != target]
    predictor = TabularPredictor(run)._keep(shots.select(features), shots.column(target))
    found = predictor.predict(table)
    frame = table.to_frame()
    if target in frame:
        empty = frame[target].isna().to_numpy()
        frame[target] = frame[target].where(~empty, pandas.Series(found, index=frame.index))
    else:
        empty = np.ones(len(frame), dtype=bool)
        frame[target] = found
    frame.to_csv(output, index=False)
    return int(empty.sum())
