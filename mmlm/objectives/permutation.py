"""Permutation language modelling in two views: numbers read off a sequence, and a sequence written to numbers.

    [tokens that are shown, all see one another] [query 1] [token 1] [query 2] [token 2] ... [query n]

Hidden tokens come in a random order. Each is asked for by a query, which shows the id of the range `mask` at the token's own position, in
a branch of its own: it sees what is shown and the tokens before it in the order, and nothing ever sees it. The true token then follows at
the same position. So no score at a query depends on its own token or on later ones: attention in two streams, as a layout.

Views of a sample:   property   the targets (whole segments, such as all digits of a number) are hidden in their order
                     sequence   spans of the rest are hidden, the targets are shown
                     plain      spans of everything

While training, steps alternate between the first two. In a step of sequences tokens that the model draws are put into the sequence, and the
targets are predicted from that: the model is to read from what it wrote what was asked for (self-consistency).

Source: Regression Transformer, arXiv:2202.01338; two streams: XLNet, arXiv:1906.08237. There the likeliest tokens are put in; these are the
commonest, so that sequences hold too much of them beside their true numbers, and numbers are then read with a bias: logP of molecules, of
which a carbon is the likeliest piece, by -0.4. What is drawn is as common as it is in the data. There the weight of it is 1; models of
minutes write too badly for that, and read better with less.
Axes: n queries   t tokens
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError
from mmlm.objectives.base import Losses, Model, Objective
from mmlm.objectives.config import PermutationConfig
from mmlm.stream import NO_LABEL, Batch, Segment, Stream, pack, plain, positions
from mmlm.vocabulary import Vocabulary

View = Literal["property", "sequence", "plain"]
SHOWN = 1  # the number of the tokens that see one another
TOKENS, CONSISTENCY = "language_model", "self_consistency"  # the head whose losses have the names of views; one of these names


@dataclass
class Views(Stream):
    """A sample as it is, with its views. filled: [n, 2] places of the queries of `sequence`, and of their tokens in `property`."""

    views: dict[View, Stream] = field(default_factory=dict)
    filled: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))


@dataclass
class ViewsBatch:
    """Batches of all views. filled: as in `Views`, of the packed batches."""

    views: dict[View, Batch]
    filled: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens of the sequences and the targets, once."""
        return self.views["property"].num_tokens

    def to(self, device: torch.device | str) -> ViewsBatch:
        """The same on another device."""
        return ViewsBatch({name: batch.to(device) for name, batch in self.views.items()}, self.filled.to(device))


