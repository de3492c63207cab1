"""Few-shot comparison over held-out tables: the same example rows and the same rows to predict for the model and every baseline.

For each table, number of examples and seed, rows are drawn once. Classes without an example stay in the test. Means are over tables, with
percentile bootstrap intervals over tables; differences are paired by table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmlm.data.episodes import classes_of
from mmlm.data.tables import Table
from mmlm.evaluation.baselines import BASELINES, Predict
from mmlm.evaluation.config import EvaluateConfig

MAX_CLASSES = 10
BOOTSTRAP = 2000


@dataclass
class Comparison:
    """accuracy, log_loss: {(shots, predictor): {table: mean over seeds}}. seconds: {predictor: total}. confidence: (chance, right)."""

    accuracy: dict[tuple[int, str], dict[str, float]] = field(default_factory=dict)
    log_loss: dict[tuple[int, str], dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    confidence: list[tuple[float, bool]] = field(default_factory=list)


def draw(table: Table, shots: int, seed: int, config: EvaluateConfig) -> tuple[Table, np.ndarray, Table, np.ndarray, int] | None:
    """(example rows, their classes, rows to predict, their classes, number of classes); None where the examples show fewer than two.

    Classes beyond the ten commonest of the examples are counted as misses: their rows have class -1.
    """
    assert table.target is not None
    column = table.column(table.target)
    rng = np.random.default_rng([seed, shots])
    rows = rng.permutation(np.flatnonzero(~column.missing))[: shots + config.max_queries]
    if len(rows) < shots + 8:
        return None
    labels, classes = classes_of(column.take(rows), shots, config.num_bins)
    seen = [int(c) for c in np.argsort(-np.bincount(labels[:shots][labels[:shots] >= 0], minlength=1), kind="stable")]
    order = [c for c in seen if (labels[:shots] == c).any()]
    order = (order + [c for c in np.unique(labels[labels >= 0]).tolist() if c not in order])[:MAX_CLASSES]
    if len({int(label) for label in labels[:shots]} & set(order)) < 2:
        return None
    number = np.full(max(len(classes), 1), -1)
    number[order] = np.arange(len(order))
    labels = np.where(labels >= 0, number[labels], -1)
    keep = np.r_[labels[:shots] >= 0, np.ones(len(rows) - shots, dtype=bool)]
    rows, labels, shots = rows[keep], labels[keep], int(keep[:shots].sum())
    features = table.drop([table.target]).with_target(None) if table.target in table.names else table
    return features.take(rows[:shots]), labels[:shots], features.take(rows[shots:]), labels[shots:], len(order)


def compare(tables: Sequence[Table], model: Predict, config: EvaluateConfig, baselines: dict[str, Predict] | None = None) -> Comparison:
    """Accuracy and log-loss of the model and the baselines on every table."""
    result = Comparison()
    predictors = {"model": model, **(BASELINES if baselines is None else baselines)}
    for table in tables:
        for shots in config.shots:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in predictors}
            for seed in range(config.seeds):
                drawn = draw(table, shots, seed, config)
                if drawn is None:
                    continue
                examples, labels, queries, truth, count = drawn
                for name, predict in predictors.items():
                    began = time.process_time()
                    chance = predict(examples, labels, queries, count)
                    result.seconds[name] = result.seconds.get(name, 0.0) + time.process_time() - began
                    right = chance.argmax(1) == truth
                    given = np.where(truth >= 0, chance[np.arange(len(truth)), truth.clip(0)], 1e-6)
                    found[name].append((float(right.mean()), float(-np.log(given.clip(1e-6)).mean())))
                    if name == "model":
                        result.confidence += list(zip(chance.max(1).tolist(), right.tolist(), strict=True))
            for name, pairs in found.items():
                if pairs:
                    accuracy, loss = np.mean(pairs, axis=0)
                    result.accuracy.setdefault((shots, name), {})[table.name] = float(accuracy)
                    result.log_loss.setdefault((shots, name), {})[table.name] = float(loss)
    return result


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % percentile bootstrap interval of a mean over tables."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(BOOTSTRAP, len(array)))
    low, high = np.quantile(array[draws].mean(1), [0.025, 0.975])
    return float(array.mean()), float(low), float(high)


def calibration_error(confidence: Sequence[tuple[float, bool]], bins: int = 15) -> float:
    """Expected calibration error with bins of equal mass: the mean gap between confidence and accuracy."""
    if not confidence:
        return float("nan")
    ordered = sorted(confidence)
    parts = np.array_split(np.array(ordered, dtype=np.float64), min(bins, len(ordered)))
    return float(sum(len(part) * abs(part[:, 0].mean() - part[:, 1].mean()) for part in parts) / len(ordered))


def summary(result: Comparison, config: EvaluateConfig) -> dict[str, Any]:
    """What metrics.json holds: the model's metrics, the baselines', paired differences, and what they were measured on."""
    metrics: dict[str, Any] = {"calibration_error": calibration_error(result.confidence)}
    baselines: dict[str, dict[str, Any]] = {}
    for (shots, name), by_table in result.accuracy.items():
        mean, low, high = interval(list(by_table.values()))
        own = {
            f"accuracy_{shots}": mean,
            f"accuracy_{shots}_interval": [low, high],
            f"log_loss_{shots}": float(np.mean(list(result.log_loss[shots, name].values()))),
        }
        if name == "model":
            metrics |= own
            continue
        model = result.accuracy[shots, "model"]
        mean, low, high = interval([model[table] - value for table, value in by_table.items()])
        own[f"model_minus_this_{shots}"], own[f"model_minus_this_{shots}_interval"] = mean, [low, high]
        own[f"model_wins_{shots}"] = float(np.mean([model[table] > value for table, value in by_table.items()]))
        baselines.setdefault(name, {}).update(own)
    tables = {shots: len(result.accuracy[shots, "model"]) for shots in config.shots if (shots, "model") in result.accuracy}
    about = {"split": config.split, "tables": tables, "seeds": config.seeds, "max_queries": config.max_queries}
    return {"metrics": metrics, "baselines": baselines, "data": about, "seconds": result.seconds}
