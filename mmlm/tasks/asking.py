"""What tasks share that are shown something and asked about it, with answers of words and boxes on a shared decoder.

    [what is seen] [question] [box] kind -> answer end

Several requests of one sample go on from what is seen, each in a branch of its own. `kind` is a mark of what is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch

from mmlm.analysis.drawing import as_html, figure
from mmlm.analysis.question_prior import QuestionPrior
from mmlm.base.errors import DataError
from mmlm.generation import Grammar, Sampling, generate
from mmlm.model import MultimodalLM
from mmlm.stream import Segment, Stream, next_position
from mmlm.tasks.base import UsualTask, tokenizer_of
from mmlm.tasks.config import AskingConfig
from mmlm.tasks.forms import SEED, TEMPERATURE, Choice, Field, Text, Values
from mmlm.tokenizers.boxes import LOC, OBJ, TEXT, Box, BoxBins, Grounded, GroundedGrammar, Piece, parse, serialize
from mmlm.tokenizers.text import TextTokenizer

SPECIAL = "special"
PICTURED = 4  # records that a report shows
ANSWER = "answer"  # pieces of words, marks and bins
END = 0  # of an answer; behind it the marks of the kinds
COMMONEST, QUESTION_ALONE = "the commonest answer", "the question alone"
AT_ONCE = 32  # prompts that are read together
CAPTIONS = ("grounded_caption", "caption")
WORDED = ("expression", "question")  # what a person asks with words
ASKABLE = ("grounded_caption", "caption", "detection", "name", *WORDED)  # what is asked of something of which no box is known


class Bounded(Grammar, Protocol):
    """A grammar of so many tokens at most."""

    room: int


class Shown(Protocol):
    """A record that can be shown."""

    @property
    def read(self) -> Callable[[], np.ndarray]:
        """Gives what is seen."""

    @property
    def things(self) -> Sequence[Any]:
        """What stands in it."""


DRAWN: Mapping[str, Field] = {"temperature": TEMPERATURE, "seed": SEED}  # inputs of what is drawn, see `drawn_by`
Record = TypeVar("Record", bound=Shown)


@dataclass(frozen=True)
class Request:
    """What is asked, and the true answer, its boxes as the boxes' tokenizer has them. box: what is asked about.   view: which part of
    what is seen is meant, where that can be said; None: all."""

    kind: str
    question: str
    truth: Grounded
    box: Box | None = None
    view: int | None = None


@dataclass(frozen=True)
class Said:
    """An answer beside what was asked."""

    request: Request
    answer: Grounded


def asked_by(given: Values) -> Request:
    """What a person asks. Raises DataError where it needs words and has none, or has some that have no place."""
    kind, words = given["kind"], given["words"].strip()
    if (kind in WORDED) != bool(words):
        raise DataError(f"words: {'are needed' if kind in WORDED else 'have no place'} where {kind!r} is asked.")
    return Request(kind, words, Grounded(words))


def drawn_by(given: Values) -> dict[str, Any]:
    """How a person wants the answer to be drawn, as `answers` is told."""
    return {"sampling": Sampling(temperature=given["temperature"]), "seed": int(given["seed"])}


class AskingTask(UsualTask, Generic[Record]):
    """Base of these tasks. Subclasses say what is asked, how what is seen is read and answers are measured, and set `boxes`.

    kinds: of what can be asked.   measures: metrics by the kind whose answers they measure.   pointing: kinds that are answered with boxes.
    counted: metrics that are drawn over the number of things in what is seen.
    """

    asks = None
    kinds: ClassVar[Sequence[str]]
    measures: ClassVar[Mapping[str, Sequence[str]]]
    pointing: ClassVar[Sequence[str]]
    counted: ClassVar[Sequence[str]]
    twin: ClassVar[str]
    boxes: BoxBins
    prior: QuestionPrior | None = None

    def __init__(self, config: AskingConfig, tokenizers: Mapping[str, Any]) -> None:
        self.config, self.tokenizers = config, tokenizers
        self.text: TextTokenizer = tokenizer_of(tokenizers, config.text, "task.text", TextTokenizer, "text")

    @property
    def questions(self) -> Mapping[str, Field]:
        """Inputs by which a person asks, see `asked_by`."""
        kinds = [kind for kind in ASKABLE if kind in self.asked_kinds]
        words = Text("Words", "an expression for one thing in it, or a question", True, "")
        return {"kind": Choice("What is asked", "", True, kinds[0] if kinds else None, kinds), "words": words}

    @property
    def asked_kinds(self) -> list[str]:
        """The kinds of the recipe that have a share."""
        return [kind for kind in self.kinds if self.config.kinds.get(kind, 0) > 0]

    @property
    def metrics(self) -> Sequence[str]:
        """Those of the kinds that are asked for."""
        found = [name for kind, names in self.measures.items() if kind in self.asked_kinds for name in names]
        return [*dict.fromkeys(found), *(["malformed"] if self._points else [])]

    @property
    def _points(self) -> bool:
        return any(kind in self.pointing for kind in self.asked_kinds)

    @property
    def _written_ranges(self) -> dict[str, int]:
        return {**self.text.sizes, SPECIAL: 1 + len(self.kinds), **self.boxes.sizes}

    def requests(self, record: Record) -> list[Request]:
        """All that may be asked of a record, of the kinds of the recipe."""
        raise NotImplementedError

    def _wanted(self, requests: Sequence[Request]) -> list[Request]:
        """Those of the kinds of the recipe."""
        asked = self.asked_kinds
        return [each for each in requests if each.kind in asked]

    def prompt(self, seen: np.ndarray, request: Request) -> Stream:
        """What a model goes on from."""
        return Stream([self._seen(seen, request), *self._asking(request)])

    def _seen(self, seen: np.ndarray, request: Request) -> Segment:
        segment = self._read(seen, request)
        segment.mutual = int(self.config.mask == "prefix")
        return segment

    def _read(self, seen: np.ndarray, request: Request) -> Segment:
        """What is seen as a segment."""
        raise NotImplementedError

    def _fits(self, one: Request, other: Request) -> bool:
        """Whether one sample may answer both."""
        return True

    def _asking(self, request: Request) -> list[Segment]:
        """The question and what is asked for. What is seen sees no question where it answers several."""
        mutual = int(self.config.mask == "prefix") * min(self.config.requests, 2)
        segments = [Segment(SPECIAL, torch.tensor([1 + self.kinds.index(request.kind)]), mutual=mutual)]
        if request.box is not None:
            segments.insert(0, Segment(LOC, torch.tensor(self._about(request.box)), mutual=mutual))
        if request.question:
            segments.insert(0, Segment(TEXT, torch.tensor(self.text.ids([request.question])[0]), mutual=mutual))
        return segments

    def _about(self, box: Box) -> list[int]:
        """The bins by which a box is asked about."""
        return self.boxes.bins(box)

    def pieces(self, said: Grounded) -> list[Piece]:
        """An answer as ids of ranges, without its end."""
        return serialize(said, self.text.ids, self.boxes)

    def _answered(self, requests: Sequence[Request]) -> list[tuple[Request, Segment]]:
        """Those whose answers are short enough, with these."""
        return [(request, answer) for request in requests if len(answer := self._answer(request)) <= self.config.max_tokens]

    def _joined(self, seen: Segment, answered: Sequence[tuple[Request, Segment]]) -> list[Segment]:
        """What is seen with the answers, each in a branch of its own where a sample may have several."""
        segments, start = [seen], next_position(Stream([seen]))
        for branch, (request, answer) in enumerate(answered, 1):
            clock = start
            for segment in [*self._asking(request), answer]:
                if self.config.requests > 1:
                    segment.branch, segment.position = branch, torch.arange(clock, clock + len(segment))[:, None]
                segments.append(segment)
                clock += len(segment)
        return segments

    def _drawn(self, requests: list[Request], rng: np.random.Generator) -> list[Request]:
        """Different requests, as many as a sample answers: each time a kind by its share, then one of that kind."""
        found: list[Request] = []
        while requests and len(found) < self.config.requests:
            kinds = [kind for kind in self.kinds if any(each.kind == kind for each in requests)]
            shares = np.cumsum([self.config.kinds[kind] for kind in kinds])
            kind = kinds[int(np.searchsorted(shares, rng.random() * shares[-1], side="right").clip(max=len(kinds) - 1))]
            fitting = [place for place, each in enumerate(requests) if each.kind == kind]
            place = fitting[int(rng.integers(len(fitting)))]
            found.append(requests[place])
            rest = requests[:place] + requests[place + 1 :]
            requests = [each for each in rest if self._fits(requests[place], each)]
        return found

    def _answer(self, request: Request) -> Segment:
        pieces = [*self.pieces(request.truth), (SPECIAL, [END])]
        ids = torch.tensor([index for _, some in pieces for index in some])
        return Segment(ANSWER, ids, weight=1.0, pieces=[(name, len(some)) for name, some in pieces])

    def texts(self, record: Record, rng: np.random.Generator) -> list[str]:
        """Everything that is read or written of it."""
        return [text for each in self.requests(record) for text in (each.question, each.truth.text) if text]

    def written(self, said: Grounded) -> str:
        """An answer with its marks, for people."""
        parts = []
        for name, ids in self.pieces(said):
            if name == TEXT:
                parts.append(self.text.decode(ids))
            else:
                parts += [("<obj>", "</obj>")[index] if name == OBJ else f"<{index}>" for index in ids]
        return "".join(parts)

    def answers(
        self,
        model: MultimodalLM,
        seen: Sequence[np.ndarray],
        requests: Sequence[Request],
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> list[Grounded]:
        """The answer to each request of what is seen beside it, the likeliest tokens or drawn. Requests that ask the same of the same array
        are answered once."""
        firsts: dict[tuple[int, Request], int] = {}
        alike = [
            firsts.setdefault((id(each), _open(request)), place) for place, (each, request) in enumerate(zip(seen, requests, strict=True))
        ]
        vocabulary, room = model.vocabulary, self.config.max_tokens
        spans = {name: vocabulary.span(name) for name in (TEXT, OBJ, LOC)}
        end = vocabulary.span(SPECIAL).start + END
        grammars = {place: self._grammar(requests[place], spans, end, room) for place in firsts.values()}
        found: dict[int, Grounded] = {}
        for is_held in (False, True):
            places = [place for place, grammar in grammars.items() if (grammar is not None) == is_held]
            for start in range(0, len(places), AT_ONCE):
                some = places[start : start + AT_ONCE]
                prompts = [self.prompt(seen[place], requests[place]) for place in some]
                held = [grammar for place in some if (grammar := grammars[place]) is not None]
                most = max((grammar.room for grammar in held), default=room)
                how: dict[str, Any] = {"sampling": sampling, "seed": seed, "stop": [end], "grammar": held if is_held else None}
                said = generate(model, prompts, max_new_tokens=most, **how)
                for place, one in zip(some, said, strict=True):
                    found[place] = self._parsed(one.ids, vocabulary, end, one.logs)
        return [found[place] for place in alike]

    def _grammar(self, request: Request, spans: dict[str, range], end: int, room: int) -> Bounded | None:
        """What an answer is held to; None: nothing."""
        raise NotImplementedError

    @cached_property
    def _blank(self) -> list[int]:
        """Ids of words that show nothing, counted from 0: white space, and rows of the matrix without a word."""
        return [index for index in range(self.text.sizes[TEXT]) if not self.text.decode([index]).strip()]

    def _pointing(self, spans: dict[str, range], end: int, room: int, **form: bool) -> GroundedGrammar:
        """The grammar of an answer that points. form: as GroundedGrammar has it."""
        blank = {spans[TEXT].start + index for index in self._blank}
        return GroundedGrammar(spans, end, room, self.boxes, blank=blank, **form)

    def _parsed(self, ids: list[int], vocabulary: Any, end: int, logs: Sequence[float] = ()) -> Grounded:
        if end in ids:
            ids = ids[: ids.index(end)]
        names = [vocabulary.name_of(index) for index in ids]
        tokens = [(name, index - vocabulary.span(name).start) for name, index in zip(names, ids, strict=True)]
        return parse(tokens, self.text.decode, self.boxes, logs=logs)

    def learn_priors(self, records: Iterable[Record]) -> None:
        """Learn from records of training what can be answered from a question alone, where questions are asked."""
        if "question" not in self.asked_kinds:
            return
        asked = [request for record in records for request in self.requests(record) if request.kind == "question"]
        if asked:
            self.prior = QuestionPrior([each.question for each in asked], [each.truth.text for each in asked])

    def without_looking(self, requests: Sequence[Request]) -> dict[str, dict[str, float]]:
        """Of questions the share that the commonest answer fits, and that can be answered from the question alone."""
        questions = [each for each in requests if each.kind == "question"]
        if not questions:
            return {}
        true = [plain(each.truth.text) for each in questions]
        found = {COMMONEST: {"answers": Counter(true).most_common(1)[0][1] / len(true)}}
        if self.prior is not None:
            said = self.prior([each.question for each in questions])
            found[QUESTION_ALONE] = {"answers": float(np.mean([plain(one) == other for one, other in zip(said, true, strict=True)]))}
        return found

    def _measured(self, outputs: Sequence[list[Said]]) -> dict[str, float]:
        """See `score`; only of what is asked for."""
        raise NotImplementedError

    def _malformed(self, said: Mapping[str, Sequence[Said]]) -> float:
        """Share of what points, of answers by kind, with a fault in its marks."""
        pointing = [one for kind in self.pointing for one in said.get(kind, [])]
        return float(np.mean([bool(one.answer.faults) for one in pointing])) if pointing else 0.0

    def curves(self, outputs: Sequence[list[Said]], records: Sequence[Record]) -> dict[str, list[tuple[float, float]]]:
        """Metrics over the number of things in what is seen."""
        counts = sorted({len(record.things) for record in records})
        points: dict[str, list[tuple[float, float]]] = {}
        for count in counts:
            values = self._measured([output for output, record in zip(outputs, records, strict=True) if len(record.things) == count])
            for name in self.counted:
                if name in values:
                    points.setdefault(name, []).append((float(count), values[name]))
        return points if len(counts) > 1 else {}

    def predict(self, model: MultimodalLM, records: Sequence[Record]) -> list[list[Said]]:
        """Of each record the answers to all that may be asked."""
        return self._asked(model, records, [record.read() for record in records])

    def twins(self, model: MultimodalLM, records: Sequence[Record]) -> dict[str, list[list[Said]]]:
        """The same requests, but each with what the next record shows that shows anything else: what can be said without looking. None
        where all show the same."""
        said: list[list[Said]] = []
        for start in range(0, len(records), AT_ONCE):
            some = records[start : start + AT_ONCE]
            shown = [other for place in range(start, start + len(some)) if (other := _other(records, place)) is not None]
            if not shown:
                return {}
            said += self._asked(model, some, shown)
        return {self.twin: said} if said else {}

    def look(self, record: Record, said: Grounded, true: Grounded) -> np.ndarray:
        """What a record shows, uint8 [y, x, 3], with the boxes of an answer, those of the true one gray."""
        raise NotImplementedError

    def pictures(self, outputs: Sequence[list[Said]], records: Sequence[Record]) -> list[str]:
        """Of the first records an answer of each kind, beside the true one: those that point each with its boxes, the others below one
        picture."""
        found = []
        for said, record in list(zip(outputs, records, strict=True))[:PICTURED]:
            firsts = list({one.request.kind: one for one in reversed(said)}.values())
            pointing = [one for one in firsts if one.answer.phrases or one.request.truth.phrases]
            if worded := [one for one in firsts if one not in pointing]:
                seen = self.look(record, Grounded(""), Grounded(""))
                found.append(figure(seen, "<br>".join(map(_beside_truth, worded)), colors=64))
            for one in pointing:
                seen = self.look(record, one.answer, one.request.truth)
                found.append(figure(seen, _beside_truth(one), alt=one.answer.text, colors=64))
        return found

    def _asked(self, model: MultimodalLM, records: Sequence[Record], shown: Sequence[np.ndarray]) -> list[list[Said]]:
        asked = [self.requests(record) for record in records]
        flat = [(seen, request) for seen, requests in zip(shown, asked, strict=True) for request in requests]
        answers = iter(self.answers(model, [seen for seen, _ in flat], [request for _, request in flat]))
        return [[Said(request, next(answers)) for request in requests] for requests in asked]


def _open(request: Request) -> Request:
    """A request as who answers it knows it: without the true answer, but for phrases, whose words are given."""
    return request if request.kind == "phrases" else replace(request, truth=Grounded(""))


def _other(records: Sequence[Shown], place: int) -> np.ndarray | None:
    """What the next of several records, the first after the last, shows that is another thing than one at a place does; None where all
    show the same."""
    own = records[place].read()
    following = (each.read() for each in (*records[place + 1 :], *records[:place]))
    return next((each for each in following if not np.array_equal(each, own)), None)


def _beside_truth(one: Said) -> str:
    """An answer as HTML: what was asked, the words in the colours of their boxes, and the true words."""
    asked = one.request.kind.replace("_", " ") + (f": {one.request.question}" if one.request.question else "")
    return f"{escape(asked)}<br>{as_html(one.answer) or '(nothing)'}<br><small>true: {escape(one.request.truth.text)}</small>"


class Words:
    """Words alone, then the end."""

    def __init__(self, text: range, end: int, room: int) -> None:
        self.text, self.end, self.room = text, end, room

    def allowed(self, written: Sequence[int]) -> Sequence[int]:
        """The ids that may follow."""
        if written and written[-1] == self.end:
            return []
        return [*(self.text if len(written) < self.room - 1 else []), self.end]


def first_box(said: Grounded) -> Box | None:
    """The first box of an answer."""
    return next((box for phrase in said.phrases for box in phrase.boxes), None)


def by_kind(said: Sequence[Said]) -> dict[str, list[Said]]:
    """Answers by the kind of what was asked."""
    found: dict[str, list[Said]] = {}
    for one in said:
        found.setdefault(one.request.kind, []).append(one)
    return found


def captions_of(outputs: Sequence[Sequence[Said]]) -> tuple[list[str], list[list[str]]]:
    """What captions say, and beside each all true ones. Several of one thing have one question, and so one answer, which counts once."""
    texts: list[str] = []
    truths: list[list[str]] = []
    for said in outputs:
        groups: dict[tuple[str, int | None], list[Said]] = {}
        for one in said:
            if one.request.kind in CAPTIONS:
                groups.setdefault((one.request.kind, one.request.view), []).append(one)
        texts += [group[0].answer.text for group in groups.values()]
        truths += [[one.request.truth.text for one in group] for group in groups.values()]
    return texts, truths


def plain(text: str) -> str:
    """Words without case, spaces and full stop."""
    return " ".join(text.lower().strip().rstrip(".!").split())