class Permutation(Objective):
    """Needs the vocabulary range `mask` with one id. Streams are a segment for each run of tokens of one range, in their order."""

    shift = False

    def __init__(self, config: PermutationConfig) -> None:
        self.config = config
        self.step, self.steps = 0, 1

    def begin_step(self, step: int, steps: int) -> None:
        """Told before each training step: how many were taken, and how many the run has."""
        self.step, self.steps = step, steps

    @property
    def view(self) -> View:
        """What the present training step is about."""
        first = round(self.config.plain_share * self.steps)
        if self.step < first:
            return "plain"
        return "sequence" if (self.step - first) // self.config.alternate_every % 2 else "property"

    def prepare(self, stream: Stream, vocabulary: Vocabulary, rng: np.random.Generator) -> Views:
        """The views of a sample. Raises DataError where there is nothing to hide."""
        config, tokens = self.config, _Tokens.of(stream)
        is_target_t = np.repeat([name in config.targets for name in tokens.names], tokens.sizes)
        asked_t, rest_t = is_target_t & (tokens.weight_t > 0), ~is_target_t & (tokens.weight_t > 0)
        if not asked_t.any() or not rest_t.any():
            raise DataError(
                f"{stream.source or stream.name}: needs tokens with weight of {', '.join(config.targets)} and of something else."
            )
        written_t = tokens.spans(rest_t, config.span_share, config.max_span, rng)
        hidden = {"property": asked_t, "sequence": written_t if written_t.any() else rest_t}
        if config.plain_share:
            both_t = tokens.spans(asked_t | rest_t, config.plain_rate, config.plain_span, rng)
            hidden["plain"] = both_t if both_t.any() else asked_t
        views: dict[View, Stream] = {}
        places: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, hidden_t in hidden.items():
            order = None if name == "property" else rng
            segment, *found = tokens.arranged(hidden_t, order, config.multiple)
            views[name] = Stream([segment], stream.name, stream.source, stream.axes)  # type: ignore[index]
            places[name] = (found[0], found[1])
        query_of, token_of = places["sequence"][0], places["property"][1]
        at = (query_of >= 0).nonzero()[0]
        filled = torch.from_numpy(np.array([query_of[at], token_of[at]]).T.copy())
        return Views(stream.segments, stream.name, stream.source, stream.axes, views, filled)

    def collate(self, streams: Sequence[Stream], vocabulary: Vocabulary) -> ViewsBatch:  # type: ignore[override]
        """All views of prepared streams, each packed by itself."""
        some = [stream for stream in streams if isinstance(stream, Views)]
        batches = {name: pack([each.views[name] for each in some], vocabulary, shift=False) for name in some[0].views}
        starts = [torch.tensor([0, *(len(each.views[name]) for each in some[:-1])]).cumsum(0) for name in ("sequence", "property")]  # type: ignore[index]
        filled = torch.cat([each.filled + torch.stack([left, right]) for each, left, right in zip(some, *starts, strict=True)])
        return ViewsBatch(batches, filled)

    def losses(self, model: Model, batch: ViewsBatch) -> Losses:  # type: ignore[override]
        """Of the view of the step, the others' being zeros; in evaluation mode of property and sequence, without self-consistency."""
        zero = torch.zeros(())
        found: Losses = dict.fromkeys(self._names(model), (zero, zero))
        h_btd = torch.empty(0)  # of the pass before
        for name, view in self._passes(model).items():
            given = batch.views[view]
            if name == CONSISTENCY:
                given = self._as_written(model, h_btd, batch)
            h_btd, aux = model.hidden(given)  # type: ignore[attr-defined]
            for part, (total, weight) in model.losses_of(h_btd, aux, given).items():  # type: ignore[attr-defined]
                if part == TOKENS:
                    found[name] = (self.config.self_consistency if name == CONSISTENCY else 1.0) * total, weight
                else:
                    before = found.get(part, (zero, zero))
                    found[part] = before[0] + total, before[1] + weight
        return found

    def _passes(self, model: Model) -> dict[str, View]:
        """The names of the losses of tokens that are computed, one after the other, and of which view each is."""
        if not getattr(model, "training", False):
            return {"property": "property", "sequence": "sequence"}
        view = self.view
        return {view: view} if view != "sequence" or not self.config.self_consistency else {view: view, CONSISTENCY: "property"}

    def _names(self, model: Model) -> list[str]:
        """The names of the losses of tokens, the same at every step."""
        training = getattr(model, "training", False)
        further = {"plain": self.config.plain_share, CONSISTENCY: self.config.self_consistency}
        return ["property", "sequence", *(name for name, is_used in further.items() if is_used and training)]

    @torch.no_grad()
    def _as_written(self, model: Model, h_btd: Tensor, batch: ViewsBatch) -> Batch:
        """The view of the property with tokens that are drawn by the states of the view of the sequence."""
        again = batch.views["property"]
        ids = again.ids.flatten().index_copy(0, batch.filled[:, 1], self._drawn(model, h_btd, batch)).view_as(again.ids)
        return dataclasses.replace(again, ids=ids)

    def _drawn(self, model: Model, h_btd: Tensor, batch: ViewsBatch) -> Tensor:
        """Ids [n] at the queries of sequences, each of its own range."""
        labels_n = batch.views["sequence"].labels.flatten()[batch.filled[:, 0]]
        h_nd = h_btd.flatten(0, 1)[batch.filled[:, 0]]
        found = labels_n.clone()
        for span in model.vocabulary.ranges.values():  # type: ignore[attr-defined]
            mine = ((labels_n >= span.start) & (labels_n < span.stop)).nonzero()[:, 0]
            if len(mine):
                scores_nv = model.heads["language_model"].predict(h_nd[mine], span).float()  # type: ignore[attr-defined]
                races_nv = scores_nv.softmax(-1) / torch.empty_like(scores_nv).exponential_()  # the largest is a draw, of NaN too
                found[mine] = races_nv.argmax(-1) + span.start
        return found

    def loss_weights(self, model: Model, batch: ViewsBatch) -> dict[str, float]:  # type: ignore[override]
        """The weights that `losses` will report, without a forward pass."""
        found: dict[str, float] = dict.fromkeys(self._names(model), 0.0)
        for name, view in self._passes(model).items():
            for part, weight in model.loss_weights(batch.views[view]).items():
                found[name if part == TOKENS else part] = weight + (0.0 if part == TOKENS else found.get(part, 0.0))
        return found


