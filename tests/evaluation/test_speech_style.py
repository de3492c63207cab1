"""Styles that are heard: traits of made sounds are those they were made with, and levels are told apart."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data.audio_files import write_sound
from mmlm.data.config import SpeechManifestConfig, StyledSpeechConfig
from mmlm.data.styled import asked_style, change_of
from mmlm.evaluation.config import EvaluateConfig
from mmlm.evaluation.judges import Style
from mmlm.evaluation.speech_style import traits
from mmlm.sound import Sound
from mmlm.tasks.base import Heard

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


def style_accuracy(sounds, records) -> dict[str, float]:
    """What the judge says."""
    heard = [Heard(sound, each.sound(), style=asked_style(each)) for sound, each in zip(sounds, records, strict=True)]
    found, count = Style(EvaluateConfig())(sounds, heard)
    assert count == sum(bool(each.labels) for each in records)
    return found


def test_traits_are_octaves_and_decibels() -> None:
    sound = voice(1.0, 256.0)
    found = traits(sound)
    speech = sound.wave_n[round(0.1 * RATE) :]
    assert found["pitch"] == pytest.approx(8.0, abs=0.02) and found["tempo"] == 0.0 and traits(voice(0.5, 256.0))["tempo"] == 1.0
    assert found["loudness"] == pytest.approx(10 * np.log10(np.mean(speech.astype(np.float64) ** 2)), abs=0.1)
    assert np.isnan(traits(Sound(np.zeros(RATE, np.float32), RATE))["pitch"])
    with pytest.raises(DataError, match="empty"):
        traits(Sound(np.zeros(0, np.float32), RATE))


def test_styles_are_told_from_their_sounds_and_not_from_others(records) -> None:
    sounds = [each.sound() for each in records]
    assert style_accuracy(sounds, records) == {"style": 1.0, "style_pitch": 1.0, "style_tempo": 1.0, "style_loudness": 1.0}
    levels = {name: {each.labels["style"][name] for each in records} for name in ("pitch", "tempo", "loudness")}
    assert all(len(each) == 3 for each in levels.values())
    for (name, found), change in zip(levels.items(), ("semitones", "rate", "level_db"), strict=True):
        for level in found:  # speech that is always at one level has it where it is asked for, and only there
            spoken = [at_level(each, name, level, change) for each in records]
            assert style_accuracy(spoken, records)[f"style_{name}"] == np.mean([each.labels["style"][name] == level for each in records])
    silent = style_accuracy([Sound(np.zeros(RATE, np.float32), RATE)] * len(records), records)
    assert silent["style_pitch"] == 0.0


def at_level(record, name: str, level: str, change: str) -> Sound:
    """A record with another level of one attribute."""
    config = StyledSpeechConfig(speech={"type": "speech_manifest", "path": "none"})
    style = {**record.labels["style"], name: level}
    return replace(record, change=replace(record.change, **{change: getattr(change_of(style, config), change)})).sound()


def test_further_is_as_good_and_records_without_styles_count_for_nothing(records) -> None:
    high = next(each for each in records if each.labels["style"]["pitch"] == "high")
    further = replace(high, change=replace(high.change, semitones=9.0)).sound()
    assert style_accuracy([further], [high])["style_pitch"] == 1.0
    plain = replace(high, labels={})
    assert style_accuracy([further], [plain]) == {}
    assert style_accuracy([further, further], [plain, high])["style_pitch"] == 1.0
