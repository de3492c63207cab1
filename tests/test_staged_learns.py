"""What was trained is what stages write: sequences learned by heart come back, with their codebooks, their ends and their windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmlm.alignment import window_by_alignment
from mmlm.objectives.config import OBJECTIVES
from mmlm.staged import generate_staged
from mmlm.stages import Length, Stage
from mmlm.stream import Segment, Stream
from mmlm.tokenizers.config import CodebookOrder
from mmlm.tokenizers.patterns import CodebookPattern

SIZES = {"text": 10, "prosody.0": 4, "prosody.1": 4, "codec.0": 7, "codec.1": 6, "codec.2": 6, "end": 2, "mask": 1}
RANGES = [name for name in SIZES if "." in name]
END = sum(list(SIZES.values())[:3]) + 6
TEXTS = [torch.tensor(text) for text in ([1, 2, 3], [4, 1], [2, 2, 5, 0])]


def codes(number):
    return torch.randint(0, 6, (4 + number, 3), generator=torch.Generator().manual_seed(number))


def trained(tiny, objective, streams, steps=70):
    """A model that has seen the streams until it knows them."""
    heads = {"language_model": {"type": "language_model"}, "books": {"type": "codebooks", "ranges": RANGES}}
    model = tiny([{"type": "attention", "num_heads": 2}], heads, SIZES, width=32).float().train()
    made = OBJECTIVES.parse(objective).build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        ready = [made.prepare(stream, model.vocabulary, np.random.default_rng((step, at))) for at, stream in enumerate(streams)]
        losses = made.losses(model, made.collate(ready, model.vocabulary))
        loss = sum(total / weight for total, weight in losses.values() if float(weight))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("order", ["delay", "flatten"])
def test_codes_and_their_end_come_back(tiny, order):
    part = CodebookPattern(CodebookOrder(order=order), 3).parts[0]
    prompts = [Stream([Segment("text", text)]) for text in TEXTS]
    targets = [Segment("codec", part.forward(codes(number), end=6), weight=1.0) for number in range(3)]
    model = trained(tiny, "causal", [Stream([*prompt.segments, target]) for prompt, target in zip(prompts, targets, strict=True)])
    for number, so_far in enumerate(generate_staged(model, prompts, [Stage("codec", "codec", Length(20), part, stop=(END,))])):
        assert so_far.codes["codec"].tolist() == codes(number).tolist() and so_far.finished["codec"]


def test_the_first_codebook_and_then_the_others_come_back(tiny):
    parts = CodebookPattern(CodebookOrder(order="ar_nar"), 3).parts
    prompts = [Stream([Segment("text", text)]) for text in TEXTS]
    first = [Stream([*p.segments, Segment("codec", parts[0].forward(codes(n), end=6), weight=1.0)]) for n, p in enumerate(prompts)]
    whole = [Stream([*p.segments, Segment("codec", codes(n), weight=1.0)]) for n, p in enumerate(prompts)]
    model = trained(tiny, "causal", first)
    other = trained(tiny, {"type": "masked_books", "channel": "speaker"}, whole, 200)

    def frames(so_far):
        return len(so_far.codes["codec"])

    stages = [Stage("book 0", "codec", Length(20), parts[0], stop=(END,))]
    stages += [
        Stage(f"book {book}", "codec", Length.exactly(frames), parts[book], 1, prompt=lambda so_far: prompts[so_far.number],
              book_channel="speaker", model=other)
        for book in (1, 2)
    ]  # fmt: skip
    for number, so_far in enumerate(generate_staged(model, prompts, stages)):
        assert so_far.codes["codec"].tolist() == codes(number).tolist()


def test_prosody_and_then_speech_through_a_window_come_back(tiny):
    """RALL-E in small: pitch and duration of each phone, then codes that look at the phones around their own alone."""
    pair = CodebookPattern(CodebookOrder(order="parallel"), 2).parts[0]
    one = CodebookPattern(CodebookOrder(order="ar_nar"), 3).parts[0]
    prompts, streams, wanted = [], [], []
    for number, text in enumerate(TEXTS):
        g = torch.Generator().manual_seed(number)
        prosody = torch.randint(0, 4, (len(text), 2), generator=g)
        speech = torch.randint(0, 6, (int((prosody[:, 1] + 1).sum()), 1), generator=g)
        wanted.append((prosody, speech[:, 0]))
        phones = Segment("text", text, mark=torch.arange(len(text)))
        prompts.append(Stream([phones, Segment("end", torch.tensor([0]))]))
        rows = window_by_alignment(prosody[:, 1] + 1, 0)
        entries = Segment("prosody", prosody, weight=1.0, position=torch.arange(len(text))[:, None], mark=torch.arange(len(text)))
        cells = torch.nn.functional.pad(speech, (0, 2), value=-1)
        frames = Segment("codec", cells, weight=1.0, position=torch.arange(len(cells))[:, None], reach=rows[1:])
        streams.append(Stream([*prompts[-1].segments, entries, Segment("end", torch.tensor([1]), reach=rows[:1]), frames]))
    model = trained(tiny, "causal", streams, 100)

    def rows_of(so_far):
        return window_by_alignment(so_far.written["prosody"][:, 1] + 1, 0)

    def begin(so_far):
        return Stream([*so_far.stream.segments, Segment("end", torch.tensor([1]), reach=rows_of(so_far)[:1])])

    stages = [
        Stage("prosody", "prosody", Length.exactly(lambda so_far: len(so_far.stream.segments[0])), pair, position=0,
              mark=lambda so_far, n: torch.arange(n)),
        Stage("speech", "codec", Length.exactly(lambda so_far: len(rows_of(so_far)) - 1), one, prompt=begin, position=0,
              reach=lambda so_far, n: rows_of(so_far)[1:]),
    ]  # fmt: skip
    for so_far, (prosody, speech) in zip(generate_staged(model, prompts, stages), wanted, strict=True):
        assert so_far.written["prosody"].tolist() == prosody.tolist()
        assert so_far.written["speech"][:, 0].tolist() == speech.tolist()
    late = dataclasses.replace(stages[1], reach=lambda so_far, n: rows_of(so_far)[:-1])
    other = generate_staged(model, prompts, [stages[0], late])
    assert any(so_far.written["speech"][:, 0].tolist() != speech.tolist() for so_far, (_, speech) in zip(other, wanted, strict=True))
