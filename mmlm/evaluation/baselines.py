"""The tabular baselines that a model has to beat, at the same example rows.

majority of the examples, nearest neighbours, logistic regression (C by cross-validation where the examples allow it) and XGBoost, with its
default settings or the best of a random search. Numbers are standardised and their gaps filled by the mean for the first three; XGBoost
gets real gaps and categories.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from mmlm.base.errors import require
from mmlm.data.episodes import Episode
from mmlm.tokenizers.table_cells import standard_scores

Predict = Callable[[Episode], np.ndarray]
SEARCHED = 12


def _dense(problem: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Standardised numbers and one-hot categories [rows, features] of examples and rows to predict; all statistics from the examples."""
    shots, queries = problem.shots, problem.queries
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
            known = known if known.size else np.zeros(1)
            parts.append(tuple(np.nan_to_num(standard_scores(column.values, known), nan=0.0) for column in (mine, theirs)))  # type: ignore[arg-type]
    if not parts:
        return np.zeros((shots.num_rows, 1)), np.zeros((queries.num_rows, 1))
    left, right = zip(*parts, strict=True)
    return np.stack(left, axis=1), np.stack(right, axis=1)


def _spread_out(chance: np.ndarray, classes: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities of the classes seen, laid into all classes; unseen ones get a share of 1e-6."""
    full = np.full((len(chance), num_classes), 1e-6)
    full[:, classes] = chance
    return full / full.sum(1, keepdims=True)


def majority(problem: Episode) -> np.ndarray:
    """The class frequencies of the examples, the same for every query; all classes alike without an example."""
    labels, count = problem.labels[: problem.num_shots], len(problem.classes)
    share = np.bincount(labels, minlength=count) / len(labels) if len(labels) else np.full(count, 1 / count)
    return np.tile(share, (problem.features.num_rows - len(labels), 1))


def nearest_neighbours(problem: Episode) -> np.ndarray:
    """Five nearest examples (or all, if fewer), weighted by distance."""
    labels = problem.labels[: problem.num_shots]
    if not len(labels):
        return majority(problem)
    neighbors = require("sklearn.neighbors", "tabular")
    left, right = _dense(problem)
    model = neighbors.KNeighborsClassifier(min(5, len(labels)), weights="distance").fit(left, labels)
    return _spread_out(model.predict_proba(right), model.classes_, len(problem.classes))


def logistic_regression(problem: Episode) -> np.ndarray:
    """C from 1e-4 to 1e4 or without a penalty, by 3-fold cross-validation where each class has more than 3 examples; else C = 1."""
    labels = problem.labels[: problem.num_shots]
    if len(np.unique(labels)) < 2:
        return majority(problem)
    linear = require("sklearn.linear_model", "tabular")
    left, right = _dense(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if min(np.bincount(labels)[np.unique(labels)]) > 3:
            select = require("sklearn.model_selection", "tabular")
            search = select.GridSearchCV(linear.LogisticRegression(max_iter=100), {"C": [*10.0 ** np.arange(-4, 5), np.inf]}, cv=3)
            model = search.fit(left, labels).best_estimator_
        else:
            model = linear.LogisticRegression(max_iter=100).fit(left, labels)
    return _spread_out(model.predict_proba(right), model.classes_, len(problem.classes))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _xgboost_settings(rng: np.random.Generator) -> dict[str, float]:
    return {
        "learning_rate": _log_uniform(rng, 1e-5, 1.0),
        "max_depth": int(rng.integers(3, 10)),
        "min_child_weight": _log_uniform(rng, 1e-8, 1e5),
        "subsample": float(rng.uniform(0.5, 1)),
        "colsample_bytree": float(rng.uniform(0.5, 1)),
        "gamma": _log_uniform(rng, 1e-8, 1e2),
        "reg_lambda": _log_uniform(rng, 1e-8, 1e2),
        "reg_alpha": _log_uniform(rng, 1e-8, 1e2),
    }


def xgboost_search(problem: Episode) -> np.ndarray:
    """The best of the default and SEARCHED random settings by 3-fold cross-validation, where each class has more than 3 examples."""
    return xgboost(problem, search=True)


def xgboost(problem: Episode, *, search: bool = False) -> np.ndarray:
    """XGBoost with histograms and native categories, one thread; default settings unless `search`."""
    shots, queries = problem.shots, problem.queries
    seen, numbers = np.unique(problem.labels[: problem.num_shots], return_inverse=True)
    if len(seen) < 2:
        return majority(problem)
    package = require("xgboost", "tabular")
    pandas = require("pandas", "tabular")
    frames = [pandas.DataFrame(index=range(table.num_rows)) for table in (shots, queries)]
    for at, name in enumerate(shots.names):
        column, feature = shots.column(name), str(at)  # XGBoost takes no name with [, ] or <
        words = column.used_words() if column.kind == "category" else []
        if column.kind == "category" and not words:  # missing in every example; XGBoost takes no category without a word
            continue
        for frame, table in zip(frames, (shots, queries), strict=True):
            side = table.column(name)
            if column.kind == "category":
                texts = [side.words[code] if code >= 0 else None for code in side.codes()]
                frame[feature] = pandas.Categorical([text if text in words else None for text in texts], categories=words)
            else:
                frame[feature] = side.values
    if frames[0].empty:
        return majority(problem)
    fixed = {"tree_method": "hist", "enable_categorical": True, "n_jobs": 1, "verbosity": 0}
    model = package.XGBClassifier(**fixed)
    if search and min(np.bincount(numbers)) > 3:
        select = require("sklearn.model_selection", "tabular")
        rng = np.random.default_rng(len(numbers))
        folds = select.StratifiedKFold(3, shuffle=True, random_state=0)
        tried = [{}, *(_xgboost_settings(rng) for _ in range(SEARCHED))]
        scores = [select.cross_val_score(package.XGBClassifier(**fixed, **more), frames[0], numbers, cv=folds).mean() for more in tried]
        model = package.XGBClassifier(**fixed, **tried[int(np.argmax(scores))])
    model.fit(frames[0], numbers)
    return _spread_out(model.predict_proba(frames[1]), seen, len(problem.classes))


BASELINES: dict[str, Predict] = {
    "majority": majority,
    "nearest_neighbours": nearest_neighbours,
    "logistic_regression": logistic_regression,
    "xgboost": xgboost,
}
