"""Metrics by name, and bootstrap intervals over data sets.

Classification metrics take probabilities [rows, classes] and true classes [rows]; class -1 is a class outside the label set, which no
prediction can hit. Regression metrics take predicted and true numbers [rows].
"""

# n rows   c classes   b bins   t data sets

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mmlm.analysis.numbers import mae, r2, rmse, spearman
from mmlm.base.errors import DataError, RecipeError, unknown_name

Kind = Literal["classes", "numbers", "bins"]
SMALLEST_PROBABILITY = 1e-6
RESAMPLES = 10_000


@dataclass(frozen=True)
class Metric:
    """A metric and how to read it. kind: what it is computed from. is_better_high: whether more is better."""

    name: str
    title: str
    kind: Kind
    is_better_high: bool
    compute: Callable[..., float]


METRICS: dict[str, Metric] = {}


def register(name: str, title: str, kind: Kind, *, is_better_high: bool) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Decorator that makes a function known by `name`. Raises RecipeError for a name that is taken."""

    def add(compute: Callable[..., float]) -> Callable[..., float]:
        if name in METRICS:
            raise RecipeError(f"metric {name!r} is registered twice.")
        METRICS[name] = Metric(name, title, kind, is_better_high, compute)
        return compute

    return add


def metric(name: str) -> Metric:
    """The metric of this name. Raises RecipeError with the nearest known name."""
    import mmlm.evaluation.reliability  # noqa: F401  registers its own

    if name not in METRICS:
        raise RecipeError(unknown_name("metric", name, METRICS))
    return METRICS[name]


def checked(p_nc: np.ndarray, truth_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 and classes as int64. Raises DataError for what is neither of these."""
    p_nc, truth_n = np.asarray(p_nc, dtype=np.float64), np.asarray(truth_n)
    if p_nc.ndim != 2 or truth_n.shape != p_nc.shape[:1] or not len(truth_n):
        raise DataError(f"probabilities must be [rows, classes] with a class per row, but have shapes {p_nc.shape} and {truth_n.shape}.")
    if not np.isfinite(p_nc).all() or (p_nc < 0).any() or not np.allclose(p_nc.sum(1), 1, atol=1e-4):
        row = int((~np.isfinite(p_nc).all(1) | (p_nc < 0).any(1) | ~np.isclose(p_nc.sum(1), 1, atol=1e-4)).argmax())
        raise DataError(f"row {row}: probabilities must be finite, not negative and sum to 1, but are {p_nc[row][:8].tolist()}.")
    truth_n = truth_n.astype(np.int64)
    if truth_n.min() < -1 or truth_n.max() >= p_nc.shape[1]:
        raise DataError(f"classes must lie within -1 and {p_nc.shape[1] - 1}, but reach from {truth_n.min()} to {truth_n.max()}.")
    return p_nc, truth_n