def arranged(
    stream: Stream, hide: Sequence[np.ndarray], rng: np.random.Generator | None, *, multiple: int = 1
) -> tuple[Stream, Tensor, Tensor]:
    """(the stream with some tokens hidden and asked for, place [t] of each token's query or -1, place [t] of each token or -1).

    hide: bool [t] of each segment. Otherwise as `_Tokens.arranged`.
    """
    segment, query_of, token_of = _Tokens.of(stream).arranged(np.concatenate(list(hide)), rng, multiple)
    found = Stream([segment], stream.name, stream.source, stream.axes)
    return found, torch.from_numpy(query_of), torch.from_numpy(token_of)


@dataclass
class _Tokens:
    """All tokens of a stream as arrays, one after the other. names, sizes: of its segments.   segment_t: number of each token's segment."""

    names: list[str]
    sizes: list[int]
    segment_t: np.ndarray
    ids_t: np.ndarray
    weight_t: np.ndarray
    position_tp: np.ndarray
    channels: dict[str, np.ndarray]

    @classmethod
    def of(cls, stream: Stream) -> _Tokens:
        """Raises DataError for a stream whose tokens cannot be hidden one by one."""
        segments, ids = stream.segments, [each.ids.numpy() for each in stream.segments if each.ids is not None and each.ids.ndim == 1]
        if len(ids) < len(segments) or any(each.pieces is not None or each.features is not None for each in segments):
            raise DataError(f"{stream.source or stream.name}: only tokens of one range each, without features, can be hidden in an order.")
        sizes = [len(each) for each in ids]
        weight_t = np.empty(sum(sizes), np.float32)
        for each, size, end in zip(segments, sizes, accumulate(sizes), strict=True):
            weight_t[end - size : end] = plain(each.weight)
        return cls(
            names=[each.modality for each in segments],
            sizes=sizes,
            segment_t=np.repeat(np.arange(len(sizes)), sizes),
            ids_t=np.concatenate(ids),
            weight_t=weight_t,
            position_tp=np.concatenate([each.numpy() for each in positions(stream)]),
            channels=_channels(segments, sizes),
        )

    def spans(self, may_t: np.ndarray, share: float, longest: int, rng: np.random.Generator) -> np.ndarray:
        """bool [t]: a share of each segment, as `spans` hides it."""
        ends = list(accumulate(self.sizes))
        return np.concatenate([spans(may_t[end - size : end], share, longest, rng) for end, size in zip(ends, self.sizes, strict=True)])

    def arranged(self, hidden_t: np.ndarray, rng: np.random.Generator | None, multiple: int = 1) -> tuple[Segment, np.ndarray, np.ndarray]:
        """(one segment with some tokens hidden and asked for, place [t] of each token's query or -1, place [t] of each token or -1).

        rng: of the order in which they are asked for; None: that of the stream. The last one itself is left out, as nobody could see it.
        multiple: filled up to a multiple of so many tokens, which nothing sees.
        """
        kept_n, order_n = (~hidden_t).nonzero()[0], hidden_t.nonzero()[0]
        order_n = order_n if rng is None else rng.permutation(order_n)
        shown, count = len(kept_n), len(order_n)
        asked = shown + 2 * count - 1
        size = -(-asked // multiple) * multiple
        queries, told = slice(shown, asked, 2), slice(shown + 1, asked, 2)
        place_n = np.full(size, order_n[-1])
        place_n[:shown], place_n[queries], place_n[told] = kept_n, order_n, order_n[:-1]
        is_query_n, branch_n, mutual_n = np.ones(size, bool), np.full(size, count + 1), np.zeros(size, np.int64)
        is_query_n[:shown], is_query_n[told] = False, False
        branch_n[:shown], branch_n[queries], branch_n[told], mutual_n[:shown] = 0, np.arange(1, count + 1), 0, SHOWN
        at_n = np.arange(asked)
        query_of, token_of = np.full(len(hidden_t), -1), np.full(len(hidden_t), -1)
        query_of[order_n], token_of[kept_n], token_of[order_n[:-1]] = at_n[queries], at_n[:shown], at_n[told]
        ids_n, labels_n, weight_n = self.ids_t[place_n], np.full(size, NO_LABEL), np.zeros(size, np.float32)
        labels_n[queries], weight_n[queries] = self.ids_t[order_n], self.weight_t[order_n]
        channels = {}
        for name, value in self.channels.items():
            channels[name] = value[place_n]
            channels[name][is_query_n] = _nothing(value)
        segment = Segment(
            "hidden and shown",
            torch.from_numpy(ids_n),
            pieces=_pieces(self.segment_t[place_n], self.names),
            weight=torch.from_numpy(weight_n),
            labels=torch.from_numpy(labels_n),
            hidden=torch.from_numpy(is_query_n),
            position=torch.from_numpy(self.position_tp[place_n]),
            mutual=torch.from_numpy(mutual_n),
            branch=torch.from_numpy(branch_n),
            channels={name: torch.from_numpy(value) for name, value in channels.items()},
        )
        return segment, query_of, token_of


def _pieces(segment_t: np.ndarray, names: Sequence[str]) -> list[tuple[str, int]]:
    """The range of each run of tokens, and how long it is. segment_t: number of each token's segment."""
    firsts = [0, *((segment_t[1:] != segment_t[:-1]).nonzero()[0] + 1).tolist(), len(segment_t)]
    return [(names[segment_t[first]], last - first) for first, last in zip(firsts, firsts[1:], strict=False)]


def _channels(segments: Sequence[Segment], sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Channels of all tokens of a stream, with nothing where a segment has none."""
    found = dict[str, np.ndarray]()
    for each, end in zip(segments, accumulate(sizes), strict=True):
        for name, value in each.channels.items():
            value_t = value.numpy()
            if name not in found:
                found[name] = np.full((sum(sizes), *value_t.shape[1:]), _nothing(value_t), value_t.dtype)
            found[name][end - len(value_t) : end] = value_t
    return found


def spans(may: np.ndarray, share: float, longest: int, rng: np.random.Generator) -> np.ndarray:
    """bool [t]: spans of 1 to `longest` tokens, drawn until a share of those that may be hidden is."""
    places, hidden = may.nonzero()[0].tolist(), np.zeros(len(may), dtype=bool)
    left, taken = round(share * len(places)), set[int]()
    while left > 0:
        start = int(rng.integers(len(places)))
        free = [place for place in places[start : start + int(rng.integers(1, longest + 1))] if place not in taken][:left]
        taken.update(free)
        left -= len(free)
    hidden[list(taken) or slice(0)] = True
    return hidden


def _nothing(value: np.ndarray) -> int:
    """What a token without a channel holds."""
    return 0 if value.dtype.kind == "f" else -1
