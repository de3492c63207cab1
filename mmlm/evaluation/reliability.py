"""How far probabilities can be believed: reliability and calibration errors. numpy only."""

# n rows   c classes

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmlm.base.errors import DataError
from mmlm.evaluation.metrics import checked, register

Bins = Literal["width", "mass"]


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: per bin that holds rows, their mean confidence, the share that is right, and their number."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Sum over bins of count / n * |accuracy - confidence|."""
        return float((self.count * np.abs(self.accuracy - self.confidence)).sum() / self.count.sum())


def reliability(confidence_n: np.ndarray, right_n: np.ndarray, *, bins: int = 15, by: Bins = "mass") -> Reliability:
    """Bins of confidence: "width" cuts 0 to 1 into equal parts (a value on a border belongs below), "mass" the rows.

    Rows of equal confidence stay in one bin. Raises DataError for confidences outside 0 to 1.
    """
    confidence_n, right_n = np.asarray(confidence_n, dtype=np.float64), np.asarray(right_n, dtype=np.float64)
    if confidence_n.ndim != 1 or not len(confidence_n) or confidence_n.shape != right_n.shape:
        raise DataError(f"confidences and hits must have one equal length, but have shapes {confidence_n.shape} and {right_n.shape}.")
    if not ((confidence_n >= 0) & (confidence_n <= 1)).all():
        raise DataError("a confidence must lie within 0 and 1.")
    if by == "width":
        bin_n = np.searchsorted(np.arange(1, bins) / bins, confidence_n, side="left")
    else:
        ordered = np.sort(confidence_n)
        edges = np.unique(ordered[len(ordered) * np.arange(1, bins) // bins])
        bin_n = np.searchsorted(edges, confidence_n, side="right")
    count = np.bincount(bin_n)
    kept = count > 0
    sums = [np.bincount(bin_n, weights=values)[kept] / count[kept] for values in (confidence_n, right_n)]
    return Reliability(sums[0], sums[1], count[kept])


def _top(p_nc: np.ndarray, truth_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p_nc, truth_n = checked(p_nc, truth_n)
    return p_nc.max(1).clip(0, 1), p_nc.argmax(1) == truth_n


@register("ece", "calibration error", "classes", is_better_high=False)
def ece(p_nc: np.ndarray, truth_n: np.ndarray, *, bins: int = 15, by: Bins = "mass") -> float:
    """Expected calibration error of the most probable class."""
    return reliability(*_top(p_nc, truth_n), bins=bins, by=by).error


@register("debiased_ece", "debiased calibration error", "classes", is_better_high=False)
def debiased_ece(p_nc: np.ndarray, truth_n: np.ndarray, *, bins: int = 15, by: Bins = "mass") -> float:
    """Root of the squared calibration error less what chance alone adds to it; 0 where chance explains all. Bins of one row are left out.

    Source: Verified Uncertainty Calibration, arXiv:1909.10155, definition 5.
    """
    found = reliability(*_top(p_nc, truth_n), bins=bins, by=by)
    several = found.count > 1
    if not several.any():
        return 0.0
    accuracy, count = found.accuracy[several], found.count[several]
    squared = (accuracy - found.confidence[several]) ** 2 - accuracy * (1 - accuracy) / (count - 1)
    return float(np.sqrt(max(0.0, (count * squared).sum() / count.sum())))


@register("classwise_ece", "classwise calibration error", "classes", is_better_high=False)
def classwise_ece(p_nc: np.ndarray, truth_n: np.ndarray, *, bins: int = 15, by: Bins = "width") -> float:
    """Mean over classes of the calibration error of p(class) as the chance of that class."""
    p_nc, truth_n = checked(p_nc, truth_n)
    return float(np.mean([reliability(p_nc[:, c].clip(0, 1), truth_n == c, bins=bins, by=by).error for c in range(p_nc.shape[1])]))


def auroc(score_n: np.ndarray, positive_n: np.ndarray) -> float:
    """Chance that a positive row scores above a negative one, ties one half (Mann-Whitney). Raises DataError for one kind only."""
    score_n, positive_n = np.asarray(score_n, dtype=np.float64), np.asarray(positive_n, dtype=bool)
    positives, negatives = int(positive_n.sum()), int((~positive_n).sum())
    if not positives or not negatives:
        raise DataError(f"AUROC needs rows of both kinds, but there are {positives} positive and {negatives} negative ones.")
    _, inverse, counts = np.unique(score_n, return_inverse=True, return_counts=True)
    rank_n = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return float((rank_n[positive_n].sum() - positives * (positives + 1) / 2) / (positives * negatives))
