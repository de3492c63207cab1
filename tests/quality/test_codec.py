"""What a codec keeps of speech after minutes of training: words, every book counts, the codes decide, a large book in use.

English prompts of Asterisk, one real voice; one in twelve is held out and measured. Words are those that Whisper hears in the prompts of 2
to 12 s, beside those it hears in the recordings themselves; STOI and PESQ are of all prompts of at least a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from mmlm.evaluation.speech_quality import quality
from mmlm.evaluation.speech_text import intelligibility
from mmlm.evaluation.whisper import Whisper
from mmlm.objectives.audio import mel_distance
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.sound import Sound
from mmlm.tokenizers.codec.griffin_lim import mel_griffin_lim
from mmlm.tokenizers.quantizers import perplexity

pytestmark = pytest.mark.quality
ENGLISH = ["data.train.0.languages=[en]", "data.train.0.hold_out=0.0833"]
SHORT = [*ENGLISH, "train.steps=900", "train.validate_every=0", "train.sample_every=0"]


@dataclass
class HeldOut:
    """Recordings that nothing was trained on. said: those long enough to be understood by themselves, with their texts."""

    sounds: list[Sound]
    said: list[Sound]
    texts: list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    utterances = Recipe.read("codec/small", ENGLISH).data.train[0].build().held_out_records().everything()
    said = [each for each in utterances if 2 <= each.seconds <= 12 and len(each.text.split()) >= 3]
    sounds = [each.sound(16000) for each in utterances if each.seconds >= 1]
    return HeldOut(sounds, [each.sound(16000) for each in said], [each.text for each in said])


@pytest.fixture(scope="module")
def recognizer():
    return Whisper()


@pytest.fixture(scope="module")
def original(recognizer, held_out):
    """Word error rate on the recordings themselves."""
    return intelligibility(recognizer, held_out.said, held_out.texts).errors.wer


def trained(folder, name, *overrides) -> Any:
    """The codec of a run of a shipped recipe on English."""
    recipe = Recipe.read(f"codec/{name}", [*SHORT, f"output={folder / str(len(list(folder.iterdir())))}", *overrides])
    train(recipe)
    return load_run(recipe.output)[1].codec


@pytest.fixture(scope="module")
def small(folder):
    return trained(folder, "small")


@pytest.fixture(scope="module")
def reorganized(folder):
    return trained(folder, "simcodec")


def through(codec, sounds, books=None):
    return codec.decode_many(codec.encode_many(sounds, books))


def told(decoded, sounds) -> tuple[float, float]:
    """(STOI, PESQ)."""
    found = quality(decoded, sounds, ["stoi", "pesq_wb"]).values
    return found["stoi"], found["pesq_wb"]


def test_words_at_3_2_kbit_are_understood_as_in_the_recording(small, held_out, recognizer, original):
    found = intelligibility(recognizer, through(small, held_out.said), held_out.texts).errors
    print(f"\nWER {found.wer:.3f}, of the recordings {original:.3f}; {found.words} words in {found.clips} prompts")
    assert found.wer <= original + 0.03


def test_speech_at_3_2_kbit_is_intelligible_and_every_further_book_helps(small, held_out):
    found = [told(through(small, held_out.sounds, books), held_out.sounds) for books in (1, 2, 4, 8)]
    print("\nbooks 1, 2, 4, 8:", ", ".join(f"STOI {one:.3f} PESQ {other:.2f}" for one, other in found))
    for values in zip(*found, strict=True):
        assert all(less < more for less, more in zip(values, values[1:], strict=False))
    assert found[-1][0] >= 0.92


def test_codes_in_another_order_say_nothing(small, held_out, recognizer):
    g = torch.Generator().manual_seed(0)
    segments = small.encode_many(held_out.said)
    for segment in segments:
        segment.ids = segment.ids[torch.randperm(len(segment), generator=g)]
    found = intelligibility(recognizer, small.decode_many(segments), held_out.texts).errors
    print(f"\nWER of shuffled codes {found.wer:.3f}")
    assert found.wer > 0.9


def test_it_is_better_than_mel_frames_and_griffin_lim_at_as_many_frames(small, held_out):
    classical = told([mel_griffin_lim(sound, small.hop) for sound in held_out.sounds], held_out.sounds)
    decoded = told(through(small, held_out.sounds), held_out.sounds)
    print("\nGriffin-Lim STOI {:.3f} PESQ {:.2f}, codec STOI {:.3f} PESQ {:.2f}".format(*classical, *decoded))
    assert all(mine > theirs for mine, theirs in zip(decoded, classical, strict=True))


def test_voices_that_were_never_heard_lose_quality_but_can_be_followed(small, held_out):
    """Italian, French and Russian speakers through a codec of one English voice."""
    others = Recipe.read("codec/small", ["data.train.0.languages=[it, fr, ru]", "data.train.0.hold_out=0.0833"])
    utterances = others.data.train[0].build().held_out_records().everything()
    voices = {each.language: [] for each in utterances}
    for each in utterances:
        if 1 <= each.seconds <= 6 and len(voices[each.language]) < 12:
            voices[each.language].append(each.sound(16000))
    known = told(through(small, held_out.sounds), held_out.sounds)[0]
    found = {language: told(through(small, sounds), sounds) for language, sounds in voices.items()}
    print("\n", {language: f"STOI {one:.3f} PESQ {other:.2f}" for language, (one, other) in found.items()})
    assert all(0.6 < one < known for one, _ in found.values())


def test_words_at_500_bits_with_one_number_a_token(reorganized, held_out, recognizer, original):
    found = intelligibility(recognizer, through(reorganized, held_out.said), held_out.texts).errors
    figures = told(through(reorganized, held_out.sounds), held_out.sounds)
    print("\nWER {:.3f}, of the recordings {:.3f}; STOI {:.3f} PESQ {:.2f}".format(found.wer, original, *figures))
    assert found.wer <= original + 0.15


def test_a_reorganized_book_is_in_use_where_one_learned_at_once_is_not(reorganized, folder, held_out):
    """The same steps, losses and size of the book; what differs is stage one. Reconstruction must not be worse."""
    weights = Recipe.read("codec/simcodec").train.loss_weights
    same = ", ".join(f"{name}: {weight}" for name, weight in weights.items() if name != "diversity")
    direct = "tokenizers.codec={type: single_codec, kept: [32, 32], stage_one: 0.0}"
    at_once = trained(folder, "simcodec", direct, f"train.loss_weights={{{same}}}")
    used, far = [], []
    for codec in (reorganized, at_once):
        segments = codec.encode_many(held_out.sounds)
        used.append(perplexity(torch.cat([segment.ids for segment in segments]), 1024))
        far.append(_mel(codec.decode_many(segments), held_out.sounds))
    print(f"\nperplexity of 1024: reorganized {used[0]:.0f}, at once {used[1]:.0f}; mel distance {far[0]:.3f}, {far[1]:.3f}")
    assert used[0] >= 2 * used[1] and far[0] <= far[1]


def _mel(decoded: list[Sound], sounds: list[Sound]) -> float:
    pairs = zip(decoded, sounds, strict=True)
    return float(np.mean([float(mel_distance(torch.tensor(a.wave_n)[None], torch.tensor(b.wave_n)[None], 16000)) for a, b in pairs]))
