"""How near predicted numbers come to true ones. All take two sequences of one length, [n], at least one number each, all finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmlm.base.errors import DataError


def _numbers(guess_n: Any, truth_n: Any) -> tuple[np.ndarray, np.ndarray]:
    guess_n, truth_n = np.asarray(guess_n, dtype=np.float64), np.asarray(truth_n, dtype=np.float64)
    if guess_n.shape != truth_n.shape or guess_n.ndim != 1 or not len(guess_n):
        raise DataError(f"predicted and true numbers must have one equal length, but have shapes {guess_n.shape} and {truth_n.shape}.")
    if not (np.isfinite(guess_n).all() and np.isfinite(truth_n).all()):
        raise DataError("predicted and true numbers must be finite.")
    return guess_n, truth_n


def mae(guess_n: Any, truth_n: Any) -> float:
    """Mean of |predicted - true|."""
    guess_n, truth_n = _numbers(guess_n, truth_n)
    return float(np.abs(guess_n - truth_n).mean())


def rmse(guess_n: Any, truth_n: Any) -> float:
    """Square root of the mean of (predicted - true)^2."""
    guess_n, truth_n = _numbers(guess_n, truth_n)
    return float(np.sqrt(((guess_n - truth_n) ** 2).mean()))


def r2(guess_n: Any, truth_n: Any) -> float:
    """1 - squared error / squared error of the mean of the true numbers; for constant ones 1 if all are hit, else 0."""
    guess_n, truth_n = _numbers(guess_n, truth_n)
    error, total = ((guess_n - truth_n) ** 2).sum(), ((truth_n - truth_n.mean()) ** 2).sum()
    is_constant = bool((truth_n == truth_n[0]).all())  # whose mean may differ from them by an error of rounding
    return float(error == 0) if is_constant or not total else float(1 - error / total)


def _ranks(values_n: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values_n, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def spearman(guess_n: Any, truth_n: Any) -> float:
    """Correlation of the ranks, ties sharing the mean rank; 0 if one side is constant."""
    guess_n, truth_n = _numbers(guess_n, truth_n)
    left, right = (ranks - ranks.mean() for ranks in (_ranks(guess_n), _ranks(truth_n)))
    scale = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / scale) if scale else 0.0


def number_scores(guess_n: Sequence[float], truth_n: Sequence[float]) -> dict[str, float]:
    """Root mean squared error, R2 and rank correlation, by name."""
    return {"rmse": rmse(guess_n, truth_n), "r2": r2(guess_n, truth_n), "spearman": spearman(guess_n, truth_n)}
