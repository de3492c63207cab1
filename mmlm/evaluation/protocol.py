"""Few-shot comparison over held-out tables: the same example rows and the same rows to predict for the model and every baseline.

For each table, number of examples and seed, rows are drawn once. Classes without an example stay in the test. Means are over tables, with
percentile bootstrap intervals over tables; differences are paired by table.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmlm.data.episodes import Episode, classes_of
from mmlm.data.tables import Table
from mmlm.evaluation.baselines import BASELINES, Predict, xgboost_search
from mmlm.evaluation.config import FEWEST_QUERIES, EvaluateConfig
from mmlm.evaluation.metrics import accuracy, bootstrap, brier, nll, paired_difference, win_rate
from mmlm.evaluation.reliability import reliability

MAX_CLASSES = 10
MEASURES = {"accuracy": accuracy, "nll": nll, "brier": brier}


@dataclass
class Comparison:
    """values: {(measure, examples, predictor): {table: mean over draws}}.   seconds: {predictor: CPU seconds}.
    uniform: {examples: {table: accuracy of a blind guess}}.   confidence: (chance, right) of every prediction of the model.
    problems: {(examples, table): the first draw and the model's probabilities}."""

    values: dict[tuple[str, int, str], dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    uniform: dict[int, dict[str, float]] = field(default_factory=dict)
    confidence: list[tuple[float, bool]] = field(default_factory=list)
    problems: dict[tuple[int, str], tuple[Episode, np.ndarray]] = field(default_factory=dict)


def draw(table: Table, shots: int, seed: int, config: EvaluateConfig, held_out: np.ndarray | None = None) -> Episode | None:
    """Example rows, then rows to predict; None where the examples show fewer than two classes (without examples: the column has).

    Classes beyond the ten commonest of the examples are counted as misses: their rows have class -1. A numeric target needs examples, from
    which its bins come. held_out: bool [rows]; these rows alone are predicted, the others are examples; None where they are too few.
    """
    assert table.target is not None
    column = table.column(table.target)
    rng = np.random.default_rng([seed, shots])
    rows = rng.permutation(np.flatnonzero(~column.missing))
    if held_out is not None:
        known = rows[~held_out[rows]][:shots]
        if len(known) < shots:
            return None
        rows = np.concatenate([known, rows[held_out[rows]]])
    rows = rows[: shots + config.max_queries]
    if len(rows) < shots + FEWEST_QUERIES:
        return None
    labels, texts = classes_of(column.take(rows), shots, config.num_bins)
    counts = np.bincount(labels[:shots][labels[:shots] >= 0], minlength=len(texts))
    order = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    order = (order + [c for c in np.unique(labels[labels >= 0]).tolist() if c not in order])[:MAX_CLASSES]
    if len(order) < 2 or (shots and int((counts[order] > 0).sum()) < 2):
        return None
    number = np.full(len(texts), -1)
    number[order] = np.arange(len(order))
    labels = np.where(labels >= 0, number[labels], -1)
    keep = np.r_[labels[:shots] >= 0, np.ones(len(rows) - shots, dtype=bool)]
    rows, labels, shots = rows[keep], labels[keep], int(keep[:shots].sum())
    features = table.drop([table.target]).with_target(None)
    return Episode(features.take(rows), labels, [texts[c] for c in order], shots, table.target)


def compare(
    tables: Sequence[Table],
    model: Predict,
    config: EvaluateConfig,
    baselines: dict[str, Predict] | None = None,
    held_out: Sequence[np.ndarray | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Every measure of the model and the baselines on every table.

    held_out: for each table the rows to predict, or None for any. progress(tables done, tables in all) is called after each.
    """
    result = Comparison()
    chosen = {**BASELINES, "xgboost": xgboost_search} if config.xgboost == "search" else BASELINES
    predictors = {"model": model, **(chosen if baselines is None else baselines)}
    tables = _told_apart(tables)
    for done, (table, held) in enumerate(zip(tables, held_out or [None] * len(tables), strict=True), start=1):
        for shots in config.shots:
            found: dict[tuple[str, str], list[float]] = {}
            for seed in range(config.seeds):
                problem = draw(table, shots, seed, config, held)
                if problem is None:
                    continue
                truth = problem.labels[problem.num_shots :]
                hidden = problem.labels.copy()
                hidden[problem.num_shots :] = -1
                asked = dataclasses.replace(problem, labels=hidden)
                for name, predict in predictors.items():
                    began = time.process_time()
                    chance = predict(asked)
                    result.seconds[name] = result.seconds.get(name, 0.0) + time.process_time() - began
                    for measure, compute in MEASURES.items():
                        found.setdefault((measure, name), []).append(compute(chance, truth))
                    if name == "model":
                        result.confidence += list(zip(chance.max(1).tolist(), (chance.argmax(1) == truth).tolist(), strict=True))
                        result.problems.setdefault((shots, table.name), (problem, chance))
                        result.uniform.setdefault(shots, {}).setdefault(table.name, 1 / len(problem.classes))
            for (measure, name), values in found.items():
                result.values.setdefault((measure, shots, name), {})[table.name] = float(np.mean(values))
        if progress is not None:
            progress(done, len(tables))
    return result


def _told_apart(tables: Sequence[Table]) -> list[Table]:
    """Tables with a number behind a name that several have, such as files of one name in different folders."""
    names = [table.name for table in tables]
    return [
        table if names.count(name) == 1 else dataclasses.replace(table, name=f"{name} ({names[:at].count(name) + 1})")
        for at, (table, name) in enumerate(zip(tables, names, strict=True))
    ]


def summary(result: Comparison, config: EvaluateConfig) -> dict[str, Any]:
    """What metrics.json holds: the model's metrics, the baselines', paired differences, what they were measured on, and of the model how
    far it can be believed: [mean confidence, share right, rows] of bins of equal mass."""
    confidence = np.array(result.confidence, dtype=np.float64).reshape(-1, 2)
    metrics: dict[str, Any] = {}
    bins: list[list[float]] = []
    if len(confidence):
        believed = reliability(confidence[:, 0].clip(0, 1), confidence[:, 1] > 0)
        metrics["calibration_error"] = believed.error
        bins = np.stack([believed.confidence, believed.accuracy, believed.count], axis=1).tolist()
    baselines: dict[str, dict[str, Any]] = {}
    for (measure, shots, name), by_table in result.values.items():
        values = list(by_table.values())
        mean, low, high = bootstrap(values)
        own: dict[str, Any] = {f"{measure}_{shots}": mean}
        if measure == "accuracy":
            own[f"accuracy_{shots}_interval"] = [low, high]
            own[f"accuracy_above_uniform_{shots}"] = mean - float(np.mean(list(result.uniform[shots].values())))
        if name == "model":
            metrics |= own
            continue
        if measure == "accuracy":
            model = [result.values[measure, shots, "model"][table] for table in by_table]
            mean, low, high = paired_difference(model, values)
            own[f"model_minus_this_{shots}"], own[f"model_minus_this_{shots}_interval"] = mean, [low, high]
            own[f"model_wins_{shots}"] = win_rate(model, values)
        baselines.setdefault(name, {}).update(own)
    tables = {shots: len(found) for shots in config.shots if (found := result.values.get(("accuracy", shots, "model")))}
    about = {"split": config.split, "tables": tables, "seeds": config.seeds, "max_queries": config.max_queries, "xgboost": config.xgboost}
    return {"metrics": metrics, "baselines": baselines, "reliability": bins, "data": about, "seconds": result.seconds}
