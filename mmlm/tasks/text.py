"""Writing text: every token of a document is predicted from those before it, and so is its end.

A sample is a part of a document of at most `context` tokens, or several short documents that fill as many together. What is measured is
never cut: a long text is read in windows of `context` tokens, each beginning with the last token of the window before it, so that every
token is predicted once; and again in windows of `test_context` tokens where that is given, to see what lies beyond the trained length.

Axes: t tokens
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmlm.analysis.attention import attention_maps, most_focused
from mmlm.base.errors import DataError, RecipeError, unknown_name
from mmlm.base.files import write_text_whole
from mmlm.data.texts import Part, Passage
from mmlm.generation import Sampling, generate
from mmlm.generation import stream as written
from mmlm.model import MultimodalLM
from mmlm.stream import NO_LABEL, Segment, Stream, pack, unpack
from mmlm.tasks.config import TextTaskConfig
from mmlm.tasks.forms import ATTENTION, SEED, TEMPERATURE, Field, Looks, Number, Text, Values, looks
from mmlm.tokenizers.base import TextLike
from mmlm.tokenizers.growing import GrowingText

CHARACTERS = 5  # that a source draws for each token of the context; a sample keeps the first tokens of them
TOKENS_AT_ONCE, SCORES_AT_ONCE = 8192, 2048
BINS = 16
LOOKED_AT = 512  # tokens at most whose attention is shown
SAMPLES = "texts.txt"
EXAMPLE_WORDS = 8
SHOWN_START, SHOWN_TOKENS = 200, 100


@dataclass(frozen=True)
class Scored:
    """What a model makes of a passage. nats [t]: minus the log-probability of every predicted token; place [t]: tokens before it that
    were read with it; size_bytes: of the text of these tokens, in UTF-8. far: the same in windows of test_context tokens."""

    nats: np.ndarray
    place: np.ndarray
    size_bytes: int
    far: Scored | None = None

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        """Several as one."""
        nats = np.concatenate([np.zeros(0), *(one.nats for one in parts)])
        place = np.concatenate([np.zeros(0, dtype=np.int64), *(one.place for one in parts)])
        return cls(nats, place, sum(one.size_bytes for one in parts))


class TextTask:
    """Streams from passages, and how well a model predicts a text."""

    features: Mapping[str, int] = {}
    over = "tokens before it that were read together"

    def __init__(self, config: TextTaskConfig, tokenizers: Mapping[str, TextLike]) -> None:
        if config.tokenizer not in tokenizers:
            raise RecipeError(f"tokenizers: {unknown_name('tokenizer', config.tokenizer, tokenizers)}")
        self.config, self.tokenizers = config, tokenizers
        self.text = tokenizers[config.tokenizer]
        if config.end is not None:
            self.text.add_tokens([config.end])

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The range of the tokenizer."""
        return self.text.sizes

    @property
    def asks(self) -> int:
        """Characters of a drawn passage."""
        return CHARACTERS * self.config.context

    @property
    def metrics(self) -> Sequence[str]:
        """The names that `score` gives of drawn passages."""
        return ("perplexity", "bits_per_byte")

    @property
    def ends(self) -> list[int]:
        """Ids of the text range that end what is written."""
        return [] if self.config.end is None else [self.text.token(self.config.end)]

    inputs: Mapping[str, Field] = {
        "text": Text("Text", "its beginning", num_lines=4),
        "max_new_tokens": Number("Most new tokens", "", True, 64, 1, 512, 1),
        "temperature": TEMPERATURE,
        "seed": SEED,
        "attention": ATTENTION,
    }
    outputs: Mapping[str, Field] = {"text": Text("Continued"), "attention": Looks("What each new token looked at")}

    def given_by(self, record: Passage) -> Values:
        """Its first words, which leave half of the context to what follows."""
        words = record.parts[0].text.split()[:EXAMPLE_WORDS]
        while len(words) > 1 and len(self.text.ids([" ".join(words)])[0]) > self.config.context // 2:
            words.pop()
        return {"text": " ".join(words)}

    @property
    def longest(self) -> int:
        """Tokens of the longest text that a model was trained on or measured with."""
        return max(self.config.context, self.config.test_context or 0)

    def prompt(self, model: MultimodalLM, text: str, new_tokens: int = 0) -> torch.Tensor:
        """The ids [t] that a text is continued from.

        Raises DataError for one that is longer than the context, or that leaves a model of learned positions no room for the new tokens.
        """
        ids = [*(self.text.first or []), *self.text.ids([text])[0]]
        if len(ids) > self.longest:
            raise DataError(f"text: is {len(ids):,} tokens long; the context of this model is {self.longest:,}.")
        limit = model.backbone.config.learned_positions
        if limit is not None and len(ids) + new_tokens > limit:
            raise DataError(
                f"text: its {len(ids):,} tokens with {new_tokens:,} new ones are more than the {limit:,} that this model places."
            )
        return torch.tensor(ids) + model.vocabulary.span("text").start

    def answer(self, model: MultimodalLM, given: Values) -> Iterator[Values]:
        """The text with its continuation, token by token."""
        span, count = model.vocabulary.span("text"), int(given["max_new_tokens"])
        text, growing, prompt, found = given["text"], GrowingText(self.text.decode), self.prompt(model, given["text"], count), list[int]()
        if given["attention"] and len(prompt) + count > LOOKED_AT:
            raise DataError(f"attention: is shown of up to {LOOKED_AT} tokens, but these may become {len(prompt) + count:,}.")
        steps = written(
            model, [prompt], max_new_tokens=count, sampling=Sampling(temperature=given["temperature"]),
            stop=[span.start + each for each in self.ends], seed=int(given["seed"]),
        )  # fmt: skip
        yield {"text": text}
        for step in steps:
            for index, _, _ in step.values():
                if index is not None and index in span and index - span.start not in self.ends:
                    found.append(index - span.start)
                    text += growing.push(found[-1])
                    yield {"text": text}
        looked = self._attention(model, [*(prompt - span.start).tolist(), *found], len(prompt)) if given["attention"] else None
        yield {"text": text + growing.flush(), "attention": looked}

    def _attention(self, model: MultimodalLM, ids: Sequence[int], count: int) -> dict[str, Any] | None:
        """What the tokens behind the first `count` looked at, in the head that looks most at one thing at a time. None where nothing was
        written, or nothing looks."""
        maps_ntl = attention_maps(model, Stream([Segment("text", torch.tensor(ids))]))[:, count - 1 : -1, :-1]
        weights_tl = most_focused(maps_ntl)
        return None if weights_tl is None else looks([self.text.decode([each]) for each in ids[:-1]], weights_tl.T)

    def example(self, record: Passage, rng: np.random.Generator) -> Stream | None:
        """A segment for each part, as many tokens as the context holds."""
        left, segments = self.config.context, []
        for before, ids in self._ids(record.parts):
            if left < 2:
                break
            weight = torch.ones(min(left, len(ids)))
            weight[:before] = 0
            segments.append(Segment("text", torch.tensor(ids[:left]), weight=weight))
            left -= len(segments[-1])
        counts = [segment for segment in segments if len(segment) > 1]  # one token alone predicts nothing
        return Stream(counts) if counts else None

    def _ids(self, parts: Sequence[Part]) -> Iterator[tuple[int, list[int]]]:
        """(tokens at the start that are given, all tokens) of each part."""
        end = self.ends
        for part, ids in zip(parts, self.text.ids([part.text for part in parts]), strict=True):
            first = (self.text.first or end) if part.begins else []
            yield (len(first) or 1, [*first, *ids, *(end if part.ends else [])])

    def arrange(self, streams: Sequence[Stream]) -> list[Stream]:
        """Documents by `packing`: each part of a passage by itself, or all of a sample together."""
        if self.config.packing == "joined":
            return list(streams)
        return [Stream([segment]) for stream in streams for segment in stream.segments]

    def texts(self, record: Passage, rng: np.random.Generator) -> list[str]:
        """The parts."""
        return [part.text for part in record.parts]

    def title(self, record: Passage) -> str:
        """Where the parts come from."""
        return ", ".join(dict.fromkeys(part.name for part in record.parts)) or "a passage"

    def shown(self, record: Passage) -> str:
        """The tokens that fit the context, the end of a document as its token."""
        stream = self.example(record, np.random.default_rng(0))
        return "\n".join(self.text.decode(segment.ids.tolist()) for segment in stream.segments) if stream is not None else ""  # type: ignore[union-attr]

    @torch.no_grad()
    def predict(self, model: MultimodalLM, records: Sequence[Passage]) -> list[Scored]:
        """How well each passage is predicted: what a training sample would keep of it, or all of it where it is whole."""
        found = self._read(model, records, self.config.context)
        if (length := self.config.test_context or 0) <= self.config.context or not all(record.is_whole for record in records):
            return found
        return [replace(one, far=far) for one, far in zip(found, self._read(model, records, length), strict=True)]

    def _read(self, model: MultimodalLM, records: Sequence[Passage], length: int) -> list[Scored]:
        windows = [(number, stream) for number, record in enumerate(records) for stream in self._windows(record, length)]
        found: list[list[Scored]] = [[] for _ in records]
        batch: list[tuple[int, Stream]] = []
        for at, (number, stream) in enumerate(windows):
            batch.append((number, stream))
            if at + 1 == len(windows) or sum(len(each) for _, each in batch) + len(windows[at + 1][1]) > TOKENS_AT_ONCE:
                for (owner, _), scored in zip(batch, self._scored(model, [each for _, each in batch]), strict=True):
                    found[owner].append(scored)
                batch = []
        return [Scored.joined(parts) for parts in found]

    def _windows(self, record: Passage, length: int) -> Iterator[Stream]:
        if not record.is_whole:
            stream = self.example(record, np.random.default_rng(0))
            yield from self.arrange([stream] if stream is not None else [])
            return
        for before, ids in self._ids(record.parts):
            for start in range(0, max(1, len(ids) - 1), length - 1):
                window = ids[start : start + length]
                weight = torch.ones(len(window))
                weight[: 1 if start else before] = 0
                yield Stream([Segment("text", torch.tensor(window), weight=weight)])

    def _scored(self, model: MultimodalLM, streams: list[Stream]) -> Iterator[Scored]:
        packed = pack(streams, model.vocabulary).to(model.device)
        h_btd, _ = model.hidden(packed)
        head, span = model.heads["language_model"], model.vocabulary.span("text")
        for h_td, labels_t in zip(unpack(h_btd, packed.layout), unpack(packed.labels, packed.layout), strict=True):
            at = (labels_t != NO_LABEL).nonzero()[:, 0]
            nats = [
                torch.nn.functional.cross_entropy(head.predict(h_td[some]).float(), labels_t[some], reduction="none")
                for some in at.split(SCORES_AT_ONCE)
            ]
            said = [token for token in (labels_t[at] - span.start).tolist() if token not in self.ends]
            size = len(self.text.decode(said).encode()) if said else 0
            yield Scored(torch.cat(nats).double().cpu().numpy(), at.cpu().numpy() + 1, size)

    def score(self, outputs: Sequence[Scored], records: Sequence[Passage]) -> dict[str, float]:
        """perplexity: of a token.   bits_per_byte: of the text, which tokenizers do not change.

        Where test_context is longer than context, also bits_within and bits_beyond: of a token with fewer, or at least as many, tokens
        before it as were ever trained on, in windows of that length.
        """
        nats, tokens = sum(float(one.nats.sum()) for one in outputs), sum(len(one.nats) for one in outputs)
        size = sum(one.size_bytes for one in outputs)
        found = {"perplexity": math.exp(min(nats / max(tokens, 1), 700)), "bits_per_byte": nats / math.log(2) / max(size, 1)}
        far = Scored.joined([one.far for one in outputs if one.far is not None])
        beyond = far.place >= self.config.context
        for name, some in (("bits_within", ~beyond), ("bits_beyond", beyond)):
            if beyond.any():
                found[name] = float(far.nats[some].mean() / math.log(2))
        return found

    def baselines(self, records: Sequence[Passage]) -> dict[str, dict[str, float]]:
        """What a packer makes of the same texts, which learns from nothing but them."""
        data = "\n".join(part.text for record in records for part in record.parts).encode()
        packed = lzma.compress(data, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}])
        return {"xz": {"bits_per_byte": 8 * len(packed) / max(len(data), 1)}}

    def curves(self, outputs: Sequence[Scored], records: Sequence[Passage]) -> dict[str, list[tuple[float, float]]]:
        """Bits of a token over the number of tokens before it that were read with it."""
        every = Scored.joined([one.far or one for one in outputs])
        nats, place = every.nats, every.place
        edges = np.linspace(0, max(int(place.max(initial=0)), 1), BINS + 1)
        inside = [(place > low) & (place <= high) for low, high in zip(edges[:-1], edges[1:], strict=True)]
        return {"bits a token": [(float(place[some].mean()), float(nats[some].mean() / math.log(2))) for some in inside if some.any()]}

    def write_samples(self, model: MultimodalLM, records: Sequence[Passage], folder: Path) -> None:
        """texts.txt: the beginning of each passage, and how the model and the text go on."""
        parts = []
        for number, record in enumerate(records, 1):
            first = record.parts[0]
            (_, ids), *_ = self._ids([Part(first.text[:SHOWN_START], first.begins, ends=False)])
            zero = model.vocabulary.span("text").start
            stop, sampling = [zero + index for index in self.ends], Sampling(temperature=0.8)
            (found,) = generate(model, [torch.tensor(ids) + zero], max_new_tokens=SHOWN_TOKENS, sampling=sampling, stop=stop, seed=number)
            written = self.text.decode([index - zero for index in found.ids])
            rest = first.text[SHOWN_START : SHOWN_START + len(written)]
            parts += [f"sample {number}: {self.title(record)}", first.text[:SHOWN_START]]
            parts += [f"--- the model goes on, at temperature {sampling.temperature:g}", written, "--- the text goes on", rest, ""]
        write_text_whole(folder / SAMPLES, "\n".join(parts))
