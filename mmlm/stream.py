"""A sample as a stream of segments, and a batch as tensors only.

    Segment   some tokens of one modality: ids, continuous features, or both
    Stream    the segments of one sample, in order
    Batch     many streams packed one after the other into one row, with a layout that keeps them apart
    pack      streams -> batch          unpack      values at each token -> one tensor per stream

Axes: b rows of a batch   t tokens   u codebooks   p position axes   n tokens that carry features   f channels of a feature   s wholes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError, RecipeError
from mmlm.layout import EVERYTHING, Layout
from mmlm.vocabulary import Vocabulary

T = TypeVar("T")
NO_LABEL = -100
PER_TOKEN = ("weight", "labels", "hidden", "mutual", "branch", "mark", "reach")  # of a segment: tensors with a row for each token, or none


@dataclass
class Segment:
    """Some tokens of one modality.

    modality: name of the vocabulary range of `ids` (for codes: ranges "<modality>.0", "<modality>.1", ...).
    ids: long [t] or [t, u], local to the range, -1 for a cell of [t, u] that is not filled; None where the tokens are continuous features
    alone.   pieces: where ids [t], and labels, are of several ranges, these and how many tokens each, in order; `modality` then names
    the whole.
    features: float [n, f], read by `encoder`; they fill the tokens `feature_at` (long [n]; default all t = n tokens).   whole: they are
    those of one thing, float [rows, ...], such as the points of a sweep, of which the encoder makes as many vectors as tokens are filled.
    weight: loss weight, one number or [t]; 0 means read only.   labels: local ids, as ids [t] or [t, u], to predict *at* these tokens
    (NO_LABEL for none); without labels the objective decides (a causal one predicts the next token; every cell that is filled).
    num_options: only the first ids of the range are possible answers for what is predicted of this segment (0: all; not with codebooks).
    hidden: bool [t], tokens that show the id of the range "mask" instead of their own, or [t, u], such cells.
    position: long [t, p] on the axes of the stream; None counts on from the token before.
    mutual: tokens of a stream with the same number above 0 see one another in both directions. One number or long [t].
    branch: 0 for the trunk; tokens of branch k see the trunk and branch k only. One number or long [t].
    mark: long [t], numbers of the tokens for queries that do not see all; -1 for none.   reach: long [t, 2], the first and the last mark
    that each token sees; None: all.
    channels: {name: float [t, f] or long [t]}, added to the embeddings.   tags: {name: float [t]}, numbers that heads read and the
    backbone does not see, NaN for none.   rate_hz: tokens per second as a fraction, or None.
    """

    modality: str
    ids: Tensor | None = None
    features: Tensor | None = None
    encoder: str | None = None
    feature_at: Tensor | None = None
    weight: float | Tensor = 0.0
    labels: Tensor | None = None
    num_options: int = 0
    hidden: Tensor | None = None
    position: Tensor | None = None
    mutual: int | Tensor = 0
    branch: int | Tensor = 0
    mark: Tensor | None = None
    reach: Tensor | None = None
    channels: dict[str, Tensor] = field(default_factory=dict)
    tags: dict[str, Tensor] = field(default_factory=dict)
    rate_hz: tuple[int, int] | None = None
    pieces: Sequence[tuple[str, int]] | None = None
    whole: bool = False

    def __len__(self) -> int:
        tokens = self.features if self.ids is None else self.ids
        return 0 if tokens is None else int(tokens.shape[0])

    @property
    def last_mutual(self) -> int:
        """The highest number of `mutual`; 0 where no token sees a later one."""
        return max(plain(self.mutual).tolist(), default=0) if isinstance(self.mutual, Tensor) else self.mutual


@dataclass
class Stream:
    """One sample. axes: names of the position axes. source: file and line, for messages."""

    segments: list[Segment]
    name: str = ""
    source: str = ""
    axes: tuple[str, ...] = ("time",)

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)


@dataclass
class Batch:
    """Tensors of many streams. ids [b, t]; labels [b, t] (NO_LABEL: none); weight [b, t] float32, of labels and code_labels.

    codes: [b, t, u] ids of all codebooks, -1 where a token has none; ids holds the first of them.   code_labels: [b, t, u] what is
    predicted of each codebook at a token (NO_LABEL: nothing), or None.   features, feature_at: {encoder: [n, f]}, {encoder: [n] index
    of the token in the flattened batch}.   whole_sizes: {encoder: [s] rows of each thing}, of encoders that read wholes.
    channels: {name: [b, t] ids, -1 where a token has none, or [b, t, f]}.   options: [b, t, 2] first id and number of the possible answers
    at labelled tokens, or None.   tags: {name: [b, t]}, NaN where a token has none.   names: one per stream.
    """

    ids: Tensor
    layout: Layout
    labels: Tensor
    weight: Tensor
    codes: Tensor | None = None
    code_labels: Tensor | None = None
    options: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    feature_at: dict[str, Tensor] = field(default_factory=dict)
    whole_sizes: dict[str, Tensor] = field(default_factory=dict)
    channels: dict[str, Tensor] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor | Layout):
                return value.to(device)
            return {key: move(item) for key, item in value.items()} if isinstance(value, dict) else value

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.layout.document > 0).sum())


def pack(streams: Sequence[Stream], vocabulary: Vocabulary, *, shift: bool = True, starts: Sequence[int] | None = None) -> Batch:
    """One batch row [1, t] that holds all streams, each its own document; no padding.

    shift: where a segment gives no labels, a token with weight is predicted at the token before it (causal); else at its own place.
    starts: the streams go on from others, at these positions; they may then be empty.
    Raises DataError naming the stream whose parts do not fit together.
    """
    if not streams:
        raise DataError("nothing to pack: the list of streams is empty.")
    axes = streams[0].axes
    sizes = [len(stream) for stream in streams]
    row = _Row(sum(sizes), len(axes), vocabulary, shift)
    for number, (stream, size) in enumerate(zip(streams, sizes, strict=True)):
        if stream.axes != axes:
            raise DataError(f"{_where(stream)}: position axes {stream.axes}, but the batch began with {axes}.")
        if size == 0 and starts is None:
            raise DataError(f"{_where(stream)}: the sample holds no tokens.")
        row.begin(0 if starts is None else starts[number])
        try:
            for segment in stream.segments:
                row.add(segment)
        except (DataError, RecipeError) as error:
            raise DataError(f"{_where(stream)}: {error}") from None
    return row.batch(sizes, axes, [stream.name for stream in streams])


class _Row:
    """The tokens of a batch, while segments are laid into it one after the other.

    What every token has is in numpy arrays over the whole row, of which a segment fills its slice: a call of torch costs several times one
    of numpy, which is most of the time where segments are short.
    """

    def __init__(self, total: int, num_axes: int, vocabulary: Vocabulary, shift: bool) -> None:
        self.total, self.vocabulary, self.shift = total, vocabulary, shift
        self.at = self.first = self.clock = 0  # the next token, the first one of the stream, the next position
        self.ids = np.zeros(total, np.int64)
        self.hidden, self.labelled = np.zeros(total, bool), np.zeros(total, bool)
        self.labels, self.weight = np.full(total, NO_LABEL), np.zeros(total, np.float32)
        self.position = np.zeros((total, num_axes), np.int64)
        self.mutual, self.branch = np.zeros(total, np.int64), np.zeros(total, np.int64)
        self.options = np.zeros((total, 2), np.int64)
        self.codes: list[tuple[int, Tensor]] = []
        self.code_labels: list[tuple[Tensor, Tensor]] = []
        self.marks: list[tuple[int, Tensor]] = []
        self.reaches: list[tuple[int, Tensor]] = []
        self.features: dict[str, list[Tensor]] = {}
        self.feature_at: dict[str, list[Tensor]] = {}
        self.whole_sizes: dict[str, list[int]] = {}
        self.channels: dict[str, list[tuple[int, Tensor]]] = {}
        self.tags: dict[str, list[tuple[int, Tensor]]] = {}
        self.first_of: dict[tuple[str, str], Tensor] = {}

    def begin(self, clock: int) -> None:
        """A stream follows, whose positions begin there."""
        self.first, self.clock = self.at, clock

    def add(self, segment: Segment) -> None:
        """Lay a segment of the stream after those before it. Raises DataError or RecipeError for parts that do not fit together."""
        at, stop = self.at, self.at + len(segment)
        if segment.ids is None and segment.features is None:
            raise DataError(f"a segment of {segment.modality!r} has neither ids nor features.")
        _check(segment, self.vocabulary)
        if _has_books(segment):
            self._add_books(segment)
        else:
            if segment.ids is not None:
                self.ids[at:stop] = _global(segment.ids.numpy(), segment, self.vocabulary)
            if segment.hidden is not None:
                self.vocabulary.span("mask")
                self.hidden[at:stop] = segment.hidden.numpy()
            self._add_labels(segment)
        self.position[at:stop], self.clock = _position(segment, self.clock, self.position.shape[1])
        for values, given in ((self.mutual, segment.mutual), (self.branch, segment.branch)):
            if isinstance(given, Tensor) or given:
                values[at:stop] = plain(given)
        if segment.mark is not None:
            self.marks.append((at, segment.mark))
        if segment.reach is not None:
            self.reaches.append((at, segment.reach))
        if segment.features is not None or segment.channels or segment.tags:
            self._add_vectors(segment)
        self.at = stop

    def _add_labels(self, segment: Segment) -> None:
        """Ids to be predicted, where and how much they count, of a segment without codebooks."""
        if _is_read_only(segment):
            return
        weight_t, move = _weights(segment), 0
        if segment.labels is not None:
            labels_t = segment.labels.numpy()
            where = (labels_t != NO_LABEL).nonzero()[0]
            found = _global(labels_t, segment, self.vocabulary, where)
        else:
            where, move = (weight_t > 0).nonzero()[0], int(self.shift)
            where = where[where + self.at - self.first >= move]
            if len(where) and segment.ids is None:
                raise DataError(f"{segment.modality!r} has weight, but neither ids nor labels to predict.")
            found = self.ids[where + self.at]
        place = where + (self.at - move)
        self._take(place, weight_t[where], segment)
        self.labels[place] = found
        if segment.num_options and len(found):
            start = self.vocabulary.span(segment.modality).start
            if (highest := int(found.max()) - start) >= segment.num_options:
                raise DataError(f"{segment.modality!r} is to be {highest} at a token, but has num_options {segment.num_options}.")
            self.options[place] = start, segment.num_options

    def _add_books(self, segment: Segment) -> None:
        """Ids and labels of a segment with codebooks."""
        assert segment.ids is not None
        ids_tu = _cells(segment.ids, segment.modality, self.vocabulary, -1)
        shown_tu = _shown(segment, ids_tu, self.vocabulary)
        self.codes.append((self.at, shown_tu))
        self.ids[self.at : self.at + len(segment)] = shown_tu[:, 0].numpy()
        if _is_read_only(segment):
            return
        weight_t, move = _weights(segment), 0
        if segment.labels is not None:
            inside = (segment.labels != NO_LABEL).any(1).nonzero()[:, 0]
            labels = _cells(segment.labels[inside], segment.modality, self.vocabulary, NO_LABEL)
        else:
            move = int(self.shift)
            inside = (torch.from_numpy(weight_t > 0) & (ids_tu >= 0).any(1)).nonzero()[:, 0]
            inside = inside[inside + self.at - self.first >= move]
            labels = ids_tu[inside].masked_fill(ids_tu[inside] < 0, NO_LABEL)
        place = inside + (self.at - move)
        self._take(place.numpy(), weight_t[inside.numpy()], segment)
        self.code_labels.append((place, labels))

    def _take(self, place_n: np.ndarray, weight_n: np.ndarray, segment: Segment) -> None:
        """Places where something is predicted. Raises DataError where something else is already."""
        if self.labelled[place_n].any():
            raise DataError(f"the token before {segment.modality!r} has a label of its own and cannot predict the first of these.")
        self.labelled[place_n], self.weight[place_n] = True, weight_n

    def _add_vectors(self, segment: Segment) -> None:
        """Features, channels and tags."""
        _alike(segment, self.first_of)
        if segment.features is not None:
            name = segment.encoder or segment.modality
            self.features.setdefault(name, []).append(segment.features)
            self.feature_at.setdefault(name, []).append(_feature_at(segment) + self.at)
            if segment.whole:
                self.whole_sizes.setdefault(name, []).append(len(segment.features))
        for parts, given in ((self.channels, segment.channels), (self.tags, segment.tags)):
            for name, value in given.items():
                parts.setdefault(name, []).append((self.at, value))

    def batch(self, sizes: Sequence[int], axes: tuple[str, ...], names: list[str]) -> Batch:
        """All that was laid. sizes: tokens of each stream."""
        if self.hidden.any():
            self.ids[self.hidden] = self.vocabulary.span("mask").start
        columns = (self.ids, self.labels, self.weight, self.position, self.mutual, self.branch, self.options)
        ids, labels, weight, position, mutual, branch, options = (torch.from_numpy(each)[None] for each in columns)
        codes, code_labels, total = self.codes, self.code_labels, self.total
        layout = Layout(
            document=torch.from_numpy(np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes))[None],
            position=position,
            axes=axes,
            mutual=mutual if self.mutual.any() else None,
            branch=branch if self.branch.any() else None,
            mark=_scatter(self.marks, total, -1)[None] if self.marks else None,
            reach=_scatter(self.reaches, total, torch.tensor(EVERYTHING))[None] if self.reaches else None,
        )
        return Batch(
            ids=ids,
            layout=layout,
            labels=labels,
            weight=weight,
            codes=_scatter(_as_wide(codes, -1), total, -1)[None] if codes else None,
            code_labels=_scatter(_as_wide(code_labels, NO_LABEL), total, NO_LABEL)[None] if any(len(at) for at, _ in code_labels) else None,
            options=options if self.options.any() else None,
            features={name: torch.cat(parts) for name, parts in self.features.items()},
            feature_at={name: torch.cat(parts) for name, parts in self.feature_at.items()},
            whole_sizes={name: torch.tensor(counts) for name, counts in self.whole_sizes.items()},
            channels={name: _scatter(parts, total, nothing(parts[0][1]))[None] for name, parts in self.channels.items()},
            tags={name: _scatter(parts, total, torch.nan)[None] for name, parts in self.tags.items()},
            names=names,
        )


def pad(streams: Sequence[Stream], vocabulary: Vocabulary, *, shift: bool = True, starts: Sequence[int] | None = None) -> Batch:
    """One row [b, t] a stream, filled up at the end with document 0: what a cache needs. Otherwise as `pack`."""
    packed = pack(streams, vocabulary, shift=shift, starts=starts)
    lengths = [len(stream) for stream in streams]
    rows, length = len(streams), max(lengths)
    place = torch.cat([torch.arange(size) + row * length for row, size in enumerate(lengths)])

    def spread(value: Tensor | None, empty: float = 0) -> Tensor | None:
        if value is None:
            return None
        out = value.new_full((rows * length, *value.shape[2:]), empty)
        out[place] = value[0]
        return out.unflatten(0, (rows, length))

    old = packed.layout
    layout = dataclasses.replace(
        old,
        document=torch.gt(spread(old.document), 0).int(),
        position=spread(old.position),
        mutual=spread(old.mutual),
        branch=spread(old.branch),
        mark=spread(old.mark, -1),
        reach=spread(old.reach),
    )
    return dataclasses.replace(
        packed,
        ids=spread(packed.ids),
        layout=layout,
        labels=spread(packed.labels, NO_LABEL),
        weight=spread(packed.weight),
        codes=spread(packed.codes, -1),
        code_labels=spread(packed.code_labels, NO_LABEL),
        options=spread(packed.options),
        feature_at={name: place[at] for name, at in packed.feature_at.items()},
        channels={name: spread(value, nothing(value)) for name, value in packed.channels.items()},
        tags={name: spread(value, torch.nan) for name, value in packed.tags.items()},
    )


def cut(segment: Segment, start: int, stop: int) -> Segment:
    """Tokens start to stop of a segment."""
    size = len(segment)
    if (start, stop) == (0, size):
        return segment

    def part(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: part(each) for name, each in value.items()}
        return value[start:stop] if isinstance(value, Tensor) else value

    own = ("features", "feature_at", "pieces")
    kept = {f.name: part(getattr(segment, f.name)) for f in dataclasses.fields(segment) if f.name not in own}
    if segment.pieces is not None:
        ends = list(accumulate(count for _, count in segment.pieces))
        parts = [(name, min(end, stop) - max(end - count, start)) for (name, count), end in zip(segment.pieces, ends, strict=True)]
        kept["pieces"] = [(name, count) for name, count in parts if count > 0]
    if segment.features is not None:
        at = _feature_at(segment)
        inside = (at >= start) & (at < stop)
        if segment.whole:
            if bool(inside.any()) and not bool(inside.all()):
                raise DataError(f"{segment.modality!r} cannot be cut at tokens {start} and {stop}: its features are those of one thing.")
            kept["whole"] = bool(inside.any())
            return Segment(**kept, features=segment.features, feature_at=at - start) if kept["whole"] else Segment(**kept)
        kept |= {"features": segment.features[inside], "feature_at": at[inside] - start}
    return Segment(**kept)


def text_stream(ids: Tensor, modality: str = "text", name: str = "") -> Stream:
    """A stream of one segment of ids, as a prompt has it."""
    return Stream([Segment(modality, ids)], name=name)


def positions(stream: Stream) -> list[Tensor]:
    """The positions [t, p] of each segment, those that are not given counted on."""
    found, clock = [], 0
    for segment in stream.segments:
        position_tp, clock = _position(segment, clock, len(stream.axes))
        found.append(torch.from_numpy(position_tp))
    return found


def next_position(stream: Stream, clock: int = 0) -> int:
    """The position, on every axis, of a token that follows the stream, which itself begins at `clock`."""
    for segment in stream.segments:
        _, clock = _position(segment, clock, len(stream.axes))
    return clock


def unpack(values: Tensor, layout: Layout) -> list[Tensor]:
    """values [b, t, ...] at every token -> one tensor [t_i, ...] per document, row after row in the order of the documents."""
    found = []
    for row, document in zip(values, layout.document, strict=True):
        found += [row[document == number] for number in document.unique().tolist() if number]
    return found


def _where(stream: Stream) -> str:
    return stream.source or stream.name or "a sample"


def _has_books(segment: Segment) -> bool:
    return segment.ids is not None and segment.ids.ndim > 1


def _cells(cells_tu: Tensor, modality: str, vocabulary: Vocabulary, empty: int) -> Tensor:
    """Global ids of local ones [t, u], each codebook in its own range; `empty` stays."""
    found = torch.full_like(cells_tu, empty)
    for book, cells in enumerate(cells_tu.unbind(1)):
        filled = cells != empty
        found[filled, book] = vocabulary.to_global(f"{modality}.{book}", cells[filled])
    return found


def _global(local_t: np.ndarray, segment: Segment, vocabulary: Vocabulary, where: np.ndarray | None = None) -> np.ndarray:
    """Global ids of local ones [t] of a segment without codebooks, or of some of them. Raises DataError for an id outside its range, and
    for pieces of another length."""
    if segment.pieces is None:
        return vocabulary.to_global(segment.modality, local_t if where is None else local_t[where])
    counts = [count for _, count in segment.pieces]
    if sum(counts) != len(local_t) or min(counts, default=0) < 0:
        raise DataError(f"the pieces of a segment hold {sum(counts)} tokens, but it has ids {list(local_t.shape)}.")
    spans = [vocabulary.span(name) for name, _ in segment.pieces]
    start_t, size_t = np.repeat([span.start for span in spans], counts), np.repeat([len(span) for span in spans], counts)
    where = np.arange(len(local_t)) if where is None else where
    found, start, size = local_t[where], start_t[where], size_t[where]
    outside = (found < 0) | (found >= size)
    if outside.any():
        first = int(outside.argmax())
        raise DataError(f"id {int(found[first])} at token {where[first]} lies outside its range, which holds 0 to {int(size[first]) - 1}.")
    return found + start


def _shown(segment: Segment, ids_tu: Tensor, vocabulary: Vocabulary) -> Tensor:
    """ids with the one mask id at hidden tokens, or in hidden cells."""
    if segment.hidden is None:
        return ids_tu
    mask_id = vocabulary.span("mask").start
    if segment.hidden.ndim > 1:
        return ids_tu.masked_fill(segment.hidden, mask_id)
    mask_tu = torch.full_like(ids_tu, -1)
    mask_tu[:, 0] = mask_id
    return torch.where(segment.hidden[:, None], mask_tu, ids_tu)


def _check(segment: Segment, vocabulary: Vocabulary) -> None:
    """Raises DataError for parts of a segment that do not fit together."""
    size, name = len(segment), segment.modality
    whole = (size,) if segment.ids is None else tuple(segment.ids.shape)
    for what in PER_TOKEN:
        if not isinstance(value := getattr(segment, what), Tensor):
            continue
        allowed = {"labels": [whole], "hidden": [(size,), whole], "reach": [(size, 2)]}.get(what, [(size,)])
        if value.shape[:1] != (size,):
            raise DataError(f"{what} of {name!r} has shape {tuple(value.shape)}, but the segment has {size} tokens.")
        if value.shape not in allowed:
            told = " or ".join(map(str, dict.fromkeys(allowed)))
            raise DataError(f"{what} of {name!r} has shape {tuple(value.shape)}, but must be {told}.")
    for what, value in (*segment.channels.items(), *segment.tags.items()):
        if value.shape[:1] != (size,):
            raise DataError(f"{what} of {name!r} has shape {tuple(value.shape)}, but the segment has {size} tokens.")
    if segment.features is not None:
        inside = _feature_at(segment)
        if segment.whole and (segment.ids is None or not len(segment.features)):
            raise DataError(f"{name!r} is one thing: it needs ids, which say how many tokens it fills, and at least one row of features.")
        if not segment.whole and len(inside) != len(segment.features):
            raise DataError(f"{len(segment.features)} features for {len(inside)} tokens of {name!r}.")
        if len(inside) and (int(inside.min()) < 0 or int(inside.max()) >= size):
            lowest, highest = int(inside.min()), int(inside.max())
            raise DataError(f"feature_at of {name!r} must lie within 0 and {size - 1}, but goes from {lowest} to {highest}.")
        if len(inside.unique()) < len(inside):
            raise DataError(f"feature_at of {name!r} names a token twice.")
        if segment.hidden is not None and bool(segment.hidden[inside].any()):
            raise DataError(f"a hidden token of {name!r} would show its features.")
    elif segment.whole:
        raise DataError(f"{name!r} is said to be one thing, but has no features.")
    if segment.pieces is not None and _has_books(segment):
        raise DataError(f"{name!r} has pieces of several ranges, but also several codebooks.")
    if segment.pieces is not None and segment.num_options:
        raise DataError(f"{name!r} has pieces of several ranges, with which num_options does not go.")
    if segment.num_options and _has_books(segment):
        raise DataError(f"{name!r} has several codebooks, for which num_options says nothing.")
    if segment.num_options and segment.num_options > (most := len(vocabulary.span(name))):
        raise DataError(f"num_options of {name!r} is {segment.num_options}, but the range holds {most} ids.")


def _feature_at(segment: Segment) -> Tensor:
    return torch.arange(len(segment)) if segment.feature_at is None else segment.feature_at


def _is_read_only(segment: Segment) -> bool:
    """Whether nothing of it is predicted. Raises DataError for a weight below 0, or none."""
    weight = plain(segment.weight)
    if isinstance(weight, np.ndarray):
        if not (weight >= 0).all():
            raise DataError(f"weight of {segment.modality!r} must be at least 0, but is {float(weight[~(weight >= 0)][0])} at a token.")
        return False
    if not weight >= 0 and len(segment):
        raise DataError(f"weight of {segment.modality!r} must be at least 0, but is {weight} at a token.")
    return segment.labels is None and weight == 0


def _weights(segment: Segment) -> np.ndarray:
    return segment.weight.numpy() if isinstance(segment.weight, Tensor) else np.full(len(segment), segment.weight, np.float32)


def plain(value: float | Tensor) -> Any:
    """A tensor as an array; a number as it is."""
    return value.numpy() if isinstance(value, Tensor) else value


def _position(segment: Segment, clock: int, num_axes: int) -> tuple[np.ndarray, int]:
    """Positions [t, p] of a segment and the next free one; counted on from `clock`, the same on every axis, when none are given."""
    size = len(segment)
    if segment.position is None:
        return np.arange(clock, clock + size)[:, None].repeat(num_axes, 1), clock + size
    if segment.position.shape != (size, num_axes):
        raise DataError(f"positions of {segment.modality!r} have shape {tuple(segment.position.shape)}, not {(size, num_axes)}.")
    position_tp = segment.position.numpy()
    return position_tp, int(position_tp.max()) + 1 if size else clock


def _alike(segment: Segment, first_of: dict[tuple[str, str], Tensor]) -> None:
    """Raises DataError where values of one name cannot stand in one tensor; first_of: the first values of each kind and name."""
    given = {("channel", name): value for name, value in segment.channels.items()}
    given |= {("tag", name): value for name, value in segment.tags.items()}
    if segment.features is not None:
        encoder = segment.encoder or segment.modality
        given["features of", encoder] = segment.features
        if first_of.setdefault(("whole", encoder), torch.tensor(segment.whole)) != segment.whole:
            raise DataError(f"features of {encoder!r} are those of one thing in some segments and of tokens in others.")
    for (kind, name), value in given.items():
        first = first_of.setdefault((kind, name), value)
        if value.shape[1:] != first.shape[1:] or value.is_floating_point() != first.is_floating_point():
            shapes = [f"{list(some.shape[1:])} of {str(some.dtype).removeprefix('torch.')}" for some in (value, first)]
            raise DataError(f"{kind} {name!r} has {shapes[0]} a token, but the batch began with {shapes[1]}.")


def _as_wide(codes: Sequence[tuple[T, Tensor]], empty: int) -> list[tuple[T, Tensor]]:
    """Codes [t, u] of different numbers of codebooks, all with the most; `empty` for those a token has not."""
    most = max(ids.shape[1] for _, ids in codes)
    return [(at, torch.nn.functional.pad(ids, (0, most - ids.shape[1]), value=empty)) for at, ids in codes]


def nothing(channel: Tensor) -> int:
    """What a token without this channel holds: values that add nothing, or an id of no row."""
    return 0 if channel.is_floating_point() else -1


def _scatter(parts: Sequence[tuple[int | Tensor, Tensor]], total: int, empty: float | Tensor) -> Tensor:
    """Values that begin at given tokens, or lie at them, laid into one tensor [total, ...]."""
    first = parts[0][1]
    out = first.new_empty(total, *first.shape[1:])
    out[:] = empty
    for at, value in parts:
        out[at if isinstance(at, Tensor) else slice(at, at + len(value))] = value
    return out
