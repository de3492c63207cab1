"""Generating and scoring: sampling, beams, grammars, guidance, streaming, options with a shared prefix.

A batch of prompts may have different lengths; batch size never changes a result: each sequence has its own random numbers, keyed by the
seed and its place. Scores are log-probabilities in float32.

Axes: b sequences   t tokens   v vocabulary rows   n options
Sources: top-p arXiv:1904.09751; min-p arXiv:2407.01082; repetition penalty arXiv:1909.05858; classifier-free guidance arXiv:2306.17806.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from mmlm.base.errors import NumericsError, RecipeError
from mmlm.base.schema import Strict
from mmlm.decoding import Decodable, Decoding, OneCallDecoding, Precision, Prompt, guided, open_decoding


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
    """Classifier-free guidance: scores = without + weight * (with - without). prompts: for each sequence one that leaves something out.

    Of several, each takes what the one before it made for `with`; all have caches of their own.
    """

    prompts: Sequence[Prompt]
    weight: float


@dataclass
class Generated:
    """What was written after one prompt. score: sum of log-probabilities under the unfiltered model. finished: ended by itself.
    text: the ids as text, where the model has a text tokenizer. logs: the log-probability of each id; none of beams."""

    ids: list[int] = field(default_factory=list)
    score: float = 0.0
    finished: bool = False
    text: str | None = None
    logs: list[float] = field(default_factory=list)


@torch.no_grad()
def generate(
    model: Decodable,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[int] = (),
    grammar: Grammar | Sequence[Grammar] | None = None,
    guidance: Sequence[Guidance] = (),
    seed: int = 0,
    precision: Precision = "auto",
) -> list[Generated]:
    """Continue every prompt. stop: ids that end a sequence (they are written). grammar: of all, or one a prompt. precision: see
    `open_decoding`.

    Raises RecipeError for settings that exclude each other.
    """
    sampling = sampling or Sampling()
    if max_new_tokens < 1:
        raise RecipeError(f"max_new_tokens must be at least 1, but is {max_new_tokens}.")
    if sampling.num_beams > 1:
        filters = any(x is not None for x in (sampling.top_k, sampling.top_p, sampling.min_p)) or sampling.repetition_penalty != 1
        if sampling.temperature or filters or guidance:
            raise RecipeError("num_beams above 1 excludes a temperature, filters, a repetition penalty and guidance.")
        pairs = zip(prompts, _grammars(grammar, len(prompts)), strict=True)
        return [_beam_search(model, prompt, max_new_tokens, sampling, stop, own, precision) for prompt, own in pairs]
    opened = None
    if sampling.temperature == 0 and sampling.repetition_penalty == 1 and grammar is None and not guidance:
        opened = open_decoding(model, prompts, max_new_tokens, precision)
        if isinstance(opened, OneCallDecoding):
            return _greedy(opened, max_new_tokens, stop)
    found = [Generated() for _ in prompts]
    for step in _steps(model, prompts, opened, max_new_tokens, sampling, stop, grammar, guidance, seed, precision):
        for number, (index, score, finished) in step.items():
            found[number].ids += [] if index is None else [index]
            found[number].logs += [] if index is None else [score]
            found[number].score += score
            found[number].finished = finished
    return found


@torch.no_grad()
def stream(
    model: Decodable,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[int] = (),
    grammar: Grammar | Sequence[Grammar] | None = None,
    guidance: Sequence[Guidance] = (),
    seed: int = 0,
    precision: Precision = "auto",
) -> Iterator[dict[int, tuple[int | None, float, bool]]]:
    """Yield each step as {place of the prompt: (id, log-probability, finished)} for the sequences still being written."""
    sampling = sampling or Sampling()
    if sampling.num_beams > 1:
        raise RecipeError("beams cannot be streamed: which one is best shows at the end. Use generate().")
    yield from _steps(model, prompts, None, max_new_tokens, sampling, stop, grammar, guidance, seed, precision)


def _steps(
    model: Decodable,
    prompts: Sequence[Prompt],
    opened: Decoding | OneCallDecoding | None,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[int],
    grammar: Grammar | Sequence[Grammar] | None,
    guidance: Sequence[Guidance],
    seed: int,
    precision: Precision,
) -> Iterator[dict[int, tuple[int | None, float, bool]]]:
    """As `stream`. opened: a decoding that has read the prompts already."""
    for branch in guidance:
        if len(branch.prompts) != len(prompts):
            raise RecipeError(f"guidance needs one unconditional prompt a sequence, but has {len(branch.prompts)} for {len(prompts)}.")
    guides = [branch for branch in guidance if branch.weight != 1]
    grammars = _grammars(grammar, len(prompts))
    decoding = opened or open_decoding(model, prompts, max_new_tokens, precision)
    free = [open_decoding(model, branch.prompts, max_new_tokens, precision) for branch in guides]
    decodings = [decoding, *free]
    draws = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(len(prompts))]
    written: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    try:
        for step in range(max_new_tokens):
            if step:
                ids_b = torch.tensor([written[number][-1] for number in alive])
                for each in decodings:
                    each.feed(ids_b)
            scores_bv = decoding.scores()
            if free:
                scores_bv = guided(scores_bv, [(each.scores(), branch.weight) for each, branch in zip(free, guides, strict=True)])
            told: dict[int, tuple[int | None, float, bool]] = {}
            for row, number in enumerate(alive):
                told[number] = _choose(scores_bv[row], written[number], sampling, stop, grammars[number], draws[number])
                if (index := told[number][0]) is not None:
                    written[number].append(index)
            yield told
            keep = [row for row, number in enumerate(alive) if not told[number][2]]
            if not keep:
                return
            if len(keep) < len(alive):
                for each in decodings:
                    each.select(torch.tensor(keep))
                alive = [alive[row] for row in keep]
    finally:
        for each in decodings:
            each.close()


def _grammars(grammar: Grammar | Sequence[Grammar] | None, count: int) -> Sequence[Grammar | None]:
    """One for each prompt. Raises RecipeError for another number of them."""
    if not isinstance(grammar, Sequence):
        return [grammar] * count
    if len(grammar) != count:
        raise RecipeError(f"there are {len(grammar)} grammars for {count} prompts; give one for all, or one each.")
    return grammar


def _greedy(decoding: OneCallDecoding, max_new_tokens: int, stop: Sequence[int]) -> list[Generated]:
    """The likeliest tokens, all steps after the first in one call."""
    scores_bv = decoding.scores()
    first_b = scores_bv.argmax(-1)
    log_b = scores_bv.log_softmax(-1).gather(1, first_b[:, None])[:, 0]
    require_finite(log_b)
    found = [Generated([index], log, index in stop, logs=[log]) for index, log in zip(first_b.tolist(), log_b.tolist(), strict=True)]
    alive = [row for row, one in enumerate(found) if not one.finished]
    if alive and max_new_tokens > 1:
        if len(alive) < len(found):
            decoding.select(torch.tensor(alive))
        ids_bt, logs_bt = decoding.greedy(first_b[alive], max_new_tokens - 1, stop)
        for row, ids, logs in zip(alive, ids_bt.tolist(), logs_bt.tolist(), strict=True):
            found[row].ids += [index for index in ids if index >= 0]
            found[row].logs += logs[: len(found[row].ids) - 1]
            found[row].score = sum(found[row].logs)
            found[row].finished = found[row].ids[-1] in stop
    decoding.close()
    return found


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
    require_finite(log_v[index])
    ended = index in stop or (grammar is not None and not grammar.allowed([*written, index]))
    return index, float(log_v[index]), ended


def require_finite(log: Tensor) -> None:
    """Raises NumericsError for scores or log-probabilities of NaN or infinity."""
    if not bool(log.isfinite().all()):
        raise NumericsError("the scores of the next token are not finite: the weights or the prompt hold NaN or infinity.")


def sample(scores_v: Tensor, written: Sequence[int], sampling: Sampling, draw: torch.Generator | None) -> int:
    """The id chosen from scores [v] by the filters of `sampling`, in the order of its fields.

    Raises NumericsError for a draw from scores that hold NaN, or of which none is finite.
    """
    if sampling.repetition_penalty != 1.0 and written:
        seen = torch.tensor(sorted(set(written)), device=scores_v.device)
        old = scores_v[seen]
        factor = sampling.repetition_penalty
        scores_v = scores_v.scatter(0, seen, torch.where(old > 0, old / factor, old * factor))
    if sampling.temperature == 0:
        return int(scores_v.argmax())
    require_finite(scores_v.max())
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
    model: Decodable,
    prompt: Prompt,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[int],
    grammar: Grammar | None,
    precision: Precision,
) -> Generated:
    """The best finished beam (or the best unfinished one when none ends in time)."""
    decoding = open_decoding(model, [prompt], max_new_tokens, precision)
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[Generated] = []

    def rank(ids: list[int], score: float) -> float:
        return score / max(len(ids), 1) ** sampling.length_penalty

    for left in reversed(range(max_new_tokens)):
        log_bv = decoding.scores()
        options: list[tuple[float, int, int]] = []
        for row, (ids, score) in enumerate(beams):
            log_v = log_bv[row].log_softmax(-1)
            require_finite(log_v.max())
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
        if not left or (len(done) == sampling.num_beams and sampling.length_penalty == 0 and done[-1].score >= beams[0][1]):
            break
        decoding.select(torch.tensor([row for row, _ in chosen], device=model.device))
        decoding.feed(torch.tensor([index for _, index in chosen], device=model.device))
    decoding.close()
    done = done or [Generated(ids, score, False) for ids, score in beams]
    return max(done, key=lambda beam: rank(beam.ids, beam.score))


@torch.no_grad()
def score_options(
    model: Decodable,
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

    prefix: what stands before every prompt, read once for all.   options: for each prompt its options, long [t] each.
    length: sum over the option's tokens, mean over them, or the first token alone.   end_token: written after every option, so that labels
    which begin one another compare fairly.   prior: for each prompt log-probabilities [n] to subtract.
    Returns float32 [n] for each prompt. Raises RecipeError when `first` cannot tell two options apart.
    """
    if not prompts and not options:
        return []
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
