"""Average precision of things that are found in pictures, as COCO measures it.

Of a class the boxes of all pictures are taken from the surest on. A box is right where its IoU with a true box of its picture and class,
which no surer box has taken, reaches a threshold. Precision is made falling over recall and read at 0, 0.01, ... 1; the mean of these
is the average precision (AP). ap_50 is the mean over the classes at IoU 0.5, ap_50_95 also over 0.5, 0.55, ... 0.95. Of a picture and
class the surest 100 count. Values equal those of the package pycocotools.

Axes: m true boxes   t thresholds   k boxes that were found   r recalls
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.analysis.grounding import iou
from mmlm.tokenizers.boxes import Box

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100


@dataclass(frozen=True)
class Found:
    """A thing in a picture. score: how sure it is, of no account for true things."""

    label: str
    box: Box
    score: float = 1.0


@dataclass(frozen=True)
class Precision:
    """ap_50, ap_50_95: over all classes that there are in truth. by_label: ap_50 of each."""

    ap_50: float
    ap_50_95: float
    by_label: dict[str, float]


def average_precision(found: Sequence[Sequence[Found]], true: Sequence[Sequence[Found]]) -> Precision:
    """The precision of what was found in pictures, each beside the truth. Without true things it is 0.

    Raises ValueError where these are not as many pictures.
    """
    if len(found) != len(true):
        raise ValueError(f"what was found is of {len(found)} pictures, the truth of {len(true)}.")
    mine, wanted = _by_label(found), _by_label(true)
    by_label_t = {label: _of_label(mine.get(label, {}), wanted[label]) for label in sorted(wanted)}
    if not by_label_t:
        return Precision(0.0, 0.0, {})
    means_t = np.mean(list(by_label_t.values()), axis=0)
    return Precision(float(means_t[0]), float(means_t.mean()), {label: float(values_t[0]) for label, values_t in by_label_t.items()})


def _by_label(pictures: Sequence[Sequence[Found]]) -> dict[str, dict[int, list[Found]]]:
    """The things of each class by the number of their picture."""
    kept: dict[str, dict[int, list[Found]]] = {}
    for number, some in enumerate(pictures):
        for each in some:
            kept.setdefault(each.label, {}).setdefault(number, []).append(each)
    return kept


def _of_label(found: Mapping[int, Sequence[Found]], true: Mapping[int, Sequence[Found]]) -> np.ndarray:
    """AP of one class, [t]; its things by the number of their picture."""
    scores: list[float] = []
    hits = [np.zeros((len(THRESHOLDS), 0), dtype=bool)]
    count = sum(map(len, true.values()))
    for number, mine in found.items():
        surest = sorted(mine, key=lambda each: -each.score)[:MOST]
        scores += [each.score for each in surest]
        hits.append(_hits([each.box for each in surest], [each.box for each in true.get(number, ())]))
    order = np.argsort(-np.array(scores), kind="stable")
    right_tk = np.concatenate(hits, axis=1)[:, order].cumsum(axis=1)
    return np.array([_area(right_k, count) for right_k in right_tk])


def _hits(boxes: Sequence[Box], true: Sequence[Box]) -> np.ndarray:
    """Which boxes, the surest first, are right at each threshold, [t, k]."""
    right_tk = np.zeros((len(THRESHOLDS), len(boxes)), dtype=bool)
    if not boxes or not true:
        return right_tk
    iou_km = np.array([[iou(box, other) for other in true] for box in boxes])
    for t, threshold in enumerate(THRESHOLDS):
        is_free_m = np.ones(len(true), dtype=bool)
        for k, iou_m in enumerate(iou_km):
            left_m = np.where(is_free_m, iou_m, -1.0)
            best = len(true) - 1 - int(left_m[::-1].argmax())  # of equal ones the last, as in COCO's code
            if left_m[best] >= threshold:
                right_tk[t, k], is_free_m[best] = True, False
    return right_tk


def _area(right_k: np.ndarray, count: int) -> float:
    """Mean precision over RECALLS. right_k: how many of the first so many boxes are right."""
    recall_k = right_k / count
    precision_k = right_k / np.arange(1, len(right_k) + 1)
    falling_k = np.maximum.accumulate(precision_k[::-1])[::-1]
    at_r = np.searchsorted(recall_k, RECALLS, side="left")
    return float(np.mean([falling_k[at] if at < len(falling_k) else 0.0 for at in at_r]))
