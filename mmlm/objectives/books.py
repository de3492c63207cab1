"""One codebook predicted from those below it, for all frames at once: the second half of VALL-E, and mask-predict within a codebook.

Sources: VALL-E, arXiv:2301.02111, section 4.2.2 (a codebook drawn for each sample, all of it hidden); a share of it hidden, drawn as in
MaskGIT, arXiv:2202.04200, section 3.1, for codecs SoundStorm, arXiv:2305.09636. Codebooks above the drawn one are left empty.

Axes: t tokens   u codebooks
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError
from mmlm.objectives.base import Objective
from mmlm.objectives.config import MaskedBooksConfig
from mmlm.objectives.masked import cosine_share
from mmlm.stream import NO_LABEL, Segment, Stream
from mmlm.tokenizers.patterns import EMPTY
from mmlm.vocabulary import Vocabulary


class MaskedBooks(Objective):
    """Tokens with codebooks and weight are the target; those without weight are shown whole. Needs the vocabulary range `mask`."""

    shift = False
    causal = False

    def __init__(self, config: MaskedBooksConfig) -> None:
        self.config = config

    def prepare(self, stream: Stream, vocabulary: Vocabulary, rng: np.random.Generator) -> Stream:
        """Hide a codebook, or a share of it. Raises DataError for a sample without a target."""
        targets = [_target(segment) for segment in stream.segments]
        sizes = [int(target.sum()) for target in targets]
        counts = {segment.ids.shape[1] for segment, size in zip(stream.segments, sizes, strict=True) if size and segment.ids is not None}
        if len(counts) != 1 or (books := counts.pop()) <= self.config.first_book:
            raise DataError(
                f"{stream.source or stream.name}: needs tokens with weight that have more than {self.config.first_book} codebooks, all "
                "equally many."
            )
        book = int(rng.integers(self.config.first_book, books))
        total = sum(sizes)
        hidden = np.ones(total, dtype=bool)
        if self.config.share == "cosine":
            hidden[rng.permutation(total)[max(1, round(total * cosine_share(rng))) :]] = False
        segments = []
        for segment, target, hide in zip(stream.segments, targets, np.split(hidden, np.cumsum(sizes)[:-1]), strict=True):
            changed = hide_book(segment, target, book, torch.from_numpy(hide)) if bool(target.any()) else segment
            weight = segment.weight if bool(target.any()) else 0.0
            segments.append(with_book(dataclasses.replace(changed, weight=weight), book, self.config.channel))
        return dataclasses.replace(stream, segments=segments)


def _target(segment: Segment) -> Tensor:
    """bool [t]: tokens with codebooks that have weight."""
    weight = segment.weight if isinstance(segment.weight, Tensor) else torch.full((len(segment),), float(segment.weight))
    return (weight > 0) & (segment.ids is not None and segment.ids.ndim > 1)


def hide_book(segment: Segment, target_t: Tensor, book: int, hide_n: Tensor) -> Segment:
    """The segment with some cells of a codebook hidden and predicted, and nothing above it, at the target's n tokens."""
    ids = segment.ids
    assert ids is not None
    shown, labels = ids.clone(), torch.full_like(ids, NO_LABEL)
    place = target_t.nonzero()[:, 0]
    shown[place, book + 1 :] = EMPTY
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[place[hide_n], book] = True
    labels[hidden] = ids[hidden]
    return dataclasses.replace(segment, ids=shown, labels=labels, hidden=hidden)


def with_book(segment: Segment, book: int, channel: str | None) -> Segment:
    """The segment with the number of the predicted codebook in a channel of ids, at every token."""
    if channel is None:
        return segment
    return dataclasses.replace(segment, channels={**segment.channels, channel: torch.full((len(segment),), book)})
