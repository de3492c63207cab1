"""Prefix language modelling: a bidirectional start, a causal rest (arXiv:1910.10683, section 3.2.2)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from mmlm.objectives.base import Objective
from mmlm.objectives.config import PrefixConfig
from mmlm.stream import Segment, Stream, cut
from mmlm.vocabulary import Vocabulary


class Prefix(Objective):
    """The prefix carries no loss. It ends before the first token with weight, or at a random token; where this lies within a thing that is
    whole, such as a sweep, all of the thing belongs to the prefix."""

    def __init__(self, config: PrefixConfig) -> None:
        self.config = config

    def prepare(self, stream: Stream, vocabulary: Vocabulary, rng: np.random.Generator) -> Stream:
        """The stream cut at the end of the prefix; the prefix mutual, without weight."""
        weights = torch.cat([_spread(segment) for segment in stream.segments])
        first = int(weights.nonzero()[0]) if bool((weights > 0).any()) else len(weights)
        end = first if self.config.split == "read_only" else int(rng.integers(1, max(len(weights), 2)))
        number = 1 + max((segment.last_mutual for segment in stream.segments), default=0)  # of its own: nothing behind it joins the prefix
        segments, at = [], 0
        for segment in stream.segments:
            head = min(max(end - at, 0), len(segment))
            if head and segment.whole and self.config.split == "random":
                head = len(segment)
            if head:
                segments.append(dataclasses.replace(cut(segment, 0, head), mutual=number, weight=0.0))
            if head < len(segment):
                segments.append(cut(segment, head, len(segment)))
            at += len(segment)
        return dataclasses.replace(stream, segments=segments)


def _spread(segment: Segment) -> Tensor:
    return segment.weight if isinstance(segment.weight, Tensor) else torch.full((len(segment),), float(segment.weight))
