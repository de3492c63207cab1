"""Where the vectors of an encoder are active, as a mask of what is seen, against the true mask.

How active a vector is, is its length, or how much of its energy lies outside the zero frequency over its numbers. Activation above a
threshold is a pseudo-mask; the threshold is the same for all pictures, of activation that is brought to 0 to 1 in each.
Source: information filtering, arXiv:2310.12973, section 5.

Axes: n vectors of a picture   d numbers of a vector   y, x patches down and across   h, w pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmlm.base.errors import DataError

THRESHOLDS = 20
TINY = 1e-12


@dataclass(frozen=True)
class MaskOverlap:
    """iou: intersection over union with the true masks, mean over the pictures, at the best of the thresholds.   threshold: that one.
    whole: the same of masks that hold all of each picture, which any activation reaches."""

    iou: float
    threshold: float
    whole: float


def activation(tokens_nd: np.ndarray, measure: Literal["length", "frequency"] = "length") -> np.ndarray:
    """How active each vector is, float64 [n]. length: Euclidean.   frequency: share of its energy outside the zero frequency, 0 to 1."""
    tokens_nd = np.asarray(tokens_nd, dtype=np.float64)
    energy_n = np.square(tokens_nd).sum(1)
    if measure == "length":
        return np.sqrt(energy_n)
    constant_n = tokens_nd.shape[1] * np.square(tokens_nd.mean(1))  # by Parseval
    return 1 - constant_n / np.maximum(energy_n, TINY)


def mask_overlap(activations_yx: Sequence[np.ndarray], masks_hw: Sequence[np.ndarray]) -> MaskOverlap:
    """How well activation of patches tells the masks, bool [h, w], whose pixels each belong to the patch above them.

    Raises DataError where there is no picture, numbers differ, or a mask is empty.
    """
    if not activations_yx or len(activations_yx) != len(masks_hw):
        raise DataError(f"{len(activations_yx)} activations and {len(masks_hw)} masks; as many of both are needed, and at least one.")
    if empty := [number for number, mask in enumerate(masks_hw) if not mask.any()]:
        raise DataError(f"mask {empty[0]}: is empty.")
    spread = [_enlarged(_to_one(each), mask.shape) for each, mask in zip(activations_yx, masks_hw, strict=True)]
    levels = np.arange(THRESHOLDS) / THRESHOLDS
    found = [float(np.mean([_iou(each >= level, mask) for each, mask in zip(spread, masks_hw, strict=True)])) for level in levels]
    best = int(np.argmax(found))
    return MaskOverlap(found[best], float(levels[best]), found[0])


def _to_one(values_yx: np.ndarray) -> np.ndarray:
    low, high = float(values_yx.min()), float(values_yx.max())
    return (np.asarray(values_yx, dtype=np.float64) - low) / max(high - low, TINY)


def _enlarged(values_yx: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each pixel has the value of the patch that its middle lies in."""
    rows, columns = (((np.arange(size) + 0.5) * count / size).astype(int) for size, count in zip(shape, values_yx.shape, strict=True))
    return values_yx[rows[:, None], columns]


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())
