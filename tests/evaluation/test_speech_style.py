"""Styles that are heard: traits of made sounds are those they were made with, and a scale tells levels apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data.audio_files import write_sound
from mmlm.data.config import SpeechManifestConfig, StyledSpeechConfig
from mmlm.evaluation.speech_style import StyleScale, style_accuracy, traits
from mmlm.sound import Sound

for package in ("soundfile", "soxr", "librosa"):
    pytest.importorskip(package)
RATE = 16_000


def voice(seconds: float, hertz: float) -> Sound:
    """Pulses of a voice, with a pause."""
    time_n = np.arange(round(seconds * RATE)) / RATE
    wave_n = sum(np.sin(2 * np.pi * hertz * k * time_n) / k for k in range(1, 8)) * (time_n > 0.1 * seconds)
    return Sound((0.1 * wave_n).astype(np.float32), RATE)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("style")
    lines = []
    for number in range(12):
        write_sound(folder / f"{number}.wav", voice(0.5, 190 + 2 * number))
        lines.append({"audio": f"{number}.wav", "text": f"text {number}"})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plain = SpeechManifestConfig(path=str(folder / "list.jsonl"), hold_out=0.0)
    return StyledSpeechConfig(speech=plain, copies=9).build().everything()


def test_traits_are_octaves_and_decibels() -> None:
    sound = voice(1.0, 256.0)
    found = traits(sound, plain_seconds=2.0)
    speech = sound.wave_n[round(0.1 * RATE) :]
    assert found["pitch"] == pytest.approx(8.0, abs=0.02) and found["tempo"] == 1.0
    assert found["loudness"] == pytest.approx(10 * np.log10(np.mean(speech.astype(np.float64) ** 2)), abs=0.1)
    assert np.isnan(traits(Sound(np.zeros(RATE, np.float32), RATE), 1.0)["pitch"])
    with pytest.raises(DataError, match="empty"):
        traits(Sound(np.zeros(0, np.float32), RATE), 1.0)


def test_styles_are_told_from_their_sounds_and_not_from_others(records) -> None:
    scale = StyleScale.of(records)
    sounds = [each.sound() for each in records]
    assert style_accuracy(sounds, records, scale) == {"pitch": 1.0, "tempo": 1.0, "loudness": 1.0, "style": 1.0}
    rng = np.random.default_rng(0)
    wrong = style_accuracy([sounds[at] for at in rng.permutation(len(sounds))], records, scale)
    assert all(0.2 < wrong[name] < 0.5 for name in ("pitch", "loudness"))
    silent = style_accuracy([Sound(np.zeros(RATE, np.float32), RATE)] * len(records), records, scale)
    assert silent["pitch"] == 0.0


def test_a_level_that_nobody_has_is_told(records) -> None:
    some = [each for each in records if each.labels["style"]["loudness"] != "loud"]
    with pytest.raises(DataError, match="has the loudness 'loud'"):
        StyleScale.of(some)
