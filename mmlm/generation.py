"""Generating and scoring: sampling, beams, grammars, guidance, streaming, options with a shared prefix.

A batch of prompts may have different lengths; batch size never changes a result: each sequence has its own random numbers, keyed by the
seed and its place. Scores are log-probabilities in float32.

Axes: b sequences   t tokens   v vocabulary rows   n options
Sources: top-p arXiv:1904.09751; min-p arXiv:2407.01082; repetition penalty arXiv:1909.05858; guidance arXiv:2306.17806.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from mmlm.backbone.cache import Cache
from mmlm.base.errors import RecipeError
from mmlm.base.schema import Strict
from mmlm.layout import Layout
from mmlm.model import MultimodalLM
from mmlm.stream import Batch, Segment, Stream, next_position, pad

Prompt: TypeAlias = Tensor | Stream


class Sampling(Strict):
    """How the next token is chosen. temperature 0 is greedy; the filters apply in the order of the fields."""

    repetition_penalty: float = Field(1.0, gt=0, description="divides positive and multiplies negative scores of tokens already written")
    temperature: float = Field(0.0, ge=0, description="0: always the best token")
    top_k: int | None = Field(None, ge=1, description="keep the best k tokens")
    top_p: float | None = Field(None, gt=0, le=1, description="keep the fewest tokens that hold this probability")
    min_p: float | None = Field(None, ge=0, le=1, description="keep tokens with at least this share of the best one's probability")
    num_beams: int = Field(1, ge=1, description="beams kept; more than 1 excludes a temperature")
    length_penalty: float = Field(1.0, ge=0, description="a beam's score is divided by its length to this power")


class Grammar(Protocol):
    """Which ids may come next."""

    def allowed(self, written: Sequence[int]) -> Sequence[int] | range:
        """The ids that may follow what was written since the prompt; empty: nothing may, the sequence ends."""


@dataclass(frozen=True)
class RangeGrammar:
    """Ids of one range only, and the stop ids, which end the sequence."""

    span: range
    stop: tuple[int, ...] = ()

    def allowed(self, written: Sequence[int]) -> Sequence[int]:
        """The range and the stop ids; nothing after one of these."""
        return [] if written and written[-1] in self.stop else [*self.span, *(index for index in self.stop if index not in self.span)]


class TrieGrammar:
    """One of several given sequences of ids, then the end. Raises RecipeError where one begins another: its end could not be told."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.root: dict[int, dict] = {}
        for sequence in sequences:
            node = self.root
            for index in sequence:
                node = node.setdefault(int(index), {})
        for sequence in sequences:
            if ids := [int(index) for index in sequence]:
                if not self.allowed(ids):
                    continue
                raise RecipeError(f"a trie cannot tell where {ids} ends, because it begins another sequence; add an end token to all.")
            raise RecipeError("a trie takes no empty sequence; add an end token to all.")

    def allowed(self, written: Sequence[int]) -> list[int]:
        """The ids that continue a sequence of the trie."""
        node = self.root
        for index in written:
            node = node.get(index, {})
        return list(node)


@dataclass
class Guidance:
    """Classifier-free guidance: scores = (1 + scale) * with prompt - scale * without. prompts: one unconditional prompt a sequence."""

    prompts: Sequence[Prompt]
    scale: float


@dataclass
class Generated:
    """What was written after one prompt. score: sum of log-probabilities under the unfiltered model. finished: ended by itself."""

    ids: list[int] = field(default_factory=list)
    score: float = 0.0
    finished: bool = False


