"""What is written is what was trained: stages read the streams that training reads, with voices, windows and further codebooks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.objectives.config import OBJECTIVES
from mmlm.staged import generate_staged
from mmlm.stream import pack, unpack
from mmlm.tasks.config import TextToSpeechConfig
from mmlm.tasks.tts_plan import Said, SpeechPlan
from mmlm.tasks.tts_stages import Writing

BOOKS, PITCHES, LONGEST, PHONES = [9, 7, 5], 6, 4, 11


def planned(prosody: bool, **config) -> SpeechPlan:
    given = {"temperature": 0.0, **({"prosody": "prosody"} if prosody else {}), **config}
    return SpeechPlan(TextToSpeechConfig(**given), BOOKS)


def model_of(plan: SpeechPlan, num_layers: int = 2) -> MultimodalLM:
    config = {
        "schema": 1,
        "vocabulary": plan.vocabulary(PHONES, PITCHES, LONGEST),
        "channels": {name: channel.model_dump() for name, channel in plan.channels.items()},
        "backbone": {"width": 16, "num_layers": num_layers, "pattern": [{"type": "attention", "num_heads": 2}]},
        "heads": {"codes": {"type": "codebooks"}},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = MultimodalLM(ModelConfig.model_validate(config)).double().eval()
        for parameter in model.parameters():  # scores far apart, so that the best one is never a matter of rounding
            parameter.data.mul_(3)
    return model


def said(seed: int, entries: int) -> Said:
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, LONGEST + 1, (entries,), generator=g)
    frames[-1] = 2
    codes = torch.stack([torch.randint(0, size, (int(frames.sum()),), generator=g) for size in BOOKS], dim=1)
    pitch = torch.randint(0, PITCHES, (entries,), generator=g)
    return Said(torch.randint(0, PHONES, (entries,), generator=g), codes, pitch, frames)


def scores(model: MultimodalLM, stream, name: str, shift: bool = True) -> torch.Tensor:
    """Scores [t, ids] of a range at every token of a stream."""
    (h_td,) = unpack(model.hidden(pack([stream], model.vocabulary, shift=shift))[0], pack([stream], model.vocabulary).layout)
    return model.heads["codes"].predict(h_td, name)


@pytest.mark.parametrize("voiced", [False, True])
@pytest.mark.parametrize("prosody", [False, True])
@torch.no_grad()
def test_stages_write_what_the_training_stream_predicts(prosody, voiced) -> None:
    plan = planned(prosody)
    model = model_of(plan)
    voice = said(5, 3) if voiced else Said.nothing(len(BOOKS))
    texts = [said(number, 4 + number).phone for number in range(2)]
    writing = Writing(plan, texts, [voice] * 2, model.vocabulary, 1.0, 12)
    for text, so_far in zip(texts, generate_staged(model, writing.prompts(), writing.stages()), strict=True):
        codes = torch.cat([voice.codes, so_far.codes["codec"]])
        pairs = so_far.written.get("prosody", torch.zeros(0, 2, dtype=torch.long))
        if prosody:
            assert len(so_far.codes["codec"]) == max(1, int(pairs[:, 1].sum())) and len(pairs) == len(text)
        whole = Said(torch.cat([voice.phone, text]), codes, torch.cat([voice.pitch, pairs[:, 0]]), torch.cat([voice.frames, pairs[:, 1]]))
        if prosody and int(pairs[:, 1].sum()) == 0:
            whole.frames[-1] = 1  # the one frame that is always written
        stream = plan.first(whole)
        found = scores(model, stream, "codec.0").argmax(-1)
        start = len(stream) - len(stream.segments[-1])
        written = codes[len(voice.codes) :, 0].tolist()
        assert found[start - 1 + len(voice.codes) :][: len(written)].tolist() == written
        if prosody:
            begin = len(whole.phone) + len(voice.phone)
            for book in range(2):
                best = scores(model, stream, f"prosody.{book}").argmax(-1)
                assert best[begin : begin + len(text)].tolist() == pairs[:, book].tolist()
        for book in range(1, len(BOOKS)):
            rng = np.random.default_rng(0)
            chance = dataclasses.replace(whole)
            stream = fixed_voice(plan, chance, book, len(voice.codes), rng)
            best = scores(model, stream, f"codec.{book}", shift=False).argmax(-1)[len(stream) - len(codes) :]
            assert best[len(voice.codes) :].tolist() == codes[len(voice.codes) :, book].tolist()


def fixed_voice(plan: SpeechPlan, whole: Said, book: int, frames: int, rng: np.random.Generator):
    """The training stream of a further codebook whose drawn voice has just so many frames."""

    class Drawn:
        def random(self):
            return 0.0

        def uniform(self, low, high):
            return frames / len(whole.codes) + 1e-9

        def permutation(self, count):
            return rng.permutation(count)

    return plan.further(whole, book, Drawn())  # type: ignore[arg-type]


@torch.no_grad()
def test_a_phoneme_outside_the_window_changes_nothing_of_a_frame() -> None:
    """In one layer; in more of them a frame hears of it through the prosody of its own phoneme, which sees all phonemes."""
    plan, whole = planned(True), said(3, 6)
    model = model_of(plan, num_layers=1)
    other = dataclasses.replace(whole, phone=whole.phone.clone())
    other.phone[5] = (other.phone[5] + 1) % PHONES
    frame_of = torch.repeat_interleave(torch.arange(6), whole.frames)
    far, near = (frame_of < 4).nonzero()[:, 0], (frame_of >= 4).nonzero()[:, 0]

    def of(plan: SpeechPlan, some: Said) -> torch.Tensor:
        stream = plan.first(some)
        start = len(stream) - len(stream.segments[-1])
        return scores(model, stream, "codec.0")[start - 1 : -1]

    assert torch.equal(of(plan, whole)[far], of(plan, other)[far]) and not torch.equal(of(plan, whole)[near], of(plan, other)[near])
    wide = planned(True, window=None)
    assert not torch.allclose(of(wide, whole)[far], of(wide, other)[far])


@torch.no_grad()
@pytest.mark.parametrize("pace", [0.5, 1 / 1.3, 2.0])
def test_the_pace_gives_exactly_as_many_frames(pace) -> None:
    plan = planned(True)
    model = model_of(plan)
    texts = [said(8, 9).phone]
    writing = Writing(plan, texts, [Said.nothing(len(BOOKS))], model.vocabulary, pace, 12)
    (so_far,) = generate_staged(model, writing.prompts(), writing.stages())
    total = int(so_far.written["prosody"][:, 1].sum())
    assert total > 3 and len(so_far.codes["codec"]) == int(total / pace + 0.5)


def test_all_that_is_learned_has_labels_and_fits_a_batch() -> None:
    rng = np.random.default_rng(0)
    for prosody in (False, True):
        plan = planned(prosody, further_share=0.5)
        model = model_of(plan).float()
        objective = OBJECTIVES.parse("causal").build()
        streams = [plan.sample(said(number, 5), rng) for number in range(12)]
        batch = objective.collate(streams, model.vocabulary)
        books = {len(stream.segments[-1].channels) for stream in streams}
        assert books == {0, 1}  # both kinds were drawn
        losses = model.losses(batch)
        total, weight = losses["codebooks"]
        assert float(weight) == sum(model.loss_weights(batch).values()) > 0 and torch.isfinite(total)


def test_hidden_codes_are_still_learned() -> None:
    """A share of what is read is hidden, in both kinds of samples, and no label is lost."""
    rng, whole = np.random.default_rng(1), said(3, 6)
    plan = planned(True, code_dropout=0.5)
    model = model_of(plan)
    kept, hiding = (plan.first(whole, rng=each) for each in (None, rng))
    assert hiding.segments[-1].hidden is not None and not bool(hiding.segments[-1].hidden[:, 1:].any())
    batches = [pack([stream], model.vocabulary) for stream in (kept, hiding)]
    assert batches[0].code_labels is not None and torch.equal(batches[0].code_labels, batches[1].code_labels)
    shown = [int((batch.codes[..., 0] == model.vocabulary.span("mask").start).sum()) for batch in batches]
    assert shown[0] == 0 and 0 < shown[1] == int(hiding.segments[-1].hidden.sum()) < len(whole.codes)
    further = plan.further(whole, 2, rng).segments[-1]
    target = further.weight > 0
    assert bool(further.hidden[target, 2].all()) and 0 < int(further.hidden[:, :2].sum()) < 2 * len(whole.codes)
    assert torch.equal(further.labels[target, 2], whole.codes[target, 2]) and not bool((further.labels[:, :2] >= 0).any())
