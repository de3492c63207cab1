"""A model in the middle of writing: what has been read, and the scores of what may come next.

Two forms with one interface. `Decoding` goes through the model's own layers and serves every model and layout. `OneCallDecoding` hands the
whole step of a decoder of attention, Mamba, DeltaNet and feed-forward layers to one C++ call (kernels/decode), several times as fast on a
CPU; its packed weights stay with the model until these change. `open_decoding` chooses. Both have a `cache`, which either can go on from.

Axes: b sequences   t tokens   d width   v vocabulary rows
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from mmlm.backbone.backbone import Backbone
from mmlm.backbone.cache import Cache
from mmlm.base.errors import RecipeError
from mmlm.base.giving_up import go_on
from mmlm.heads.codebooks import CodebooksHead
from mmlm.kernels.decode.fast import Decoder
from mmlm.kernels.decode.fast import Precision as Form
from mmlm.kernels.decode.spec import Unsupported
from mmlm.kernels.dispatch import choose
from mmlm.kernels.native import Unavailable
from mmlm.layout import Layout
from mmlm.one_call import cache_to_states, one_call_form, states_to_cache
from mmlm.stream import Batch, Segment, Stream, next_position, pad
from mmlm.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

Prompt: TypeAlias = Tensor | Stream
Precision = Literal["auto", "fp32", "bf16", "int8"]
PRECISIONS: tuple[str, ...] = ("auto", "fp32", "bf16", "int8")
STEPS_AT_ONCE = 64  # of the C++ decoder, which nothing stops in the middle of them
WORTH_PACKING = 32  # new tokens from which packing the weights pays without being asked for


class Decodable(Protocol):
    """What is needed of a model to write with it."""

    backbone: Backbone
    heads: nn.ModuleDict
    vocabulary: Vocabulary
    embedding: nn.Embedding

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def embed(self, batch: Batch) -> Tensor:
        """Vectors [b, t, d]."""

    def hidden(self, batch: Batch, cache: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states [b, t, d] and auxiliary losses."""


class Decoding:
    """A batch of sequences read and continued by the model's own layers."""

    def __init__(self, model: Decodable, prompts: Sequence[Prompt], room: int) -> None:
        self.model = model
        streams = [_stream(prompt, model.vocabulary) for prompt in prompts]
        batch = pad(streams, model.vocabulary).to(model.device)
        self.cache: Cache = model.backbone.init_cache(len(prompts), batch.ids.shape[1] + room)
        h_btd, _ = model.hidden(batch, self.cache)
        self.axes = batch.layout.axes
        last = (batch.layout.document > 0).sum(1) - 1
        self.next_position = torch.tensor([next_position(stream) for stream in streams], device=model.device)
        self.h_bd = h_btd[torch.arange(len(last)), last]

    @classmethod
    def behind(cls, model: Decodable, prefix: Prompt, prompts: Sequence[Prompt], room: int) -> Decoding:
        """Prompts (at least one token) that all go on from one prefix, which is read once."""
        streams = [_stream(prompt, model.vocabulary) for prompt in prompts]
        if not all(map(len, streams)):
            raise RecipeError("a prompt behind a prefix must hold at least one token.")
        decoding = cls(model, [prefix], max(map(len, streams)) + room)
        start = int(decoding.next_position[0])
        decoding.cache = decoding.cache.fan_out(len(streams))
        decoding.h_bd = decoding.h_bd.expand(len(streams), -1)
        decoding.read(pad(streams, model.vocabulary, starts=[start] * len(streams)))
        decoding.next_position = torch.tensor([next_position(stream, start) for stream in streams], device=model.device)
        return decoding

    def scores(self) -> Tensor:
        """Scores float32 [b, v] of the next token, to be used before the next token is fed."""
        return self.model.heads["language_model"].predict(self.h_bd)

    def scores_among(self, rows: Tensor) -> Tensor:
        """Scores [b, rows] of some ids of the vocabulary alone."""
        return self.model.heads["language_model"].predict(self.h_bd, rows.to(self.h_bd.device))

    def scores_of_book(self, name: str) -> Tensor:
        """Scores [b, ids of the range] of a codebook. Raises RecipeError where the model has no head for it."""
        return book_head(self.model, name).predict(self.h_bd, name)

    def read(self, batch: Batch) -> None:
        """Take what follows in each sequence (document 0: padding at the end), at the positions of the batch; some may take nothing."""
        batch = batch.to(self.model.device)
        h_btd, _ = self.model.hidden(batch, self.cache)
        count = (batch.layout.document > 0).sum(1)
        last_bd = h_btd[torch.arange(len(count)), (count - 1).clamp_min(0)]
        self.h_bd = torch.where(count[:, None] > 0, last_bd, self.h_bd)

    def feed(self, ids_b: Tensor) -> None:
        """Take one token a sequence."""
        ids_b = ids_b.to(self.model.device)
        self.h_bd = self.feed_many(ids_b[:, None], torch.ones(len(ids_b), 1, dtype=torch.int32))[:, -1]

    def feed_many(self, ids_bt: Tensor, document_bt: Tensor) -> Tensor:
        """Take several tokens a sequence (document 0: padding at the end); hidden states [b, t, d]."""
        batch = _continuation(ids_bt, document_bt.to(ids_bt.device), self.next_position, self.axes)
        h_btd, _ = self.model.hidden(batch, self.cache)
        self.next_position = self.next_position + (batch.layout.document > 0).sum(1)
        return h_btd

    def select(self, index: Tensor) -> None:
        """Keep the sequences `index`, repeats allowed."""
        index = index.to(self.model.device)
        self.cache, self.h_bd = self.cache.select(index), self.h_bd[index]
        self.next_position = self.next_position[index]

    def join(self, other: Decoding, room: int) -> None:
        """Take the sequences of another decoding behind these, with room for so many more tokens of each."""
        self.cache, self.h_bd = self.cache.merge(other.cache), torch.cat([self.h_bd, other.h_bd])
        self.next_position = torch.cat([self.next_position, other.next_position])

    def close(self) -> None:
        """Nothing is held beyond this object."""


