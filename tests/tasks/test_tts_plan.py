"""What is written is what was trained: stages read the streams that training reads, with voices, windows and further codebooks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mmlm.analysis.attention import attention_maps
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.objectives.config import OBJECTIVES
from mmlm.staged import generate_staged
from mmlm.stages import SoFar
from mmlm.stream import Stream, pack, unpack
from mmlm.tasks.config import TextToSpeechConfig
from mmlm.tasks.tts_plan import Said, SpeechPlan
from mmlm.tasks.tts_stages import Writing

BOOKS, PITCHES, LONGEST, PHONES, UNITS = [9, 7, 5], 6, 4, 11, 13
PLANS = {
    "plain": {},
    "prosody": {"prosody": "prosody"},
    "units": {"units": "units"},
    "instruction": {"instruction": "text", "units": "units"},
    "instruction alone": {"instruction": "text"},
    "delayed": {"order": "delay"},
    "delayed prosody": {"order": "delay", "prosody": "prosody"},
    "delayed units": {"order": "delay", "units": "units"},
}


def planned(kind: str, **config) -> SpeechPlan:
    return SpeechPlan(TextToSpeechConfig(**{"temperature": 0.0, **PLANS[kind], **config}), BOOKS, UNITS)


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
    units = torch.unique_consecutive(torch.randint(0, UNITS, (entries + 3,), generator=g))
    return Said(torch.randint(0, PHONES, (entries,), generator=g), codes, pitch, frames, units)


def scores(model: MultimodalLM, stream, name: str, shift: bool = True) -> torch.Tensor:
    """Scores [t, ids] of a range at every token of a stream."""
    (h_td,) = unpack(model.hidden(pack([stream], model.vocabulary, shift=shift))[0], pack([stream], model.vocabulary).layout)
    return model.heads["codes"].predict(h_td, name)


@pytest.mark.parametrize("voiced", [False, True])
@pytest.mark.parametrize("kind", PLANS)
@torch.no_grad()
def test_stages_write_what_the_training_stream_predicts(kind, voiced) -> None:
    plan = planned(kind)
    model = model_of(plan)
    voice = said(5, 3) if voiced else Said.nothing(len(BOOKS))
    texts = [said(number, 4 + number).text for number in range(2)]
    writing = Writing(plan, texts, [voice] * 2, model.vocabulary, 1.0, 12)
    for text, so_far in zip(texts, generate_staged(model, writing.prompts(), writing.stages()), strict=True):
        whole = together(plan, voice, text, so_far)
        codes, count = whole.codes, len(whole.codes) - len(voice.codes)
        if plan.has_prosody:
            assert count == max(1, int(so_far.written["prosody"][:, 1].sum()))
        stream = plan.first(whole)
        start = len(stream) - len(stream.segments[-1])
        for book in plan.parts[0].books:
            found = scores(model, stream, f"codec.{book}").argmax(-1)[start - 1 + book + len(voice.codes) :]
            assert found[:count].tolist() == codes[len(voice.codes) :, book].tolist()
        begin = len(whole.text)
        if plan.has_prosody:
            for book in range(2):
                best = scores(model, stream, f"prosody.{book}").argmax(-1)
                assert best[begin + len(voice.text) : begin + len(whole.text)].tolist() == so_far.written["prosody"][:, book].tolist()
        if plan.has_units:
            units = so_far.written["units"][:, 0].tolist()
            best = scores(model, stream, "unit.0").argmax(-1)[begin + len(whole.units) - len(units) :]
            assert units and best[: len(units)].tolist() == units
            assert so_far.finished["units"] == (int(best[len(units)]) == UNITS) or len(units) == 12
        for book in range(1, len(plan.parts)):
            rng = np.random.default_rng(0)
            stream = fixed_voice(plan, whole, book, len(voice.codes), rng)
            best = scores(model, stream, f"codec.{book}", shift=False).argmax(-1)[len(stream) - len(codes) :]
            assert best[len(voice.codes) :].tolist() == codes[len(voice.codes) :, book].tolist()


def together(plan: SpeechPlan, voice: Said, text: torch.Tensor, so_far) -> Said:
    """The voice and what was written behind it, as a sample of training has them."""
    codes = torch.cat([voice.codes, so_far.codes["codec"]])
    pairs = so_far.written.get("prosody", torch.zeros(0, 2, dtype=torch.long))
    frames = torch.cat([voice.frames, pairs[:, 1]])
    if plan.has_prosody and int(pairs[:, 1].sum()) == 0:
        frames[-1] = 1  # the one frame that is always written
    units = so_far.written.get("units", torch.zeros(0, 1, dtype=torch.long))[:, 0]
    units = torch.cat([voice.units[: int(0.8 * len(voice.units))], units])
    return Said(torch.cat([voice.text, text]), codes, torch.cat([voice.pitch, pairs[:, 0]]), frames, units)


GUIDED = {"hide_text": 0.1, "hide_units": 0.1, "guidance": {"units_over_text": 1.5, "speech_over_text": 3.0, "speech_over_units": 1.5}}


@torch.no_grad()
def test_guided_stages_write_the_best_of_scores_that_are_recomputed_and_moved_in_two_steps() -> None:
    plan = planned("instruction", **GUIDED)
    model = model_of(plan)
    texts = [said(number, 5).text for number in range(3)]
    writing = Writing(plan, texts, [Said.nothing(len(BOOKS))] * 3, model.vocabulary, 1.0, 12)
    plain = Writing(planned("instruction"), texts, writing.voices, model.vocabulary, 1.0, 12)
    unguided = generate_staged(model, plain.prompts(), plain.stages())
    differ = 0
    for text, so_far, other in zip(texts, generate_staged(model, writing.prompts(), writing.stages()), unguided, strict=True):
        whole = together(plan, writing.voices[0], text, so_far)
        stream = plan.first(whole)
        full, no_text, no_units = (
            {name: scores(model, each, name) for name in ("unit.0", "codec.0")}
            for each in (stream, plan.without_text(stream), plan.without_units(stream))
        )
        units = no_text["unit.0"] + 1.5 * (full["unit.0"] - no_text["unit.0"])
        codes = no_text["codec.0"] + 3.0 * (full["codec.0"] - no_text["codec.0"])
        codes = no_units["codec.0"] + 1.5 * (codes - no_units["codec.0"])
        expanded = 4.5 * full["codec.0"] - 3.0 * no_text["codec.0"] - 0.5 * no_units["codec.0"]
        assert torch.allclose(codes, expanded)
        begin, found = len(text), whole.units.tolist()
        units[begin, UNITS] = -torch.inf  # one unit is always written
        assert units[begin : begin + len(found)].argmax(-1).tolist() == found
        start = len(stream) - len(stream.segments[-1])
        written = whole.codes[:, 0].tolist()
        assert codes[start - 1 :][: len(written)].argmax(-1).tolist() == written
        differ += found != other.written["units"][:, 0].tolist()
    assert differ


@torch.no_grad()
def test_weights_of_one_change_nothing() -> None:
    plan = planned("instruction", hide_text=0.1, hide_units=0.1)
    ones = planned("instruction")
    model, texts = model_of(plan), [said(1, 6).text]
    found = []
    for each in (plan, ones):
        writing = Writing(each, texts, [Said.nothing(len(BOOKS))], model.vocabulary, 1.0, 12)
        (so_far,) = generate_staged(model, writing.prompts(), writing.stages(), seed=3)
        found.append(so_far)
    assert torch.equal(found[0].codes["codec"], found[1].codes["codec"])
    assert all(branch.weight == 1 for stage in writing.stages() for branch in stage.branches)


def test_what_is_hidden_stays_in_its_place_and_hidden_units_are_not_asked_for() -> None:
    rng, whole = np.random.default_rng(0), said(1, 6)
    plan = planned("instruction", hide_text=0.3, hide_units=0.3)
    kinds = {"text": 0, "unit": 0, "none": 0}
    for _ in range(200):
        stream = plan.sample(whole, rng)
        hidden = {each.modality for each in stream.segments[:-1] if each.hidden is not None and bool(each.hidden.all())}
        end = "book" not in stream.segments[0].channels
        assert len(stream) == len(whole.text) + 1 + len(whole.units) + 1 + 1 + len(whole.codes) + end
        assert "unit" not in hidden or stream.segments[2].weight == 0
        for name in hidden or {"none"}:
            kinds[name] += 1
    assert all(40 < kinds[name] < 85 for name in ("text", "unit")) and kinds["none"] > 60
    never = planned("instruction")
    assert not any(each.modality != "codec" and each.hidden is not None for _ in range(30) for each in never.sample(whole, rng).segments)


@torch.no_grad()
def test_an_instruction_is_read_in_both_directions_and_phonemes_in_one() -> None:
    for kind, sees in (("instruction", True), ("units", False)):
        plan, whole = planned(kind), said(2, 6)
        other = dataclasses.replace(whole, text=whole.text.clone())
        other.text[5] = (other.text[5] + 1) % PHONES
        first, second = (scores(model_of(plan, 1), plan.first(each), "unit.0")[:5] for each in (whole, other))
        assert torch.equal(first, second) != sees


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
    plan, whole = planned("prosody"), said(3, 6)
    model = model_of(plan, num_layers=1)
    other = dataclasses.replace(whole, text=whole.text.clone())
    other.text[5] = (other.text[5] + 1) % PHONES
    frame_of = torch.repeat_interleave(torch.arange(6), whole.frames)
    far, near = (frame_of < 4).nonzero()[:, 0], (frame_of >= 4).nonzero()[:, 0]

    def of(plan: SpeechPlan, some: Said) -> torch.Tensor:
        stream = plan.first(some)
        start = len(stream) - len(stream.segments[-1])
        return scores(model, stream, "codec.0")[start - 1 : -1]

    assert torch.equal(of(plan, whole)[far], of(plan, other)[far]) and not torch.equal(of(plan, whole)[near], of(plan, other)[near])
    wide = planned("prosody", window=None)
    assert not torch.allclose(of(wide, whole)[far], of(wide, other)[far])


@pytest.mark.parametrize("kind", ["prosody", "delayed prosody"])
def test_what_frames_look_at_is_the_phoneme_of_their_time_and_its_prosody(kind) -> None:
    plan, whole = planned(kind, window=0), said(3, 6)
    stream = plan.first(whole)
    maps, start = attention_maps(model_of(plan, num_layers=1).float(), stream), len(stream) - len(stream.segments[-1])
    parts = [maps[:, start - 1 : start - 1 + len(whole.codes), place] for place in plan.looked_at(whole)]
    of_frame = torch.repeat_interleave(torch.arange(6), whole.frames)[:, None] == torch.arange(6)
    assert len(parts) == 4 and all(part.shape[2] == 6 for part in parts)
    for part in parts:
        assert bool((part.sum(0)[of_frame] > 0).all()) and not part[:, ~of_frame].any()
    units = planned("units")
    (place,) = units.looked_at(whole)
    assert torch.equal(torch.cat([each.ids.flatten() for each in units.first(whole).segments[:3]])[place], whole.units)


@pytest.mark.parametrize("voiced", [False, True])
def test_at_another_pace_phonemes_begin_at_the_frames_of_that_pace(voiced) -> None:
    plan, text = planned("prosody"), said(3, 4).text
    voice = said(5, 3) if voiced else Said.nothing(len(BOOKS))
    writing = Writing(plan, [text], [voice], model_of(plan).vocabulary, 2.0, 99)
    so_far = SoFar(0, Stream([]), written={"prosody": torch.tensor([[1, 4], [2, 2], [0, 4], [3, 2]])})
    *_, phones, prosody, begin = writing._before_speech(so_far).segments
    starts = (voice.frames.cumsum(0) - voice.frames).tolist()
    behind = int(voice.frames.sum())
    wanted = [*starts, *(behind + at for at in (0, 2, 3, 5))]
    assert phones.position[:, 0].tolist() == prosody.position[:, 0].tolist() == wanted and len(begin) == 1
    assert prosody.ids[-4:, 1].tolist() == [4, 2, 4, 2]  # what it was planned as is read as it was


@pytest.mark.parametrize("kind", ["prosody", "delayed prosody"])
def test_phonemes_and_prosody_are_read_again_at_the_frame_with_which_each_begins(kind) -> None:
    plan = planned(kind)
    whole = dataclasses.replace(said(3, 3), frames=torch.tensor([2, 0, 4]))
    *_, text, prosody, _, speech = plan.first(whole).segments
    for again in (text, prosody):
        assert again.position[:, 0].tolist() == [0, 2, 2] and again.mark.tolist() == [0, 1, 2] and not again.weight
    assert torch.equal(text.ids, whole.text) and torch.equal(prosody.ids, torch.stack([whole.pitch, whole.frames], 1))
    assert speech.position[:3, 0].tolist() == [0, 1, 2]
    assert not planned("plain").timed(whole, whole.frames)


def test_delayed_steps_behind_the_last_frame_see_what_it_does() -> None:
    frames = torch.tensor([2, 3])
    rows, plain = planned("delayed prosody").rows(frames), planned("prosody").rows(frames)
    assert torch.equal(rows[:6], plain) and len(rows) == 6 + len(BOOKS) - 1
    assert rows[5:].tolist() == [plain[4].tolist()] * len(BOOKS)


@torch.no_grad()
@pytest.mark.parametrize("pace", [0.5, 1 / 1.3, 2.0])
def test_the_pace_gives_exactly_as_many_frames(pace) -> None:
    plan = planned("prosody")
    model = model_of(plan)
    texts = [said(8, 9).text]
    writing = Writing(plan, texts, [Said.nothing(len(BOOKS))], model.vocabulary, pace, 12)
    (so_far,) = generate_staged(model, writing.prompts(), writing.stages())
    total = int(so_far.written["prosody"][:, 1].sum())
    assert total > 3 and len(so_far.codes["codec"]) == int(total / pace + 0.5)


def test_all_that_is_learned_has_labels_and_fits_a_batch() -> None:
    rng = np.random.default_rng(0)
    for kind in PLANS:
        plan = planned(kind)
        model = model_of(plan).float()
        objective = OBJECTIVES.parse("causal").build()
        streams = [plan.sample(said(number, 5), rng) for number in range(12)]
        batch = objective.collate(streams, model.vocabulary)
        books = {len(stream.segments[-1].channels) for stream in streams}
        assert books == ({0} if plan.config.order == "delay" else {0, 1})  # both kinds were drawn
        losses = model.losses(batch)
        total, weight = losses["codebooks"]
        assert float(weight) == sum(model.loss_weights(batch).values()) > 0 and torch.isfinite(total)


def test_hidden_codes_are_still_learned() -> None:
    """A share of what is read is hidden, in both kinds of samples, and no label is lost."""
    rng, whole = np.random.default_rng(1), said(3, 6)
    plan = planned("prosody", code_dropout=0.5)
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