class Decoding:
    """A model in the middle of writing: the cache and the scores of what may come next."""

    def __init__(self, model: MultimodalLM, prompts: Sequence[Prompt], room: int) -> None:
        self.model = model
        streams = [_stream(prompt, model) for prompt in prompts]
        batch = pad(streams, model.vocabulary).to(model.device)
        self.cache: Cache = model.backbone.init_cache(len(prompts), batch.ids.shape[1] + room)
        h_btd, _ = model.hidden(batch, self.cache)
        self.axes = batch.layout.axes
        last = (batch.layout.document > 0).sum(1) - 1
        self.next_position = torch.tensor([next_position(stream) for stream in streams], device=model.device)
        self.h_bd = h_btd[torch.arange(len(last)), last]

    @classmethod
    def behind(cls, model: MultimodalLM, prefix: Prompt, prompts: Sequence[Tensor], room: int) -> Decoding:
        """Prompts (ids [t], at least one token) that all go on from one prefix, which is read once."""
        if not all(isinstance(prompt, Tensor) and prompt.ndim == 1 and len(prompt) for prompt in prompts):
            raise RecipeError("a prompt behind a prefix must be ids [t] with at least one token.")
        decoding = cls(model, [prefix], max(len(prompt) for prompt in prompts) + room)
        decoding.select(torch.zeros(len(prompts), dtype=torch.long, device=model.device))
        ids_bt = torch.nn.utils.rnn.pad_sequence([prompt.to(model.device) for prompt in prompts], batch_first=True)
        sizes = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        h_btd = decoding.feed_many(ids_bt, (torch.arange(ids_bt.shape[1], device=model.device) < sizes[:, None]).int())
        decoding.h_bd = h_btd[torch.arange(len(prompts)), sizes - 1]
        return decoding

    def scores(self) -> Tensor:
        """Scores float32 [b, v] of the next token."""
        return self.model.heads["language_model"].predict(self.h_bd)

    def feed(self, ids_b: Tensor) -> None:
        """Take one token a sequence."""
        self.h_bd = self.feed_many(ids_b[:, None], torch.ones(len(ids_b), 1, dtype=torch.int32))[:, -1]

    def feed_many(self, ids_bt: Tensor, document_bt: Tensor) -> Tensor:
        """Take several tokens a sequence (document 0: padding at the end); hidden states [b, t, d]."""
        batch = _continuation(ids_bt, document_bt.to(ids_bt.device), self.next_position, self.axes)
        h_btd, _ = self.model.hidden(batch, self.cache)
        self.next_position = self.next_position + (batch.layout.document > 0).sum(1)
        return h_btd

    def select(self, index: Tensor) -> None:
        """Keep the sequences `index`, repeats allowed."""
        self.cache, self.h_bd = self.cache.select(index), self.h_bd[index]
        self.next_position = self.next_position[index]


@torch.no_grad()
def generate(
    model: MultimodalLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[int] = (),
    grammar: Grammar | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
) -> list[Generated]:
    """Continue every prompt. stop: ids that end a sequence (they are written). Raises RecipeError for settings that exclude each other."""
    sampling = sampling or Sampling()
    if sampling.num_beams > 1:
        filters = any(x is not None for x in (sampling.top_k, sampling.top_p, sampling.min_p)) or sampling.repetition_penalty != 1
        if sampling.temperature or filters or guidance is not None:
            raise RecipeError("num_beams above 1 excludes a temperature, filters, a repetition penalty and guidance.")
        return [_beam_search(model, prompt, max_new_tokens, sampling, stop, grammar) for prompt in prompts]
    found = [Generated() for _ in prompts]
    for step in stream(model, prompts, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop, grammar=grammar, guidance=guidance,
                       seed=seed):  # fmt: skip
        for number, (index, score, finished) in step.items():
            found[number].ids += [] if index is None else [index]
            found[number].score += score
            found[number].finished = finished
    return found


@torch.no_grad()
def stream(
    model: MultimodalLM,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[int] = (),
    grammar: Grammar | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
) -> Iterator[dict[int, tuple[int | None, float, bool]]]:
    """Yield each step as {place of the prompt: (id, log-probability, finished)} for the sequences still being written."""
    sampling = sampling or Sampling()
    if sampling.num_beams > 1:
        raise RecipeError("beams cannot be streamed: which one is best shows at the end. Use generate().")
    if guidance is not None and len(guidance.prompts) != len(prompts):
        raise RecipeError(f"guidance needs one unconditional prompt a sequence, but has {len(guidance.prompts)} for {len(prompts)}.")
    decoding = Decoding(model, prompts, max_new_tokens)
    free = Decoding(model, guidance.prompts, max_new_tokens) if guidance else None
    draws = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(len(prompts))]
    written: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        scores_bv = decoding.scores()
        if free is not None and guidance is not None:
            guided_bv = scores_bv + guidance.scale * (scores_bv - free.scores())
            scores_bv = torch.where(scores_bv.isneginf(), scores_bv, guided_bv)
        told: dict[int, tuple[int | None, float, bool]] = {}
        for row, number in enumerate(alive):
            told[number] = _choose(scores_bv[row], written[number], sampling, stop, grammar, draws[number])
            if (index := told[number][0]) is not None:
                written[number].append(index)
        yield told
        keep = [row for row, number in enumerate(alive) if not told[number][2]]
        if not keep:
            return
        if len(keep) < len(alive):
            index = torch.tensor(keep, device=model.device)
            decoding.select(index)
            if free is not None:
                free.select(index)
            alive = [alive[row] for row in keep]
        ids_b = torch.tensor([written[number][-1] for number in alive], device=model.device)
        decoding.feed(ids_b)
        if free is not None:
            free.feed(ids_b)


