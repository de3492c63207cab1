"""Numbers as classes: quantile bins of a target, their texts, and the number that a distribution over bins stands for.

Source: TabuLa (arXiv:2406.12031). Edges must come from training rows only; taking them from the whole column, as the published
code does, tells the model about the rows it is to predict. An edge is the number with the fewest digits between the two
neighbouring values, which puts every row into the same bin as the quantile itself.
"""

from __future__ import annotations

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.tables import number_texts


def quantile_bins(values: np.ndarray, n_bins: int) -> np.ndarray:
    """Rising edges [at most n_bins - 1] that cut the values into bins of equal size, to one row where all values are distinct.

    Missing values are left out; where many values are equal, bins are joined. Raises DataError for fewer than two distinct
    values.
    """
    if n_bins < 2:
        raise DataError(f"n_bins must be at least 2, but is {n_bins}.")
    values = np.asarray(values, dtype=np.float64)
    ordered = np.sort(values[~np.isnan(values)])
    if len(ordered) == 0 or ordered[0] == ordered[-1]:
        raise DataError(f"cannot be cut into {n_bins} bins: it has fewer than two distinct values.")
    uppers = np.unique(ordered[len(ordered) * np.arange(1, n_bins) // n_bins])
    uppers = uppers[uppers > ordered[0]]
    if len(uppers) == 0:
        uppers = ordered[ordered > ordered[0]][:1]
    lowers = ordered[np.searchsorted(ordered, uppers, side="left") - 1]
    return np.array([_roundest(low, high) for low, high in zip(lowers.tolist(), uppers.tolist())])


def _roundest(low: float, high: float) -> float:
    """The number with the fewest digits that is above `low` and at most `high`."""
    if low < 0 <= high:
        return 0.0
    middle = low + (high - low) / 2
    for digits in range(17):
        for number in (middle, high):
            if low < (rounded := float(f"{number:.{digits}e}")) <= high:
                return rounded
    return high


def assign(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value, int64: the number of edges at or below it; -1 where missing."""
    values = np.asarray(values, dtype=np.float64)
    return np.where(np.isnan(values), -1, np.searchsorted(edges, values, side="right"))


def bin_labels(edges: np.ndarray) -> list[str]:
    """The texts of the bins: "less than a", "between a and b", "greater than b"."""
    texts = [str(text) for text in number_texts(np.asarray(edges))]
    between = [f"between {low} and {high}" for low, high in zip(texts, texts[1:])]
    return [f"less than {texts[0]}", *between, f"greater than {texts[-1]}"]


def bin_means(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Mean of the training values inside each bin [bins]; of a bin without any, the middle of its edges or its one edge."""
    values = np.asarray(values, dtype=np.float64)
    bins = assign(values, edges)
    counts = np.bincount(bins[bins >= 0], minlength=len(edges) + 1)
    sums = np.bincount(bins[bins >= 0], weights=values[bins >= 0], minlength=len(edges) + 1)
    middles = (np.concatenate([edges[:1], edges]) + np.concatenate([edges, edges[-1:]])) / 2
    return np.where(counts > 0, sums / np.maximum(counts, 1), middles)
