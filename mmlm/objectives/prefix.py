"""Prefix language modelling: a bidirectional start, a causal rest (arXiv:1910.10683, section 3.2.2)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from mmlm.objectives.base import Objective
from mmlm.objectives.config import PrefixConfig
from mmlm.stream import Segment, Stream
from mmlm.vocabulary import Vocabulary


class Prefix(Objective):
    """The prefix carries no loss. It ends before the first token with weight, or at a random token."""

    def __init__(self, config: PrefixConfig) -> None:
        self.config = config

    def prepare(self, stream: Stream, vocabulary: Vocabulary, rng: np.random.Generator) -> Stream:
        """The stream cut at the end of the prefix; the prefix mutual, without weight."""
        weights = torch.cat([_spread(segment) for segment in stream.segments])
        first = int(weights.nonzero()[0]) if bool((weights > 0).any()) else len(weights)
        end = first if self.config.split == "read_only" else int(rng.integers(1, max(len(weights), 2)))
        number = 1 + max((segment.mutual for segment in stream.segments), default=0)  # of its own: nothing behind it joins the prefix
        segments, at = [], 0
        for segment in stream.segments:
            cut = min(max(end - at, 0), len(segment))
            if cut:
                segments.append(dataclasses.replace(_part(segment, 0, cut), mutual=number, weight=0.0))
            if cut < len(segment):
                segments.append(_part(segment, cut, len(segment)))
            at += len(segment)
        return dataclasses.replace(stream, segments=segments)


def _spread(segment: Segment) -> Tensor:
    return segment.weight if isinstance(segment.weight, Tensor) else torch.full((len(segment),), float(segment.weight))


def _part(segment: Segment, start: int, stop: int) -> Segment:
    """Tokens start to stop of a segment."""
    if (start, stop) == (0, len(segment)):
        return segment
    at = torch.arange(len(segment)) if segment.feature_at is None else segment.feature_at
    inside = (at >= start) & (at < stop)

    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[start:stop]

    return dataclasses.replace(
        segment,
        ids=cut(segment.ids),
        features=None if segment.features is None else segment.features[inside],
        feature_at=None if segment.features is None else at[inside] - start,
        weight=segment.weight[start:stop] if isinstance(segment.weight, Tensor) else segment.weight,
        labels=cut(segment.labels),
        hidden=cut(segment.hidden),
        position=cut(segment.position),
        branch=segment.branch[start:stop] if isinstance(segment.branch, Tensor) else segment.branch,
        channels={name: value[start:stop] for name, value in segment.channels.items()},
        tags={name: value[start:stop] for name, value in segment.tags.items()},
    )