def _choose(
    scores_v: Tensor, written: list[int], sampling: Sampling, stop: Sequence[int], grammar: Grammar | None, draw: torch.Generator
) -> tuple[int | None, float, bool]:
    """(id, log-probability, finished) of the next token of one sequence; no id where the grammar allows none."""
    log_v = scores_v.log_softmax(-1)
    if grammar is not None:
        allowed = list(grammar.allowed(written))
        if not allowed:
            return None, 0.0, True
        only = torch.full_like(scores_v, -torch.inf)
        only[allowed] = scores_v[allowed]
        scores_v = only
    index = sample(scores_v, written, sampling, draw)
    ended = index in stop or (grammar is not None and not grammar.allowed([*written, index]))
    return index, float(log_v[index]), ended


def sample(scores_v: Tensor, written: Sequence[int], sampling: Sampling, draw: torch.Generator | None) -> int:
    """The id chosen from scores [v] by the filters of `sampling`, in the order of its fields."""
    if sampling.repetition_penalty != 1.0 and written:
        seen = torch.tensor(sorted(set(written)), device=scores_v.device)
        old = scores_v[seen]
        factor = sampling.repetition_penalty
        scores_v = scores_v.scatter(0, seen, torch.where(old > 0, old / factor, old * factor))
    if sampling.temperature == 0:
        return int(scores_v.argmax())
    scores_v = scores_v / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scores_v):
        scores_v = scores_v.masked_fill(scores_v < scores_v.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p is not None:
        ordered, order = scores_v.softmax(-1).sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        scores_v = scores_v.masked_fill(torch.zeros_like(beyond).scatter(0, order, beyond), -torch.inf)
    if sampling.min_p is not None:
        chances = scores_v.softmax(-1)
        scores_v = scores_v.masked_fill(chances < sampling.min_p * chances.max(), -torch.inf)
    return int(torch.multinomial(scores_v.softmax(-1).cpu(), 1, generator=draw))


def _beam_search(
    model: MultimodalLM, prompt: Prompt, max_new_tokens: int, sampling: Sampling, stop: Sequence[int], grammar: Grammar | None
) -> Generated:
    """The best finished beam (or the best unfinished one when none ends in time)."""
    decoding = Decoding(model, [prompt], max_new_tokens)
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[Generated] = []

    def rank(ids: list[int], score: float) -> float:
        return score / max(len(ids), 1) ** sampling.length_penalty

    for _ in range(max_new_tokens):
        log_bv = decoding.scores()
        options: list[tuple[float, int, int]] = []
        for row, (ids, score) in enumerate(beams):
            log_v = log_bv[row].log_softmax(-1)
            if grammar is not None:
                allowed = list(grammar.allowed(ids))
                if not allowed:
                    done.append(Generated(ids, score, True))
                    continue
                log_v = torch.full_like(log_v, -torch.inf).scatter(0, torch.tensor(allowed, device=log_v.device), log_v[allowed])
            best = log_v.topk(min(sampling.num_beams + max(sampling.num_beams, len(stop)), len(log_v)))
            options += [
                (score + value, row, index)
                for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                if value > -torch.inf
            ]
        options.sort(key=lambda option: -option[0])
        chosen: list[tuple[int, int]] = []
        fresh: list[tuple[list[int], float]] = []
        for score, row, index in options:
            ids = [*beams[row][0], index]
            if index in stop or (grammar is not None and not grammar.allowed(ids)):
                done.append(Generated(ids, score, True))
            elif len(fresh) < sampling.num_beams:
                chosen.append((row, index))
                fresh.append((ids, score))
        if not fresh:
            break
        beams = fresh
        done = sorted(done, key=lambda beam: -rank(beam.ids, beam.score))[: sampling.num_beams]
        if len(done) == sampling.num_beams and sampling.length_penalty == 0 and done[-1].score >= beams[0][1]:
            break
        decoding.select(torch.tensor([row for row, _ in chosen], device=model.device))
        decoding.feed(torch.tensor([index for _, index in chosen], device=model.device))
    done = done or [Generated(ids, score, False) for ids, score in beams]
    return max(done, key=lambda beam: rank(beam.ids, beam.score))


@torch.no_grad()
def score_options(
    model: MultimodalLM,
    prompts: Sequence[Any],
    options: Sequence[Sequence[Tensor]],
    *,
    length: Literal["sum", "mean", "first"] = "sum",
    end_token: int | None = None,
    prior: Sequence[Tensor] | None = None,
    prefix: Prompt | None = None,
    options_at_once: int = 256,
) -> list[Tensor]:
    """Log-probability of each option after each prompt; the prompt is read once and its cache shared by its options.

    prefix: what stands before every prompt (then ids [t] each), read once for all.   options: for each prompt its options, long [t] each.
    length: sum over the option's tokens, mean over them, or the first token alone.   end_token: written after every option, so that labels
    which begin one another compare fairly.   prior: for each prompt log-probabilities [n] to subtract.
    Returns float32 [n] for each prompt. Raises RecipeError when `first` cannot tell two options apart.
    """
    given = {"options": options, "prior": options if prior is None else prior}
    if wrong := next((name for name, some in given.items() if len(some) != len(prompts)), None):
        raise RecipeError(f"score_options needs {wrong} for each of the {len(prompts)} prompts, but has {len(given[wrong])}.")
    ended = [[torch.cat([o, o.new_tensor([end_token])]) if end_token is not None else o for o in some] for some in options]
    for some in ended:
        if not some or min(len(option) for option in some) == 0:
            raise RecipeError("score_options needs at least one option for every prompt, and no option may be empty.")
        if length == "first" and len({int(option[0]) for option in some}) < len(some):
            raise RecipeError("length 'first' needs options whose first tokens differ; use 'sum' or 'mean'.")
    room = max(len(option) for some in ended for option in some)
    decoding = Decoding.behind(model, prefix, prompts, room) if prefix is not None else Decoding(model, prompts, room)
    head = model.heads["language_model"]
    first_bv = head.predict(decoding.h_bd).log_softmax(-1)
    flat = [(row, option) for row, some in enumerate(ended) for option in some]
    scores = []
    cache, position = decoding.cache, decoding.next_position
    for start in range(0, len(flat), options_at_once):
        part = flat[start : start + options_at_once]
        rows = torch.tensor([row for row, _ in part], device=model.device)
        sizes = torch.tensor([len(option) for _, option in part], device=model.device)
        ids_nt = torch.nn.utils.rnn.pad_sequence([option for _, option in part], batch_first=True).to(model.device)
        score_n = first_bv[rows, ids_nt[:, 0]]
        if length != "first" and ids_nt.shape[1] > 1:
            real_nt = (torch.arange(ids_nt.shape[1] - 1, device=model.device) < sizes[:, None] - 1).int()
            decoding.cache, decoding.next_position = cache.select(rows), position[rows]
            h_ntd = decoding.feed_many(ids_nt[:, :-1], real_nt)
            at = real_nt > 0
            log_kv = head.predict(h_ntd[at]).log_softmax(-1)
            more = torch.zeros_like(real_nt, dtype=score_n.dtype)
            more[at] = log_kv.gather(1, ids_nt[:, 1:][at][:, None])[:, 0]
            score_n = score_n + more.sum(1)
        scores.append(score_n / sizes if length == "mean" else score_n)
    found = list(torch.cat(scores).split([len(some) for some in ended]))
    return found if prior is None else [score - before for score, before in zip(found, prior, strict=True)]


def _stream(prompt: Prompt, model: MultimodalLM) -> Stream:
    """A prompt of global ids as a stream; streams pass."""
    if isinstance(prompt, Stream):
        return prompt
    if prompt.ndim != 1 or len(prompt) == 0:
        raise RecipeError(f"a prompt must be a stream or ids [t] with at least one token, but has shape {tuple(prompt.shape)}.")
    segments, start, ids = [], 0, prompt.cpu()
    names = [model.vocabulary.name_of(index) for index in ids.tolist()]
    while start < len(ids):
        stop = next((at for at in range(start, len(ids)) if names[at] != names[start]), len(ids))
        segments.append(Segment(names[start], model.vocabulary.to_local(names[start], ids[start:stop])))
        start = stop
    return Stream(segments)


def _continuation(ids_bt: Tensor, document_bt: Tensor, position_b: Tensor, axes: tuple[str, ...]) -> Batch:
    """A batch of ids that go on from given positions, the same on every axis."""
    steps = torch.arange(ids_bt.shape[1], device=ids_bt.device)
    layout = Layout(document_bt, (position_b[:, None] + steps)[..., None].expand(-1, -1, len(axes)), axes)
    return Batch(ids=ids_bt, layout=layout, labels=ids_bt, weight=torch.zeros_like(ids_bt, dtype=torch.float32))
