"""The tabular baselines that a model has to beat, at the same example rows.

majority of the examples, nearest neighbours, logistic regression (C by cross-validation where the examples allow it) and XGBoost with its
default settings. Numbers are standardised and their gaps filled by the mean for the first three; XGBoost gets real gaps and categories.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from mmlm.base.errors import require
from mmlm.data.tables import Table

Predict = Callable[[Table, np.ndarray, Table, int], np.ndarray]


def _dense(shots: Table, queries: Table) -> tuple[np.ndarray, np.ndarray]:
    """Standardised numbers and one-hot categories [rows, features] of both; all statistics from the shots."""
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for name in shots.names:
        mine, theirs = shots.column(name), queries.column(name)
        if mine.kind == "category":
            words = mine.used_words()
            for word in words:
                sides = [
                    np.array([float(bool(code >= 0 and column.words[code] == word)) for code in column.codes()])
                    for column in (mine, theirs)
                ]
                parts.append((sides[0], sides[1]))
        else:
            known = mine.values[~mine.missing]
            mean, spread = (float(known.mean()), float(known.std())) if known.size else (0.0, 1.0)
            spread = spread or 1.0
            parts.append(tuple(np.nan_to_num((column.values - mean) / spread, nan=0.0) for column in (mine, theirs)))  # type: ignore[arg-type]
    if not parts:
        return np.zeros((shots.num_rows, 1)), np.zeros((queries.num_rows, 1))
    left, right = zip(*parts, strict=True)
    return np.stack(left, axis=1), np.stack(right, axis=1)


def _spread_out(chance: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities of the classes seen, laid into all classes; unseen ones get a share of 1e-6."""
    full = np.full((len(chance), num_classes), 1e-6)
    full[:, classes] = chance
    return full / full.sum(1, keepdims=True)


def majority(shots: Table, labels: np.ndarray, queries: Table, num_classes: int) -> np.ndarray:
    """The class frequencies of the examples, the same for every query."""
    share = np.bincount(labels, minlength=num_classes) / len(labels)
    return np.tile(share, (queries.num_rows, 1))


def nearest_neighbours(shots: Table, labels: np.ndarray, queries: Table, num_classes: int) -> np.ndarray:
    """Five nearest examples (or all, if fewer), weighted by distance."""
    neighbors = require("sklearn.neighbors", "tabular")
    left, right = _dense(shots, queries)
    model = neighbors.KNeighborsClassifier(min(5, len(labels)), weights="distance").fit(left, labels)
    return _spread_out(model.predict_proba(right), model.classes_, num_classes)


def logistic_regression(shots: Table, labels: np.ndarray, queries: Table, num_classes: int) -> np.ndarray:
    """C from 1e-4 to 1e4 by 3-fold cross-validation where each class has more than 3 examples, else C = 1."""
    if len(np.unique(labels)) < 2:
        return majority(shots, labels, queries, num_classes)
    linear = require("sklearn.linear_model", "tabular")
    left, right = _dense(shots, queries)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if min(np.bincount(labels)[np.unique(labels)]) > 3:
            select = require("sklearn.model_selection", "tabular")
            search = select.GridSearchCV(linear.LogisticRegression(max_iter=300), {"C": 10.0 ** np.arange(-4, 5)}, cv=3)
            model = search.fit(left, labels).best_estimator_
        else:
            model = linear.LogisticRegression(max_iter=300).fit(left, labels)
    return _spread_out(model.predict_proba(right), model.classes_, num_classes)


def xgboost(shots: Table, labels: np.ndarray, queries: Table, num_classes: int) -> np.ndarray:
    """XGBoost with histograms and native categories, default settings, one thread."""
    seen, numbers = np.unique(labels, return_inverse=True)
    if len(seen) < 2:
        return majority(shots, labels, queries, num_classes)
    package = require("xgboost", "tabular")
    pandas = require("pandas", "tabular")
    frames = [pandas.DataFrame(index=range(table.num_rows)) for table in (shots, queries)]
    for name in shots.names:
        column = shots.column(name)
        words = column.used_words() if column.kind == "category" else []
        for frame, table in zip(frames, (shots, queries), strict=True):
            side = table.column(name)
            if column.kind == "category":
                texts = [side.words[code] if code >= 0 else None for code in side.codes()]
                frame[name] = pandas.Categorical([text if text in words else None for text in texts], categories=words)
            else:
                frame[name] = side.values
    model = package.XGBClassifier(tree_method="hist", enable_categorical=True, n_jobs=1, verbosity=0)
    model.fit(frames[0], numbers)
    return _spread_out(model.predict_proba(frames[1]), seen, num_classes)


BASELINES: dict[str, Predict] = {
    "majority": majority,
    "nearest_neighbours": nearest_neighbours,
    "logistic_regression": logistic_regression,
    "xgboost": xgboost,
}
