"""What has been read of a batch of streams, so that longer ones which begin alike are gone on from.

Axes: b sequences   n choices
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.decoding import Decodable, Decoding, OneCallDecoding, Precision, open_decoding, reads_on
from mmlm.stages import Choice
from mmlm.stream import Segment, Stream, cut, next_position, pad
from mmlm.tokenizers.patterns import Part


class Reader:
    """A decoding and what it has read: of each sequence the stream, of which it may lack the last tokens."""

    def __init__(self, model: Decodable) -> None:
        self.model = model
        self.decoding: Decoding | OneCallDecoding | None = None
        self.streams: list[Stream] = []
        self.counts: list[int] = []

    def holds(self, streams: Sequence[Stream]) -> bool:
        """Whether it has read the beginnings of these streams and nothing else."""
        given = zip(streams, self.streams, self.counts, strict=True)
        return self.decoding is not None and all(_begins_with(stream, old, count) for stream, old, count in given)

    def catch_up(self, streams: Sequence[Stream], room: int, precision: Precision) -> None:
        """Read what of these streams has not been read."""
        if self.holds(streams):
            rest = [_behind(stream, count) for stream, count in zip(streams, self.counts, strict=True)]
            if isinstance(self.decoding, Decoding) or reads_on(rest):
                self._go_on(streams, rest)
                return
        self.close()
        for stream in streams:
            if len(stream) == 0:
                raise RecipeError("a stage must begin behind at least one token, but its prompt is empty.")
        self.decoding = open_decoding(self.model, streams, room, precision, by_reading=True)
        self.streams, self.counts = list(streams), [len(stream) for stream in streams]

    def _go_on(self, streams: Sequence[Stream], rest: Sequence[Stream]) -> None:
        assert self.decoding is not None
        starts = [next_position(_before(stream, count)) for stream, count in zip(streams, self.counts, strict=True)]
        if any(len(stream) for stream in rest):
            self.decoding.read(pad(rest, self.model.vocabulary, starts=starts))
        self.streams, self.counts = list(streams), [len(stream) for stream in streams]

    def scores(self, choice: Choice, part: Part | None) -> Tensor:
        """Scores [b, n] of the next token, or of one of its codebooks."""
        assert self.decoding is not None
        if part is None:
            return self.decoding.scores_among(choice.rows)
        return self.decoding.scores_of_book(choice.span)[:, choice.columns.to(self.model.device)]

    def wrote(self, segments: Sequence[Segment], fed: Sequence[int]) -> None:
        """Know what was written behind the streams, and how many tokens of it were read."""
        pairs = zip(self.streams, segments, strict=True)
        self.streams = [dataclasses.replace(stream, segments=[*stream.segments, segment]) for stream, segment in pairs]
        self.counts = [count + more for count, more in zip(self.counts, fed, strict=True)]

    def close(self) -> None:
        """Give back what the decoding holds."""
        if self.decoding is not None:
            self.decoding.close()
            self.decoding = None


def _begins_with(stream: Stream, old: Stream, count: int) -> bool:
    """Whether the segments of a stream that hold its first tokens are those of another."""
    if stream.axes != old.axes or len(stream) < count:
        return False
    at = 0
    for mine, theirs in zip(stream.segments, old.segments, strict=False):
        if at >= count:
            break
        if not _same(mine, theirs):
            return False
        at += len(mine)
    return at >= count


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[name]) for name, value in a.items())
    if isinstance(a, Segment) and isinstance(b, Segment):
        return all(_same(getattr(a, each.name), getattr(b, each.name)) for each in dataclasses.fields(a))
    return bool(a == b)


def _before(stream: Stream, count: int) -> Stream:
    """The first tokens of a stream."""
    return dataclasses.replace(stream, segments=[each for each, _ in _split(stream, count)])


def _behind(stream: Stream, count: int) -> Stream:
    """What follows the first tokens of a stream."""
    return dataclasses.replace(stream, segments=[each for _, each in _split(stream, count)])


def _split(stream: Stream, count: int) -> list[tuple[Segment, Segment]]:
    """Each segment cut in two: what lies before so many tokens, and the rest."""
    found, at = [], 0
    for segment in stream.segments:
        place = min(max(count - at, 0), len(segment))
        found.append((cut(segment, 0, place), cut(segment, place, len(segment))))
        at += len(segment)
    return found