@register("accuracy", "accuracy", "classes", is_better_high=True)
def accuracy(p_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """Share of rows whose most probable class is the true one; of equal ones the first counts."""
    p_nc, truth_n = checked(p_nc, truth_n)
    return float((p_nc.argmax(1) == truth_n).mean())


@register("balanced_accuracy", "balanced accuracy", "classes", is_better_high=True)
def balanced_accuracy(p_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their rows that is hit."""
    p_nc, truth_n = checked(p_nc, truth_n)
    right_n = p_nc.argmax(1) == truth_n
    return float(np.mean([right_n[truth_n == c].mean() for c in np.unique(truth_n)]))


@register("macro_f1", "macro F1", "classes", is_better_high=True)
def macro_f1(p_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """Mean F1 over the classes that occur or are predicted."""
    p_nc, truth_n = checked(p_nc, truth_n)
    guess_n = p_nc.argmax(1)
    classes = np.union1d(guess_n, truth_n)
    hits = np.array([((guess_n == c) & (truth_n == c)).sum() for c in classes])
    either = np.array([(guess_n == c).sum() + (truth_n == c).sum() for c in classes])
    return float((2 * hits / either).mean())


@register("nll", "negative log-likelihood", "classes", is_better_high=False)
def nll(p_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """Mean of -ln p(true class), with p no smaller than 1e-6, which is also what a class outside the label set gets."""
    p_nc, truth_n = checked(p_nc, truth_n)
    p_n = np.where(truth_n >= 0, p_nc[np.arange(len(truth_n)), truth_n.clip(0)], 0.0)
    return float(-np.log(p_n.clip(SMALLEST_PROBABILITY)).mean())


@register("brier", "Brier score", "classes", is_better_high=False)
def brier(p_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """Mean over rows of sum_c (p_c - [c is true])^2, from 0 to 2; a class outside the label set adds its 1."""
    p_nc, truth_n = checked(p_nc, truth_n)
    inside_n = truth_n >= 0
    hot_nc = np.zeros_like(p_nc)
    hot_nc[np.flatnonzero(inside_n), truth_n[inside_n]] = 1.0
    return float((((p_nc - hot_nc) ** 2).sum(1) + ~inside_n).mean())


NUMBERS: tuple[tuple[str, str, bool, Callable[[Any, Any], float]], ...] = (
    ("mae", "mean absolute error", False, mae),
    ("rmse", "root mean squared error", False, rmse),
    ("r2", "R2", True, r2),
    ("spearman", "Spearman correlation", True, spearman),
)
for _name, _title, _is_better_high, _compute in NUMBERS:
    register(_name, _title, "numbers", is_better_high=_is_better_high)(_compute)


@register("crps", "CRPS", "bins", is_better_high=False)
def crps(p_nb: np.ndarray, values_b: np.ndarray, truth_n: np.ndarray) -> float:
    """Continuous ranked probability score of a distribution with mass p_b at the number of each bin, in units of the target.

    Mean over rows of E|X - y| - E|X - X'| / 2. A point prediction gets its absolute error. Source: Gneiting & Raftery 2007, eq. 21.
    """
    values_b, truth_n = np.asarray(values_b, dtype=np.float64), np.asarray(truth_n, dtype=np.float64)
    p_nb, _ = checked(p_nb, np.zeros(len(truth_n), dtype=np.int64))
    near_n = (p_nb * np.abs(values_b[None] - truth_n[:, None])).sum(1)
    spread_n = ((p_nb @ np.abs(values_b[:, None] - values_b[None])) * p_nb).sum(1)
    return float((near_n - spread_n / 2).mean())


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(values_t: Sequence[float] | np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean over data sets with the 95 % percentile bootstrap interval, data sets drawn with replacement.

    Raises DataError for no values or one that is not finite.
    """
    array = np.asarray(values_t, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise DataError(f"an interval needs finite values, one per data set, but got an array of shape {array.shape}.")
    rng, means = np.random.default_rng(seed), []
    for start in range(0, resamples, 1000):  # in pieces, so that many data sets do not need much memory
        means.append(array[rng.integers(len(array), size=(min(1000, resamples - start), len(array)))].mean(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high))


def paired_difference(ours_t: Any, theirs_t: Any, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of ours - theirs over the same data sets, with its interval."""
    ours_t, theirs_t = np.asarray(ours_t, dtype=np.float64), np.asarray(theirs_t, dtype=np.float64)
    if ours_t.shape != theirs_t.shape:
        raise DataError(f"a paired difference needs the same data sets, but got {len(ours_t)} and {len(theirs_t)} values.")
    return bootstrap(ours_t - theirs_t, seed=seed, resamples=resamples)


def win_rate(ours_t: Any, theirs_t: Any, *, is_better_high: bool = True) -> float:
    """Share of data sets on which ours is better; a tie counts one half."""
    gap_t = np.asarray(ours_t, dtype=np.float64) - np.asarray(theirs_t, dtype=np.float64)
    gap_t = gap_t if is_better_high else -gap_t
    return float(((gap_t > 0) + 0.5 * (gap_t == 0)).mean())
