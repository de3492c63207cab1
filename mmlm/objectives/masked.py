"""Masked prediction: tokens, spans or whole segments are hidden and predicted at their own place.

Sources: BERT, arXiv:1810.04805 (80/10/10); SpanBERT, arXiv:1907.10529 (geometric spans). At least one token is hidden in every sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError
from mmlm.objectives.base import Objective
from mmlm.objectives.config import MaskedConfig
from mmlm.stream import NO_LABEL, Segment, Stream, nothing
from mmlm.vocabulary import Vocabulary


class Masked(Objective):
    """Needs the vocabulary range `mask` with one id, which hidden tokens show."""

    shift = False
    causal = False

    def __init__(self, config: MaskedConfig) -> None:
        self.config = config

    def prepare(self, stream: Stream, vocabulary: Vocabulary, rng: np.random.Generator) -> Stream:
        """Hide tokens among those with weight that show their ids. Raises DataError for a sample that has none."""
        parts = [(segment, _candidates(segment)) for segment in stream.segments]
        total = sum(int(where.sum()) for _, where in parts)
        if total == 0:
            raise DataError(f"{stream.source or stream.name}: no token with weight, so nothing can be hidden.")
        chosen = self._choose([int(where.sum()) for _, where in parts], rng)
        segments: list[Segment] = []
        for (segment, where), hide in zip(parts, chosen, strict=True):
            segments += self._hide(segment, where.nonzero()[:, 0][torch.from_numpy(hide)], vocabulary, rng)
        return dataclasses.replace(stream, segments=segments)

    def _choose(self, sizes: list[int], rng: np.random.Generator) -> list[np.ndarray]:
        """For each segment, which of its candidates to hide (bool)."""
        total, config = sum(sizes), self.config
        rate = cosine_share(rng) if config.rate == "cosine" else config.rate
        want = max(1, round(total * rate))
        hidden = np.zeros(total, dtype=bool)
        starts = np.cumsum([0, *sizes[:-1]])
        if config.policy == "token":
            hidden[rng.permutation(total)[:want]] = True
        elif config.policy == "segment":
            filled = [i for i, size in enumerate(sizes) if size]
            for i in rng.permutation(filled)[: max(1, round(len(filled) * rate))]:
                hidden[starts[i] : starts[i] + sizes[i]] = True
        else:
            while hidden.sum() < want:
                length = min(int(rng.geometric(1 / config.mean_span)), want - int(hidden.sum()))
                start = int(rng.integers(total))
                hidden[start : start + length] = True
        return [hidden[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def _hide(self, segment: Segment, hide: Tensor, vocabulary: Vocabulary, rng: np.random.Generator) -> list[Segment]:
        labels = torch.full((len(segment),), NO_LABEL)
        if segment.ids is None or len(hide) == 0:
            return [dataclasses.replace(segment, weight=0.0)]
        labels[hide] = segment.ids[hide]
        draw = torch.from_numpy(rng.random(len(hide)))
        config, shown = self.config, segment.ids.clone()
        random = draw < config.random_share
        keep = ~random & (draw < config.random_share + config.keep_share)
        span = vocabulary.span(segment.modality)
        shown[hide[random]] = torch.from_numpy(rng.integers(len(span), size=int(random.sum())))
        masked = torch.zeros(len(segment), dtype=torch.bool)
        masked[hide[~random & ~keep]] = True
        channels = {name: value.index_fill(0, hide[~keep], nothing(value)) for name, value in segment.channels.items()}  # they tell the id
        return [dataclasses.replace(segment, ids=shown, labels=labels, hidden=masked, channels=channels)]


def cosine_share(rng: np.random.Generator) -> float:
    """A share to hide, cos(pi/2 u) with u uniform (MaskGIT, arXiv:2202.04200, section 3.1): what mask-predict meets on its way."""
    return math.cos(math.pi / 2 * rng.random())


def drawn_cells(shape: Sequence[int], most: float, rng: np.random.Generator) -> Tensor:
    """bool of a shape: true for a share of all cells, each by itself; the share is drawn evenly from 0 up to the most."""
    return torch.from_numpy(rng.random(tuple(shape)) < rng.uniform(0, most))


def _candidates(segment: Segment) -> Tensor:
    if segment.ids is None or segment.ids.ndim > 1:
        return torch.zeros(len(segment), dtype=torch.bool)
    weight = segment.weight if isinstance(segment.weight, Tensor) else torch.full((len(segment),), float(segment.weight))
    shows_ids = torch.ones(len(segment), dtype=torch.bool)
    if segment.features is not None:
        shows_ids[slice(None) if segment.feature_at is None else segment.feature_at] = False
    return (weight > 0) & shows_ids
