"""What is written in stages: units before speech codes, prosody before units, further codebooks after the first.

A stage says what it reads before it begins (`prompt`), which ids it may write, how many, where they stand, what they see, how they are
drawn, and the branches of its guidance. Rules are functions of what one sequence holds so far. mmlm.staged runs stages.

Axes: n tokens   t frames   u codebooks   p position axes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.decoding import Decodable
from mmlm.generation import Sampling
from mmlm.stream import Segment, Stream, positions
from mmlm.tokenizers.patterns import Part
from mmlm.vocabulary import Vocabulary


@dataclass
class SoFar:
    """One sequence between two stages. number: its place among the prompts.   stream: what has been read and written.
    written: local ids [n] or codes [t, u] by stage.   codes: by modality, all codebooks written so far, EMPTY for the others.
    scores: sum of log-probabilities by stage, among the ids it may write.   finished: by stage, whether it ended by itself."""

    number: int
    stream: Stream
    written: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    finished: dict[str, bool] = field(default_factory=dict)


Count: TypeAlias = "int | Callable[[SoFar], int]"
PerToken: TypeAlias = "Callable[[SoFar, int], Tensor]"


@dataclass(frozen=True)
class Length:
    """How many tokens (with codebooks: frames) a stage writes: up to `most`, and a stop id does not count before `least`."""

    most: Count
    least: Count = 0

    @classmethod
    def exactly(cls, count: Count) -> Length:
        """So many, whatever the stop ids say."""
        return cls(count, count)

    def of(self, so_far: SoFar) -> tuple[int, int]:
        """(least, most) of one sequence. Raises RecipeError where they contradict each other."""
        most = self.most if isinstance(self.most, int) else int(self.most(so_far))
        least = most if self.least is self.most else self.least if isinstance(self.least, int) else int(self.least(so_far))
        if not 0 <= least <= most:
            raise RecipeError(f"the length of a stage must be from 0 on, but goes from {least} to {most} for prompt {so_far.number}.")
        return least, most


@dataclass(frozen=True)
class Branch:
    """One branch of guidance: the stream with something left out, and how far the scores move away from what is predicted then.

    scores <- branch + weight * (scores - branch), one branch after the other. What is left out of ids is hidden in place.
    """

    change: Callable[[Stream], Stream]
    weight: float


@dataclass(frozen=True)
class Stage:
    """One stage. modality: of the segment that it writes.   part: several codebooks a step, by the head of codebooks; None: one id a token,
    by the language-model head.   passes: None: step by step, from left to right; else all frames at once in so many passes, the most
    certain cells first (mask-predict), which reads what is hidden as the range `mask` and looks in both directions.

    prompt: the stream to go on from, default the stream so far; what it shares with this one is not read again.
    known: codes [t, u] of frames that the new ones go on from, as of a voice; they are read behind the prompt, in the order of the part,
    and rules count from their first step on.
    length: tokens or frames.   stop: ids of the whole vocabulary that end it; with codebooks of the range of the first one. A stop id ends
    what is written and is no part of it, but with codebooks it stands in the cell after the last frame, as in training.
    allowed: local ids that may be written, for each codebook; default all.
    position: None: they go on; a number: they start there; else a rule for [n] or [n, p].   mark, reach: as in a Segment, [n], [n, 2];
    the reach of token k is that of the query that predicts token k + 1.   channels: values added to the embeddings, one number or a rule.
    book_channel: channel of ids that tells, at all tokens, the codebook written at once.
    model: another model than that of the other stages.   chunk: frames after which a listener is told; 0: at the end.
    """

    name: str
    modality: str
    length: Length
    part: Part | None = None
    passes: int | None = None
    prompt: Callable[[SoFar], Stream] | None = None
    known: Callable[[SoFar], Tensor] | None = None
    stop: Sequence[int] = ()
    allowed: Sequence[Sequence[int]] | None = None
    sampling: Sampling | Sequence[Sampling] = Sampling()
    position: int | PerToken | None = None
    mark: PerToken | None = None
    reach: PerToken | None = None
    channels: Mapping[str, int | PerToken] = field(default_factory=dict)
    book_channel: str | None = None
    branches: Sequence[Branch] = ()
    model: Decodable | None = None
    chunk: int = 0

    def __post_init__(self) -> None:
        books = len(self.part.books) if self.part is not None else 1
        at_once = self.part is not None and self.part.at_once
        problem = ""
        if at_once != (self.passes is not None) and self.part is not None:
            problem = "a part that is written at once needs passes, and no other part has them"
        elif self.passes is not None and (self.passes < 1 or books != 1 or self.stop or self.chunk):
            problem = "what is written at once takes at least one pass, one codebook, no stop ids and no chunks"
        elif self.passes is not None and self.prompt is None:
            problem = "what is written at once needs a prompt, the stream without it"
        elif self.known is not None and (self.part is None or at_once):
            problem = "known codes need a part that is written step by step"
        elif self.book_channel is not None and not at_once:
            problem = "book_channel is for a codebook that is written at once"
        elif self.allowed is not None and (len(self.allowed) != books or not all(len(ids) for ids in self.allowed)):
            problem = f"allowed needs ids for each of its {books} codebooks"
        elif isinstance(self.sampling, Sequence) and len(self.sampling) != books:
            problem = f"sampling is for {len(self.sampling)} codebooks, but it writes {books}"
        elif any(one.num_beams > 1 for one in self.samplings):
            problem = "stages have no beams"
        elif self.passes is not None and any(one.repetition_penalty != 1 for one in self.samplings):
            problem = "what is written at once has no tokens before it for a repetition_penalty"
        if problem:
            raise RecipeError(f"stage {self.name!r}: {problem}.")

    @property
    def samplings(self) -> list[Sampling]:
        """How each codebook is drawn."""
        books = len(self.part.books) if self.part is not None else 1
        return [self.sampling] * books if isinstance(self.sampling, Sampling) else list(self.sampling)

    def begin(self, so_far: SoFar) -> Stream:
        """The stream that it goes on from, with the steps that known codes fill."""
        stream = so_far.stream if self.prompt is None else self.prompt(so_far)
        if self.known is None or self.part is None:
            return stream
        steps = self.part.forward(self.known(so_far))[: self.steps_before(so_far)]
        if not len(steps):
            return stream
        segment = Segment(self.modality, steps, **self._carried(dataclasses.replace(so_far, stream=stream), len(steps)))
        return dataclasses.replace(stream, segments=[*stream.segments, segment])

    def steps_before(self, so_far: SoFar) -> int:
        """Steps that known codes fill whole, before the first that writes."""
        return 0 if self.known is None or self.part is None else self.part.step(len(self.known(so_far)), self.part.books.start)

    def given(self, so_far: SoFar, tokens: int) -> dict[str, Any]:
        """What its tokens carry besides ids, as fields of a Segment of so many tokens. Raises RecipeError for rules of other sizes."""
        before = self.steps_before(so_far)
        found = self._carried(so_far, before + tokens)
        channels = {name: value[before:] for name, value in found.pop("channels").items()}
        return {name: value[before:] for name, value in found.items()} | {"channels": channels}

    def _carried(self, so_far: SoFar, tokens: int) -> dict[str, Any]:
        """The same of all its steps, those of known codes first."""
        axes, found = len(so_far.stream.axes), {}
        if self.position is not None:
            place = self.position + torch.arange(tokens) if isinstance(self.position, int) else self.position(so_far, tokens)
            found["position"] = self._sized("position", place[:, None].expand(-1, axes) if place.ndim == 1 else place, tokens)
        for name, rule in (("mark", self.mark), ("reach", self.reach)):
            if rule is not None:
                found[name] = self._sized(name, rule(so_far, tokens), tokens)
        channels = {}
        for name, channel in self.channels.items():
            value = torch.full((tokens,), channel) if isinstance(channel, int) else channel(so_far, tokens)
            channels[name] = self._sized(f"channel {name!r}", value, tokens)
        return found | {"channels": channels}

    def _sized(self, what: str, value: Tensor, tokens: int) -> Tensor:
        if len(value) < tokens:
            raise RecipeError(f"stage {self.name!r}: {what} is given for {len(value)} tokens, but it may write {tokens}.")
        return value[:tokens]


@dataclass(frozen=True)
class Choice:
    """What is chosen among in one codebook. span: the range's name.   rows: ids [n] of the whole vocabulary.   columns: the same within
    the range, for a head of codebooks.   local: what is written for each; stops: bool [n], those that end."""

    span: str
    rows: Tensor
    columns: Tensor
    stops: Tensor


def choices(stage: Stage, vocabulary: Vocabulary) -> list[Choice]:
    """One for each codebook that a stage writes. Raises RecipeError for ids outside the range."""
    found = []
    books = stage.part.books if stage.part is not None else range(1)
    for place, book in enumerate(books):
        name = stage.modality if stage.part is None else f"{stage.modality}.{book}"
        span = vocabulary.span(name)
        local = torch.arange(len(span)) if stage.allowed is None else torch.tensor(list(stage.allowed[place]))
        if int(local.min()) < 0 or int(local.max()) >= len(span):
            raise RecipeError(f"stage {stage.name!r}: allowed ids of {name!r} lie within 0 and {len(span) - 1}.")
        stop = torch.tensor(list(stage.stop) if place == 0 else [], dtype=torch.long)
        if stage.part is not None and not all(index in span for index in stop.tolist()):
            raise RecipeError(
                f"stage {stage.name!r}: with codebooks a stop id lies in the range {name!r}, {span.start} to {span.stop - 1}."
            )
        rows = local + span.start
        rows = torch.cat([rows[~torch.isin(rows, stop)], stop])
        found.append(Choice(name, rows, rows - span.start, torch.isin(rows, stop)))
    return found


def copied_positions(segment: int) -> PerToken:
    """The rule that each token stands where the token of an earlier segment of the stream stands."""

    def rule(so_far: SoFar, tokens: int) -> Tensor:
        return positions(so_far.stream)[segment]

    return rule


def hidden_in(stream: Stream, modality: str) -> Stream:
    """The stream with the ids of one modality hidden in place, which guidance leaves out so."""
    segments = [_all_hidden(segment) if segment.modality == modality else segment for segment in stream.segments]
    return dataclasses.replace(stream, segments=segments)


def _all_hidden(segment: Segment) -> Segment:
    return dataclasses.replace(segment, hidden=torch.ones(len(segment), dtype=torch.bool))
