"""Boxes as words: location bins, texts whose phrases carry boxes, and reading them back whatever was written.

    text   := (WORDS | group)* end
    group  := <obj> WORDS box+ </obj>
    box    := loc loc loc loc                      x1 y1 x2 y2 with x2 > x1 and y2 > y1; of other boxes as many as they have numbers

A box of a picture is four numbers from 0 to 1: shares of its own width and height, origin at the top left, y down. So bins do not depend on
the size to which a picture is brought. Other codecs of them are in mmlm.tokenizers.box_codecs, boxes in space in boxes3d. What is written
is a list of pieces, each of ids of one range: `text`, `obj` (0 opens, 1 closes) and `loc`.

Source: UniTAB, arXiv:2111.12085, and its code, which rounds down (`floor`) into 200 bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from mmlm.base.errors import DataError
from mmlm.stream import Segment
from mmlm.tokenizers.base import SavedConfig
from mmlm.tokenizers.config import AbsoluteBoxesConfig, BinsConfig, BoxesConfig

Box: TypeAlias = tuple[float, ...]  # four numbers in a picture, seven in space
Piece: TypeAlias = tuple[str, list[int]]  # a range, and ids of it

TEXT, OBJ, LOC = "text", "obj", "loc"
OPEN, CLOSE = 0, 1

LOC_OUTSIDE = "loc outside a group"  # dropped
BOX_COUNT = "loc run is no whole number of boxes"  # whole boxes are kept from the front; without any the words stay, ungrounded
TEXT_AFTER_BOX = "words after a box"  # the group is closed before them
NESTED = "group within a group"  # closes the first
UNCLOSED = "group is not closed"  # closed at the end
STRAY_CLOSE = "close without a group"  # ignored
EMPTY = "group without words"  # a box that belongs to no words
ORDER = "corners out of order"  # swapped; without extent the box stays, with an area of 0
FOREIGN = "id of another range"  # dropped


@dataclass(frozen=True)
class Phrase:
    """Characters start to end of a text and the boxes of what they name. Without words start is end. scores: how sure each box is, from 0
    to 1, where that is known; no part of what is said."""

    start: int
    end: int
    boxes: tuple[Box, ...]
    scores: tuple[float, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Grounded:
    """A text with the boxes of its phrases, in the order of the text. faults: (what was wrong, at which token) in what was read."""

    text: str
    phrases: tuple[Phrase, ...] = ()
    faults: tuple[tuple[str, int], ...] = ()

    def words(self, phrase: Phrase) -> str:
        """What a phrase says."""
        return self.text[phrase.start : phrase.end]


class BoxBins(SavedConfig):
    """Base of the kinds of boxes, each of `count` numbers: ids of the range `loc` and back; `obj` opens and closes groups."""

    count: int
    file = "boxes.json"

    def __init__(self, config: BinsConfig) -> None:
        self.config = config

    @property
    def sizes(self) -> dict[str, int]:
        """The vocabulary ranges and their sizes."""
        return {OBJ: 2, LOC: self.config.num_bins}

    def bins(self, box: Sequence[float]) -> list[int]:
        """The bins of a box. Raises DataError for one that is none."""
        raise NotImplementedError

    def box(self, bins: Sequence[int]) -> Box:
        """The box of `count` bins as they are."""
        raise NotImplementedError

    def rank(self, box: Box) -> Box:
        """By which the boxes of one phrase are ordered."""
        raise NotImplementedError

    def is_fault(self, bins: Sequence[int]) -> bool:
        """Whether these could be the bins of no box."""
        return False

    def in_order(self, bins: list[int]) -> list[int]:
        """The nearest bins of a box, where these are a fault."""
        return bins

    def following(self, begun: Sequence[int]) -> range:
        """The bins that may follow those of a box that is begun."""
        return range(self.config.num_bins)

    def encode(self, box: Sequence[float]) -> Segment:
        """A box as a segment of `count` tokens, each with loss weight 1."""
        return Segment(LOC, torch.tensor(self.bins(box)), weight=1.0)

    def decode(self, segment: Segment) -> Box:
        """The box of a segment of `count` tokens."""
        assert segment.ids is not None
        return self.box(segment.ids.tolist())


def checked_share(box: Sequence[float]) -> tuple[float, float, float, float]:
    """The corners of a box of a picture. Raises DataError where they are swapped or not within 0 and 1."""
    x1, y1, x2, y2 = (float(value) for value in box)
    if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
        raise DataError(f"box {[round(float(v), 4) for v in box]}: 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 must hold.")
    return x1, y1, x2, y2


class BoxTokenizer(BoxBins):
    """Boxes of a picture, [x1, y1, x2, y2] as shares of its sides."""

    count = 4
    config: BoxesConfig | AbsoluteBoxesConfig

    def bins(self, box: Sequence[float]) -> list[int]:
        """The four bins of a box. Raises DataError where its corners are swapped or not within 0 and 1."""
        x1, y1, x2, y2 = checked_share(box)
        last = self.config.num_bins - 1
        lower = [min(self._bin(value), last - 1) for value in (x1, y1)]  # a box has an extent in bins too
        return [*lower, *(max(self._bin(value), at + 1) for value, at in zip((x2, y2), lower, strict=True))]

    def _bin(self, value: float) -> int:
        scaled = value * (self.config.num_bins - 1)
        return int(scaled) if isinstance(self.config, BoxesConfig) and self.config.rounding == "floor" else int(scaled + 0.5)

    def box(self, bins: Sequence[int]) -> Box:
        """The box of four bins as they are."""
        last = self.config.num_bins - 1
        x1, y1, x2, y2 = (index / last for index in bins)
        return x1, y1, x2, y2

    def rank(self, box: Box) -> Box:
        """From the top down, then from the left."""
        return box[1], box[0]

    def in_order(self, bins: list[int]) -> list[int]:
        """Swapped corners put right; without extent a box stays as it is, with an area of 0."""
        x1, y1, x2, y2 = bins
        return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]

    def is_fault(self, bins: Sequence[int]) -> bool:
        """Whether corners are out of order, or a box has no extent."""
        return bins[2] <= bins[0] or bins[3] <= bins[1]

    def following(self, begun: Sequence[int]) -> range:
        """The second corner lies beyond the first, which leaves a bin for that."""
        last = self.config.num_bins
        return range(last - 1) if len(begun) < 2 else range(begun[len(begun) - 2] + 1, last)


def without_overlaps(phrases: Sequence[Phrase]) -> tuple[list[Phrase], int]:
    """(phrases in the order of the text, of two that overlap the longer one; how many were left out)."""
    kept: list[Phrase] = []
    for phrase in sorted(phrases, key=lambda each: (each.start - each.end, each.start)):
        if all(phrase.end <= other.start or phrase.start >= other.end for other in kept):
            kept.append(phrase)
    return sorted(kept, key=lambda each: each.start), len(phrases) - len(kept)


def serialize(said: Grounded, ids: Callable[[list[str]], list[list[int]]], boxes: BoxBins) -> list[Piece]:
    """The pieces of a text. ids: a text tokenizer's, of several texts.

    The space before a phrase belongs to it, as to every later word of a byte-level BPE. Phrases without words come last, for themselves.
    Raises DataError for a phrase beyond the text and for phrases that overlap.
    """
    cuts, at = list[tuple[int, int, Phrase | None]](), 0
    ordered = sorted(said.phrases, key=lambda each: (each.start == each.end, each.start))
    for phrase in ordered:
        if phrase.start == phrase.end:
            cuts += [(at, len(said.text), None)]
            at = len(said.text)
            cuts += [(at, at, phrase)]
            continue
        if not at <= phrase.start < phrase.end <= len(said.text):
            raise DataError(f"phrase {phrase.start} to {phrase.end} overlaps another one or leaves the text ({len(said.text)} characters).")
        start = phrase.start - 1 if phrase.start > at and said.text[phrase.start - 1] == " " else phrase.start
        cuts += [(at, start, None), (start, phrase.end, phrase)]
        at = phrase.end
    cuts.append((at, len(said.text), None))
    pieces: list[Piece] = []
    for (start, end, held), words in zip(cuts, ids([said.text[start:end] for start, end, _ in cuts]), strict=True):
        text: list[Piece] = [(TEXT, words)] if start < end else []
        if held is None:
            pieces += text
            continue
        found = [index for box in sorted(held.boxes, key=boxes.rank) for index in boxes.bins(box)]
        pieces += [(OBJ, [OPEN]), *text, (LOC, found), (OBJ, [CLOSE])]
    return pieces


@dataclass
class _Group:
    start: int
    has_words: bool = False
    bins: list[int] = field(default_factory=list)
    word_logs: list[float] = field(default_factory=list)
    bin_logs: list[float] = field(default_factory=list)


class _Reading:
    """What has been read of a text so far."""

    def __init__(self, decode: Callable[[list[int]], str], boxes: BoxBins, last_four: bool, logs: Sequence[float]) -> None:
        self.decode, self.boxes, self.last_four, self.logs = decode, boxes, last_four, logs
        self.text: list[str] = []
        self.length = 0
        self.words: list[int] = []
        self.group: _Group | None = None
        self.phrases: list[Phrase] = []
        self.faults: list[tuple[str, int]] = []

    def token(self, name: str, index: int, place: int) -> None:
        """Read one token."""
        if name == TEXT:
            if self.group is not None and self.group.bins:
                self.fault(TEXT_AFTER_BOX, place)
                self.close(place)
            self.words.append(index)
            if self.group is not None and self.logs:
                self.group.word_logs.append(self.logs[place])
        elif name == LOC:
            if self.group is None:
                self.fault(LOC_OUTSIDE, place)
            else:
                self.flush()
                self.group.bins.append(index)
                self.group.bin_logs += [self.logs[place]] if self.logs else []
        elif name == OBJ and index == OPEN:
            if self.group is not None:
                self.fault(NESTED, place)
                self.close(place)
            self.flush()
            self.group = _Group(self.length)
        elif name == OBJ:
            if self.group is None:
                self.fault(STRAY_CLOSE, place)
            else:
                self.close(place)
        else:
            self.fault(FOREIGN, place)

    def fault(self, code: str, place: int) -> None:
        """Take a note."""
        self.faults.append((code, place))

    def flush(self) -> None:
        """Words that have been read become text."""
        if self.words:
            said = self.decode(self.words)
            self.text.append(said)
            self.length += len(said)
            self.words = []
            if self.group is not None:
                self.group.has_words |= bool(said.strip())

    def close(self, place: int) -> None:
        """The group ends."""
        self.flush()
        group = self.group
        assert group is not None
        self.group = None
        size = self.boxes.count
        bins = group.bins[-size:] if self.last_four else group.bins
        logs = group.bin_logs[-size:] if self.last_four else group.bin_logs
        if len(bins) % size or not bins:
            self.fault(BOX_COUNT, place)
        starts = range(0, len(bins) - size + 1, size)
        boxes = tuple(self.box(bins[at : at + size], place) for at in starts)
        scores = tuple(_sureness([*group.word_logs, *logs[at : at + size]]) for at in starts) if logs else ()
        if not group.has_words:
            self.fault(EMPTY, place)
        if not boxes:
            return
        start, end = group.start, self.length
        if group.has_words:
            said = "".join(self.text)[start:end]
            start, end = start + len(said) - len(said.lstrip()), end - len(said) + len(said.rstrip())
        else:
            end = start
        self.phrases.append(Phrase(start, end, boxes, scores))

    def box(self, bins: list[int], place: int) -> Box:
        """A box, its corners in order."""
        if self.boxes.is_fault(bins):
            self.fault(ORDER, place)
        return self.boxes.box(self.boxes.in_order(bins))


def _sureness(logs: Sequence[float]) -> float:
    """The geometric mean of probabilities."""
    return math.exp(sum(logs) / len(logs))


def parse(
    tokens: Iterable[tuple[str, int]],
    decode: Callable[[list[int]], str],
    boxes: BoxBins,
    *,
    last_four: bool = False,
    logs: Sequence[float] = (),
) -> Grounded:
    """What tokens (range, id) say. Never raises for what they are; `faults` tells what was mended, by the codes above.

    last_four: of the bins of a group only those of the last box are read, as UniTAB's code does. logs: the log-probability of each
    token; then a box has a score, the geometric mean of the probabilities of its bins and of the words of its group.
    """
    reading, place = _Reading(decode, boxes, last_four, logs), -1
    for place, (name, index) in enumerate(tokens):
        reading.token(name, index, place)
    if reading.group is not None:
        reading.fault(UNCLOSED, place)
        reading.close(place)
    reading.flush()
    return Grounded("".join(reading.text), tuple(reading.phrases), tuple(reading.faults))


class GroundedGrammar:
    """Which ids of a vocabulary may follow, so that what is written has no fault. room: tokens that may be written; a group is begun only
    where it can be closed within them.

    spans: {range: its ids in the vocabulary} of text, obj and loc.   end: the id that ends a text.   boxes: their kind.   blank: ids of
    `text` that show nothing, as white space alone; no group begins with one, so that each has words.   is_one_group: a group and nothing
    else is written, as an answer that points at one thing is.   has_groups_alone: there are no words between groups, as where things are
    listed.
    """

    def __init__(
        self,
        spans: dict[str, range],
        end: int,
        room: int,
        boxes: BoxBins,
        *,
        blank: Collection[int] = (),
        is_one_group: bool = False,
        has_groups_alone: bool = False,
    ) -> None:
        self.text, self.blank = spans[TEXT], blank
        self.span, self.end, self.room, self.boxes, self.is_one_group = spans, end, room, boxes, is_one_group
        self.has_groups_alone = has_groups_alone
        self.open, self.close = spans[OBJ][OPEN], spans[OBJ][CLOSE]
        if room < (boxes.count + 4 if is_one_group else 1):
            raise DataError(f"room for {room} tokens is too little: a group takes {boxes.count + 4} with the end, a text 1.")

    def allowed(self, written: Sequence[int]) -> Sequence[int] | range:
        """The ids that may follow; none behind the end."""
        if written and written[-1] == self.end:
            return []
        at = next((place for place in reversed(range(len(written))) if written[place] in (self.open, self.close)), -1)
        left, size = self.room - len(written), self.boxes.count
        if at < 0 or written[at] == self.close:
            return self._outside(left, at >= 0)
        inside = written[at + 1 :]
        bins = [index for index in inside if index in self.span[LOC]]
        if not bins:
            words = self.text if left > size + 2 else range(0)
            if not inside:
                return [index for index in words if index not in self.blank]
            return [*words, *_following(self.boxes, [], self.span[LOC])]
        if len(bins) % size == 0:
            return [*(_following(self.boxes, [], self.span[LOC]) if left > size + 1 else []), self.close]
        return _following(self.boxes, bins[len(bins) - len(bins) % size :], self.span[LOC])

    def _outside(self, left: int, had_group: bool) -> list[int]:
        if self.is_one_group:
            return [self.end] if had_group else [self.open]
        if left < 2:
            return [self.end]
        return [*([] if self.has_groups_alone else self.text), *([self.open] if left > self.boxes.count + 3 else []), self.end]


class PhrasesGrammar:
    """A text that is given, with the boxes of its phrases still to be written: phrase grounding.

    pieces: of the text with its groups, as `serialize` gives them; their boxes are left out of account. room: tokens that may be written.
    """

    def __init__(self, pieces: Sequence[Piece], spans: dict[str, range], end: int, room: int, boxes: BoxBins) -> None:
        self.given = [[spans[name].start + index for index in ids] for name, ids in pieces if name != LOC]
        self.loc, self.end, self.room, self.boxes = spans[LOC], end, room, boxes
        self.close = spans[OBJ][CLOSE]
        least = self.least(pieces, boxes)
        if room < least:
            raise DataError(f"room for {room} tokens is too little: this text with a box for each phrase takes {least}.")
        self.spare = room - least

    @staticmethod
    def least(pieces: Sequence[Piece], boxes: BoxBins) -> int:
        """Tokens that a text takes with a box for each phrase and its end."""
        return sum(boxes.count if name == LOC else len(ids) for name, ids in pieces) + 1

    def allowed(self, written: Sequence[int]) -> Sequence[int] | range:
        """The ids that may follow; none behind the end."""
        if written and written[-1] == self.end:
            return []
        forced = [index for piece in self.given for index in piece]
        size = self.boxes.count
        at = bins = extra = 0
        for index in written:
            if index in self.loc:
                bins += 1
                extra += bins > size
            else:
                at, bins = at + 1, 0
        if at == len(forced):
            return [self.end]
        if forced[at] != self.close:
            return [forced[at]]
        if bins and bins % size == 0:
            return [*(_following(self.boxes, [], self.loc) if extra + size <= self.spare else []), self.close]
        return _following(self.boxes, written[len(written) - bins % size :], self.loc)


def _following(boxes: BoxBins, begun: Sequence[int], loc: range) -> range:
    """The ids of bins that may follow those of a box that is begun."""
    found = boxes.following([index - loc.start for index in begun])
    return loc[found.start : found.stop]
