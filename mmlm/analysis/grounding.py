"""How well words are tied to places.

    IoU        area that two boxes share, of the area that they cover; 0 where both are empty
    Acc@t      share of expressions whose box has more than t of IoU
    R@k        share of phrases of which one of the first k boxes does
    F1         of captions: object words with the right box, over all words (all), or over those that both captions have (loc)

Source of F1: the evaluation of ActivityNet-Entities, arXiv:1812.06587, as used for Flickr30k Entities: averaged within each class of
object, then over the classes of the references.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.tokenizers.boxes import Box, Grounded, Phrase


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes [x1, y1, x2, y2]."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    whole = _area(one) + _area(other) - shared
    return shared / whole if whole > 0 else 0.0


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def accuracy_at(found: Sequence[Box | None], true: Sequence[Box], threshold: float = 0.5) -> float:
    """Acc@t; no box is a wrong one. Raises ValueError for other lengths."""
    hits = [box is not None and iou(box, wanted) > threshold for box, wanted in zip(found, true, strict=True)]
    return float(np.mean(hits)) if hits else 0.0


def recall_at(found: Sequence[Sequence[Box]], true: Sequence[Sequence[Box]], k: int = 1, *, is_merged: bool = False) -> float:
    """R@k of phrases, IoU of at least 0.5 with any box of a phrase, or if is_merged with the one around all of them."""
    hits = []
    for boxes, wanted in zip(found, true, strict=True):
        goals = [around(wanted)] if is_merged and wanted else list(wanted)
        hits.append(any(iou(box, goal) >= 0.5 for box in boxes[:k] for goal in goals))
    return float(np.mean(hits)) if hits else 0.0


def around(boxes: Sequence[Box]) -> Box:
    """The box around several."""
    x1, y1, x2, y2 = np.array(boxes).T
    return float(x1.min()), float(y1.min()), float(x2.max()), float(y2.max())


@dataclass(frozen=True)
class GroundedScores:
    """Precision, recall and F1, over all object words and over those that both captions have."""

    precision_all: float
    recall_all: float
    f1_all: float
    precision_loc: float
    recall_loc: float
    f1_loc: float


def last_word(words: str) -> str:
    """The class of a phrase such as 'two large red circles': circle."""
    word = words.split()[-1].strip(".,;:!?").lower() if words.split() else ""
    return lemma(word)


def lemma(word: str) -> str:
    """A noun in the singular, by the common endings of English alone."""
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def grounded_f1(found: Sequence[Grounded], true: Sequence[Grounded], class_of: Callable[[str], str] = last_word) -> GroundedScores:
    """F1_all and F1_loc of captions, each beside its reference. class_of: the class of a phrase's words."""
    precision: dict[str, dict[str, list[float]]] = {"all": defaultdict(list), "loc": defaultdict(list)}
    recall: dict[str, dict[str, list[float]]] = {"all": defaultdict(list), "loc": defaultdict(list)}
    for said, wanted in zip(found, true, strict=True):
        said_of, wanted_of = _by_class(said, class_of), _by_class(wanted, class_of)
        mentioned = {lemma(word.strip(".,;:!?").lower()) for word in wanted.text.split()}
        for name, phrases in said_of.items():
            for phrase in phrases:
                if name in wanted_of:
                    _add(precision, name, _is_right(phrase, wanted_of[name][0]))
                elif name not in mentioned:
                    precision["all"][name].append(0.0)
        for name, phrases in wanted_of.items():
            for phrase in phrases:
                if name in said_of:
                    _add(recall, name, _is_right(said_of[name][0], phrase))
                else:
                    recall["all"][name].append(0.0)
    classes = {name for wanted in true for name in _by_class(wanted, class_of)}
    scores = []
    for kind in ("all", "loc"):
        p, r = _macro(precision[kind], classes), _macro(recall[kind], classes)
        scores += [p, r, 2 * p * r / (p + r) if p + r else 0.0]
    return GroundedScores(*scores)


def _by_class(said: Grounded, class_of: Callable[[str], str]) -> dict[str, list[Phrase]]:
    found: dict[str, list[Phrase]] = {}
    for phrase in said.phrases:
        if phrase.boxes and phrase.end > phrase.start:
            found.setdefault(class_of(said.words(phrase)), []).append(phrase)
    return found


def _is_right(said: Phrase, wanted: Phrase) -> float:
    return float(any(iou(said.boxes[0], box) > 0.5 for box in wanted.boxes))


def _add(kept: Mapping[str, dict[str, list[float]]], name: str, value: float) -> None:
    for kind in kept.values():
        kind[name].append(value)


def _macro(values: Mapping[str, Sequence[float]], classes: set[str]) -> float:
    return sum(float(np.mean(values[name])) for name in classes if values.get(name)) / max(len(classes), 1)