class Packed(NamedTuple):
    """A model's packed weights, and the state of the weights that they are of."""

    state: Any
    decoder: Decoder


class OneCallDecoding:
    """A batch of sequences continued by the C++ decoder, and read by it but for prompts with bidirectional parts, which the layers read.

    `close` gives its weights back to the model's next decoding.
    """

    def __init__(self, model: Decodable, packed: Packed, prompts: Sequence[Prompt], room: int, with_logits: bool) -> None:
        self.model, self.packed, self.decoder = model, packed, packed.decoder
        decoder = packed.decoder
        if any(segment.last_mutual for prompt in prompts if isinstance(prompt, Stream) for segment in prompt.segments):
            read = Decoding(model, prompts, 0)
            decoder.reset(len(prompts), int(read.cache.length.max()) + room)
            self.cache = read.cache
            self.scores_bv = read.scores() if with_logits else torch.zeros(len(prompts), 0)
            decoder.hidden.copy_(read.h_bd)
            return
        batch = pad([_stream(prompt, model.vocabulary) for prompt in prompts], model.vocabulary)
        decoder.reset(len(prompts), batch.ids.shape[1] + room)
        self.scores_bv = self._extend(batch, None if with_logits else (0, 0))

    @property
    def cache(self) -> Cache:
        """What is kept of the sequences so far, a copy. Set, it is what the next token is fed behind."""
        return states_to_cache(self.decoder, self.model.backbone)

    @cache.setter
    def cache(self, cache: Cache) -> None:
        cache_to_states(cache, self.decoder)

    def scores(self) -> Tensor:
        """Scores float32 [b, v] of the next token, to be used before the next token is fed."""
        return self.scores_bv

    def scores_among(self, rows: Tensor) -> Tensor:
        """Scores [b, rows] of some ids of the vocabulary alone."""
        return self.model.heads["language_model"].predict(self.decoder.hidden.to(self.model.embedding.weight.dtype), rows)

    def scores_of_book(self, name: str) -> Tensor:
        """Scores [b, ids of the range] of a codebook. Raises RecipeError where the model has no head for it."""
        return book_head(self.model, name).predict(self.decoder.hidden.to(self.model.embedding.weight.dtype), name)

    def read(self, batch: Batch) -> None:
        """Take what follows in each sequence (document 0: padding at the end), from left to right; some may take nothing.

        `scores_among` and `scores_of_book` know of it, `scores` does not.
        """
        self._extend(batch, (0, 0))

    def _extend(self, batch: Batch, rows: tuple[int, int] | None) -> Tensor:
        go_on()
        layout = batch.layout
        lengths, plain = (layout.document > 0).sum(1), _is_ids_alone(batch)
        embedded = None if plain else self.model.embed(batch)
        return self.decoder.extend(
            batch.ids if plain else None, lengths, rows=rows, x_btd=embedded, position_bt=layout.position[..., 0], mark_bt=layout.mark,
            reach_bt2=layout.reach,
        )  # fmt: skip

    def feed(self, ids_b: Tensor) -> None:
        """Take one token a sequence."""
        go_on()
        self.scores_bv = self.decoder.step(ids_b)

    def select(self, index: Tensor) -> None:
        """Keep the sequences `index`, repeats allowed."""
        scores_bv = self.scores_bv[index]
        self.decoder.select(index)
        self.scores_bv = scores_bv

    def greedy(self, ids_b: Tensor, steps: int, stop: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The likeliest tokens after ids_b, long [b, at most steps], -1 after the first of `stop`, and their log-probabilities."""
        parts, ended_b = list[tuple[Tensor, Tensor]](), torch.zeros(len(ids_b), dtype=torch.bool)
        while steps > 0 and not bool(ended_b.all()):
            go_on()
            ids_bt, logs_bt = self.decoder.greedy(ids_b, min(steps, STEPS_AT_ONCE), stop)
            ids_bt[ended_b], logs_bt[ended_b] = -1, 0.0
            parts.append((ids_bt, logs_bt))
            steps -= ids_bt.shape[1]
            ended_b = (ids_bt[:, -1] < 0) | torch.isin(ids_bt[:, -1], torch.tensor(list(stop), dtype=torch.long))
            ids_b = ids_bt[:, -1].clamp_min(0)  # of those that have ended any will do
        return torch.cat([ids_bt for ids_bt, _ in parts], 1), torch.cat([logs_bt for _, logs_bt in parts], 1)

    def join(self, other: Decoding, room: int) -> None:
        """Take the sequences of another decoding behind these, with room for so many more tokens of each."""
        cache, scores_bv = self.cache.merge(other.cache), torch.cat([self.scores_bv, other.scores()])
        self.decoder.reset(len(scores_bv), int(cache.length.max()) + room)
        self.cache, self.scores_bv = cache, scores_bv

    def close(self) -> None:
        """Keep the packed weights for the model's next decoding."""
        _kept[self.model] = self.packed


# The packed weights of a model between two uses. A decoder that is at work is not in here, so that no two uses share one.
_kept: weakref.WeakKeyDictionary[Any, Packed] = weakref.WeakKeyDictionary()
# The decoder that was opened last for a model, as long as it lives, and the state that its weights are of; others at work take its weights.
_used: weakref.WeakKeyDictionary[Any, tuple[Any, weakref.ref[Decoder]]] = weakref.WeakKeyDictionary()
_told: set[str] = set()


def open_decoding(
    model: Decodable, prompts: Sequence[Prompt], room: int, precision: Precision = "auto", *, by_reading: bool = False
) -> Decoding | OneCallDecoding:
    """Read the prompts, with room for so many new tokens a sequence.

    by_reading: what follows is given to `read`, which tells the positions and the reach of all tokens, so that those of the prompts may be
    their own, and scores are asked for by `scores_among` and `scores_of_book`; else it is fed at the positions that follow.

    precision: of the C++ decoder. auto: that of the weights, so that nothing changes beyond the rounding of float32; the decoder is then
    packed where it pays and memory allows. Where it cannot serve, the model's layers do; for a precision that was asked for, a warning
    says so once.
    """
    if precision not in PRECISIONS:
        raise RecipeError(f"precision must be one of {', '.join(PRECISIONS)}, but is {precision!r}.")
    packed = _packed(model, prompts, room, precision, by_reading)
    return Decoding(model, prompts, room) if packed is None else OneCallDecoding(model, packed, prompts, room, not by_reading)


def _packed(model: Decodable, prompts: Sequence[Prompt], room: int, precision: Precision, by_reading: bool) -> Packed | None:
    """The packed weights of a model, ready for these prompts, or None."""
    weight = model.embedding.weight
    own: dict[torch.dtype, Form] = {torch.float32: "fp32", torch.bfloat16: "bf16"}
    wanted = own.get(weight.dtype) if precision == "auto" else precision
    kept = _kept.pop(model, None)
    try:
        if choose("decode") != "native":
            raise Unsupported("the native back end is switched off or cannot run here")
        if wanted is None:
            raise Unsupported(f"weights of {weight.dtype}")
        if reason := _unfit(prompts, by_reading):
            raise Unsupported(reason)
        state = (_state(model, wanted), by_reading)
        if kept is not None and kept.state == state:
            _used[model] = state, weakref.ref(kept.decoder)
            return kept
        if precision == "auto" and (room < WORTH_PACKING or not _fits_memory(model)):
            return None
        kept, used = None, _used.get(model)
        if used is not None and used[0] == state and (at_work := used[1]()) is not None:  # as of another branch of guidance
            return Packed(state, at_work.twin())
        spec, weights = one_call_form(model, with_logits=not by_reading)
        decoder = Decoder(spec, weights, wanted)
        _used[model] = state, weakref.ref(decoder)
        return Packed(state, decoder)
    except (Unsupported, Unavailable) as error:
        if precision != "auto" and (told := f"precision {precision!r} has no effect: {error}") not in _told:
            _told.add(told)
            logger.warning("%s", told)
        return None


def _unfit(prompts: Sequence[Prompt], by_reading: bool) -> str:
    """Why no decoder can go on from these prompts, or nothing."""
    for prompt in prompts:
        for segment in prompt.segments if isinstance(prompt, Stream) else ():
            hides = segment.mark is not None or segment.reach is not None
            if torch.as_tensor(segment.branch).any():
                return "a prompt with branches"
            if segment.position is not None and len(prompt.axes) > 1:
                return "a prompt with positions on several axes"
            if not by_reading and (segment.position is not None or hides):
                return "a prompt with positions or a reach of its own"
    return ""


def reads_on(streams: Sequence[Stream]) -> bool:
    """Whether the C++ decoder can read these behind others, from left to right."""
    return not _unfit(streams, True) and not any(segment.last_mutual for stream in streams for segment in stream.segments)


def _is_ids_alone(batch: Batch) -> bool:
    return batch.codes is None and not batch.features and not batch.channels


def book_head(model: Decodable, name: str) -> CodebooksHead:
    """The head that predicts a codebook. Raises RecipeError where there is none."""
    heads = [head for head in model.heads.values() if isinstance(head, CodebooksHead)]
    for head in heads:
        if name in head.spans:
            return head
    known = ", ".join(span for head in heads for span in head.spans) or "no codebook"
    raise RecipeError(f"the model has no head for the codebook {name!r}; its heads of codebooks predict {known}.")


def guided(scores: Tensor, without: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Classifier-free guidance, one branch after the other: scores <- branch + weight * (scores - branch).

    without: scores of each branch, and its weight; 1 changes nothing. What had no chance has none afterwards.
    """
    for free, weight in without:
        if weight != 1:
            scores = torch.where(scores.isneginf(), scores, free + weight * (scores - free))
    return scores


@torch.no_grad()
def _state(model: Decodable, precision: str) -> Any:
    """Changes whenever a weight does. Norms are part of it, since a fused optimizer does not count as a change in torch's own count."""
    parameters = [*model.embedding.parameters(), *model.backbone.parameters(), *model.heads.parameters()]
    if any(parameter.is_inference() for parameter in parameters):
        return object()  # these keep no count of their changes
    places = [(parameter.data_ptr(), parameter._version, parameter.dtype) for parameter in parameters]
    return precision, torch.get_num_threads(), places, torch.stack(torch._foreach_norm(parameters)).tolist()


def _fits_memory(model: Decodable) -> bool:
    """Whether a copy of the weights takes no more than a quarter of the machine's memory."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.backbone.parameters())
    try:
        return 4 * size < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return True


def _stream(prompt: Prompt, vocabulary: Vocabulary) -> Stream:
    """A prompt of global ids as a stream; streams pass."""
    if isinstance(prompt, Stream):
        return prompt
    if prompt.ndim != 1 or len(prompt) == 0:
        raise RecipeError(f"a prompt must be a stream or ids [t] with at least one token, but has shape {tuple(prompt.shape)}.")
    segments, start, ids = [], 0, prompt.cpu()
    names = [vocabulary.name_of(index) for index in ids.tolist()]
    while start < len(ids):
        stop = next((at for at in range(start, len(ids)) if names[at] != names[start]), len(ids))
        segments.append(Segment(names[start], vocabulary.to_local(names[start], ids[start:stop])))
        start = stop
    return Stream(segments)


def _continuation(ids_bt: Tensor, document_bt: Tensor, position_b: Tensor, axes: tuple[str, ...]) -> Batch:
    """A batch of ids that go on from given positions, the same on every axis."""
    steps = torch.arange(ids_bt.shape[1], device=ids_bt.device)
    layout = Layout(document_bt, (position_b[:, None] + steps)[..., None].expand(-1, -1, len(axes)), axes)
    return Batch(ids=ids_bt, layout=layout, labels=ids_bt, weight=torch.zeros_like(ids_bt, dtype=torch.float32))
