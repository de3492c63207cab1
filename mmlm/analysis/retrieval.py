"""Finding texts by pictures and pictures by texts, and naming pictures by texts that were never trained on as classes.

What belongs together is told by the texts: a text belongs to every picture that has the same one. The rank of a query is that of the best
of what belongs to it; where scores are equal, it is the mean over all orders of them, and a share of hits is their share over all orders.
So scores that are all equal give chance.

Axes: n queries   m things to find   k classes
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmlm.base.errors import DataError

CUTS = (1, 5, 10)


class Ranking:
    """Scores [n, m] and what belongs to each query, bool [n, m]. Raises DataError for a query to which nothing belongs, or with a score
    that is no number."""

    def __init__(self, scores_nm: np.ndarray, belongs_nm: np.ndarray) -> None:
        if not belongs_nm.any(axis=1).all():
            raise DataError(f"query {int(np.argmin(belongs_nm.any(axis=1)))}: nothing belongs to it.")
        if (unknown_n := np.isnan(scores_nm).any(axis=1)).any():
            raise DataError(f"query {int(np.argmax(unknown_n))}: has a score that is no number.")
        best_n1 = np.where(belongs_nm, scores_nm, -np.inf).max(axis=1, keepdims=True)
        self.above_n = (scores_nm > best_n1).sum(1)
        self.equal_n = ((scores_nm == best_n1) & ~belongs_nm).sum(1)
        self.own_n = ((scores_nm == best_n1) & belongs_nm).sum(1)

    def recall(self, most: int) -> float:
        """Percent of the queries to which something belongs among the first `most`."""
        missed_n = (self.above_n < most).astype(np.float64)  # share of the orders in which the first places hold nothing of the query's own
        for place in range(most):
            is_free_n = place >= self.above_n
            left_n = np.maximum(self.equal_n - (place - self.above_n), 0)
            missed_n *= np.where(is_free_n, left_n / np.maximum(left_n + self.own_n, 1), 1.0)
        return float(100 * ((self.above_n < most) - missed_n).mean())

    @property
    def median_rank(self) -> float:
        """Of the best of what belongs to a query, from 1 on."""
        return float(np.median(self.above_n + (self.equal_n + self.own_n + 1) / (self.own_n + 1)))


def retrieval(scores_nm: np.ndarray, picture_texts: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, float]:
    """Scores of n pictures and m texts. i2t_r1, ..., t2i_r10: percent; i2t_median, t2i_median: ranks; mean_r1: mean of both directions."""
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    belongs_nm = np.zeros((len(picture_texts), len(texts)), dtype=bool)
    for row_m, own in zip(belongs_nm, picture_texts, strict=True):
        row_m[[place for text in own for place in places.get(text, ())]] = True
    both = {"i2t": Ranking(scores_nm, belongs_nm), "t2i": Ranking(scores_nm.T, belongs_nm.T)}
    found = {f"{way}_r{most}": ranking.recall(most) for way, ranking in both.items() for most in CUTS}
    found |= {f"{way}_median": ranking.median_rank for way, ranking in both.items()}
    return {"mean_r1": (found["i2t_r1"] + found["t2i_r1"]) / 2, **found}


def similarity(a_nd: np.ndarray, b_md: np.ndarray) -> np.ndarray:
    """Cosines float32 [n, m] of two sets of vectors; 0 for a vector of zeros. Raises DataError where they are not of one size."""
    a, b = (np.asarray(each, dtype=np.float32) for each in (a_nd, b_md))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DataError(f"vectors are compared as [n, d] and [m, d], but these are {list(a.shape)} and {list(b.shape)}.")
    found: np.ndarray = _unit(a) @ _unit(b).T
    return found


def sentences(label: str, templates: Sequence[str]) -> list[str]:
    """A class in words: its name, hyphens as spaces, in place of the braces of each template."""
    return [template.replace("{}", label.replace("-", " ")) for template in templates]


def class_vectors(vectors_tkd: np.ndarray) -> np.ndarray:
    """Vectors [k, d] of classes from those of t templates: the mean of their directions, of length 1."""
    mean_kd = _unit(vectors_tkd).mean(axis=0)
    return _unit(mean_kd)


def zero_shot(scores_nk: np.ndarray, truth_n: Sequence[int]) -> dict[str, float]:
    """zero_shot_1, zero_shot_5: percent whose class is first, or among five.   zero_shot_class: first, as a mean over the classes."""
    truth = np.asarray(truth_n)
    belongs_nk = truth[:, None] == np.arange(scores_nk.shape[1])
    classes = [Ranking(scores_nk[truth == each], belongs_nk[truth == each]).recall(1) for each in np.unique(truth)]
    ranking = Ranking(scores_nk, belongs_nk)
    return {"zero_shot_1": ranking.recall(1), "zero_shot_5": ranking.recall(5), "zero_shot_class": float(np.mean(classes))}


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
