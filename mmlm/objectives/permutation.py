"""Permutation language modelling in two views: numbers read off a sequence, and a sequence written to numbers.

    [tokens that are shown, all see one another] [query 1] [token 1] [query 2] [token 2] ... [query n]

Hidden tokens come in a random order. Each is asked for by a query, which shows the id of the range `mask` at the token's own position, in
a branch of its own: it sees what is shown and the tokens before it in the order, and nothing ever sees it. The true token then follows at
the same position. So no score at a query depends on its own token or on later ones: attention in two streams, as a layout.

Views of a sample:   property   the targets (whole segments, such as all digits of a number) are hidden in their order
                     sequence   spans of the rest are hidden, the targets are shown
                     plain      spans of everything

While training, steps alternate between the first two. In a step of sequences the likeliest tokens are put into the sequence, and the
targets are predicted from that: the model is to read from what it wrote what was asked for (self-consistency).

Source: Regression Transformer, arXiv:2202.01338; two streams: XLNet, arXiv:1906.08237.
Axes: n queries   t tokens
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError
from mmlm.objectives.base import Losses, Model, Objective
from mmlm.objectives.config import PermutationConfig
from mmlm.stream import NO_LABEL, Batch, Segment, Stream, pack, positions
from mmlm.vocabulary import Vocabulary

View = Literal["property", "sequence", "plain"]
SHOWN = 1  # the number of the tokens that see one another


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
        config, targets = self.config, set(self.config.targets)
        is_target = [np.full(len(each), each.modality in targets) for each in stream.segments]
        rest = [~mine & (_weights(each) > 0) for mine, each in zip(is_target, stream.segments, strict=True)]
        asked = [mine & (_weights(each) > 0) for mine, each in zip(is_target, stream.segments, strict=True)]
        if not np.concatenate(asked).any() or not np.concatenate(rest).any():
            raise DataError(
                f"{stream.source or stream.name}: needs tokens with weight of {', '.join(config.targets)} and of something else."
            )
        hidden = {"property": asked, "sequence": [spans(each, config.span_share, config.max_span, rng) for each in rest]}
        if not np.concatenate(hidden["sequence"]).any():
            hidden["sequence"] = rest
        if config.plain_share:
            both = [spans(one | other, config.plain_rate, config.plain_span, rng) for one, other in zip(asked, rest, strict=True)]
            hidden["plain"] = both if np.concatenate(both).any() else asked
        views: dict[View, Stream] = {}
        places: dict[str, tuple[Tensor, Tensor]] = {}
        for name, hide in hidden.items():
            order = None if name == "property" else rng
            views[name], *found = arranged(stream, hide, order, multiple=config.multiple)  # type: ignore[index]
            places[name] = (found[0], found[1])
        query_of, token_of = places["sequence"][0], places["property"][1]
        at = (query_of >= 0).nonzero()[:, 0]
        filled = torch.stack([query_of[at], token_of[at]], 1)
        return Views(stream.segments, stream.name, stream.source, stream.axes, views, filled)

    def collate(self, streams: Sequence[Stream], vocabulary: Vocabulary) -> ViewsBatch:  # type: ignore[override]
        """All views of prepared streams, each packed by itself."""
        some = [stream for stream in streams if isinstance(stream, Views)]
        batches = {name: pack([each.views[name] for each in some], vocabulary, shift=False) for name in some[0].views}
        starts = [torch.tensor([0, *(len(each.views[name]) for each in some[:-1])]).cumsum(0) for name in ("sequence", "property")]  # type: ignore[index]
        filled = torch.cat([each.filled + torch.stack([left, right]) for each, left, right in zip(some, *starts, strict=True)])
        return ViewsBatch(batches, filled)

    def losses(self, model: Model, batch: ViewsBatch) -> Losses:  # type: ignore[override]
        """Of the view of the step; in evaluation mode of both, without self-consistency."""
        if not getattr(model, "training", False):
            return {view: _own(model.losses(batch.views[view])) for view in ("property", "sequence")}
        view = self.view
        if view != "sequence" or not self.config.self_consistency:
            return {view: _own(model.losses(batch.views[view]))}
        h_btd, _ = model.hidden(batch.views[view])  # type: ignore[attr-defined]
        head = model.heads["language_model"]  # type: ignore[attr-defined]
        with torch.no_grad():
            written = self._likeliest(model, h_btd, batch)
        again = batch.views["property"]
        ids = again.ids.flatten().index_copy(0, batch.filled[:, 1], written).view_as(again.ids)
        total, weight = _own(model.losses(dataclasses.replace(again, ids=ids)))
        return {
            "sequence": _own(head.loss(h_btd, batch.views[view])),
            "self_consistency": (self.config.self_consistency * total, weight),
        }

    def _likeliest(self, model: Model, h_btd: Tensor, batch: ViewsBatch) -> Tensor:
        """Ids [n] at the queries of sequences: of each the best of its own range."""
        labels_n = batch.views["sequence"].labels.flatten()[batch.filled[:, 0]]
        h_nd = h_btd.flatten(0, 1)[batch.filled[:, 0]]
        found = labels_n.clone()
        for span in model.vocabulary.ranges.values():  # type: ignore[attr-defined]
            mine = ((labels_n >= span.start) & (labels_n < span.stop)).nonzero()[:, 0]
            if len(mine):
                found[mine] = model.heads["language_model"].predict(h_nd[mine], span).argmax(-1) + span.start  # type: ignore[attr-defined]
        return found

    def loss_weights(self, model: Model, batch: ViewsBatch) -> dict[str, float]:  # type: ignore[override]
        """The weights that `losses` will report, without a forward pass."""
        weights = {name: sum(model.loss_weights(view).values()) for name, view in batch.views.items()}
        if not getattr(model, "training", False):
            return {view: weights[view] for view in ("property", "sequence")}  # type: ignore[index]
        found: dict[str, float] = {self.view: weights[self.view]}
        if self.view == "sequence" and self.config.self_consistency:
            found["self_consistency"] = weights["property"]
        return found


def arranged(
    stream: Stream, hide: Sequence[np.ndarray], rng: np.random.Generator | None, *, multiple: int = 1
) -> tuple[Stream, Tensor, Tensor]:
    """(the stream with some tokens hidden and asked for, place [t] of each token's query or -1, place [t] of each token or -1).

    hide: bool [t] of each segment. rng: of the order in which they are asked for; None: that of the stream. The last one itself is left
    out, as nobody could see it. multiple: the stream is filled up to a multiple of so many tokens, which nothing sees.
    """
    if any(each.ids is None or each.ids.ndim > 1 or each.pieces is not None or each.features is not None for each in stream.segments):
        raise DataError(f"{stream.source or stream.name}: only tokens of one range each, without features, can be hidden in an order.")
    sizes = [len(each) for each in stream.segments]
    hidden_t = np.concatenate(list(hide))
    order = np.flatnonzero(hidden_t)
    order = order if rng is None else rng.permutation(order)
    kept = np.flatnonzero(~hidden_t)
    asked = order.repeat(2)[:-1]
    fill = -(len(kept) + len(asked)) % multiple
    place = np.concatenate([kept, asked, order[-1:].repeat(fill)])
    is_query = np.concatenate([np.zeros(len(kept), bool), np.arange(len(asked)) % 2 == 0, np.ones(fill, bool)])
    is_asked = is_query & (np.arange(len(place)) < len(kept) + len(asked))
    number = np.concatenate([np.zeros(len(kept), int), 1 + np.arange(len(asked)) // 2, np.full(fill, len(order) + 1)])
    at_query, at_token = np.flatnonzero(is_asked), np.flatnonzero(~is_query)
    query_of, token_of = np.full(len(hidden_t), -1), np.full(len(hidden_t), -1)
    query_of[place[at_query]], token_of[place[at_token]] = at_query, at_token
    index, query = torch.from_numpy(place), torch.from_numpy(is_query)
    ids = torch.cat([each.ids for each in stream.segments])[index]  # type: ignore[misc]
    weight = np.concatenate([_weights(each) for each in stream.segments])[place] * is_asked
    segment = Segment(
        "hidden and shown",
        ids,
        pieces=_pieces(np.arange(len(sizes)).repeat(sizes)[place], [each.modality for each in stream.segments]),
        weight=torch.from_numpy(weight.astype(np.float32)),
        labels=ids.masked_fill(~torch.from_numpy(is_asked), NO_LABEL),
        hidden=query,
        position=torch.cat(positions(stream))[index],
        mutual=torch.from_numpy(np.where(np.arange(len(place)) < len(kept), SHOWN, 0)),
        branch=torch.from_numpy(np.where(is_query, number, 0)),
        channels={name: value[index].masked_fill(_as_wide(query, value), _nothing(value)) for name, value in _channels(stream).items()},
    )
    found = Stream([segment], stream.name, stream.source, stream.axes)
    return found, torch.from_numpy(query_of), torch.from_numpy(token_of)


def _pieces(segment_t: np.ndarray, names: Sequence[str]) -> list[tuple[str, int]]:
    """The range of each run of tokens, and how long it is. segment_t: number of each token's segment."""
    borders = np.concatenate([[0], np.flatnonzero(np.diff(segment_t)) + 1, [len(segment_t)]])
    return [(names[segment_t[first]], int(last - first)) for first, last in zip(borders, borders[1:], strict=False)]


def _channels(stream: Stream) -> dict[str, Tensor]:
    """Channels of all tokens of a stream, with nothing where a segment has none."""
    firsts = {name: value for each in stream.segments for name, value in each.channels.items()}
    return {
        name: torch.cat(
            [each.channels.get(name, first.new_full((len(each), *first.shape[1:]), _nothing(first))) for each in stream.segments]
        )
        for name, first in firsts.items()
    }


def spans(may: np.ndarray, share: float, longest: int, rng: np.random.Generator) -> np.ndarray:
    """bool [t]: spans of 1 to `longest` tokens, drawn until a share of those that may be hidden is."""
    hidden, wanted = np.zeros(len(may), dtype=bool), round(share * int(may.sum()))
    places = np.flatnonzero(may)
    while hidden.sum() < wanted:
        start = int(rng.integers(len(places)))
        free = [place for place in places[start : start + int(rng.integers(1, longest + 1))] if not hidden[place]]
        hidden[free[: wanted - int(hidden.sum())]] = True
    return hidden


def _weights(segment: Segment) -> np.ndarray:
    weight = segment.weight if isinstance(segment.weight, Tensor) else torch.full((len(segment),), float(segment.weight))
    return weight.numpy()


def _as_wide(mask: Tensor, value: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (value.ndim - 1))


def _nothing(value: Tensor) -> int:
    """What a token without a channel holds."""
    return 0 if value.is_floating_point() else -1


def _own(losses: Losses) -> tuple[Tensor, Tensor]:
    """The one loss of a model whose only head writes tokens, with what its backbone adds."""
    sums, weights = zip(*losses.values(), strict=True)
    return sum(sums[1:], sums[0]), sum(weights[1:], weights[0])
