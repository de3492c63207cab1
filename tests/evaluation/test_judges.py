"""What judges say of the sounds of a run, beside what was given, baselines and the truth; what is told of judges that are missing."""

from __future__ import annotations

import io
import json
import logging
import re
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from mmlm.base.errors import DataError, MissingExtra, RecipeError
from mmlm.data.audio_files import read_sound
from mmlm.evaluation import judges as module
from mmlm.evaluation.config import EvaluateConfig
from mmlm.evaluation.judges import MODEL, Judges, Verdict
from mmlm.evaluation.measure import Measurement
from mmlm.evaluation.measured_report import write_measured_report
from mmlm.evaluation.spectrogram import HEIGHT, MOST_COLUMNS, WIDTH, extent, levels, spectrogram_png
from mmlm.recipe import Recipe
from mmlm.sound import Sound
from mmlm.tasks.base import GIVEN, TRUE, Heard

RATE = 16_000


def noise(seed: int, level: float = 0.1, size: int = RATE) -> Sound:
    return Sound((level * np.random.default_rng(seed).normal(size=size)).astype(np.float32), RATE)


def mixed(one: Sound, other: Sound, share: float) -> Sound:
    return Sound((one.wave_n + share * other.wave_n).astype(np.float32), RATE)


class Parrot:
    """Understands the text that belongs to a length in samples."""

    name = "parrot"

    def __init__(self, said: dict[int, str]) -> None:
        self.said, self.asked = said, []

    def knows(self, language: str) -> bool:
        return language in ("en", "fr")

    def transcribe(self, sounds, language=None):
        self.asked.append(language)
        return [self.said[len(sound.wave_n)] for sound in sounds]


@pytest.fixture
def parrot(monkeypatch):
    pytest.importorskip("jiwer")
    bird = Parrot({RATE: "one two three four", RATE + 1: "one two", RATE + 2: "un deux"})
    monkeypatch.setattr(module, "Whisper", lambda folder: bird)
    return bird


def judged(heard, baselines=None, **config):
    ticks = []
    judges = Judges(EvaluateConfig(**config))
    found = judges.judge(heard, baselines or {}, [f"sound {at}" for at in range(len(heard))], lambda: ticks.append(1))
    assert len(ticks) == judges.passes
    return found


def test_all_voices_are_measured_against_the_truth_and_it_is_not_compared_with_itself():
    true = [noise(seed) for seed in range(3)]
    heard = [Heard(mixed(one, noise(9), 0.1), one, given=mixed(one, noise(8), 1.0)) for one in true]
    baselines = {"classical": [mixed(one, noise(7), 0.3) for one in true]}
    found = judged(heard, baselines, judges=["si_sdr"], num_players=2)
    assert list(found.values) == [MODEL, GIVEN, "classical"]
    for who, wanted in ((MODEL, 20), (GIVEN, 0), ("classical", 10.5)):
        assert abs(found.values[who]["si_sdr"] - wanted) < 0.3
    assert found.about == {"sounds": 3, "measured": {"si_sdr": 3}}
    assert [title for title, *_ in found.players] == ["sound 0", "sound 1"]
    assert list(found.players[0][1]) == [MODEL, GIVEN, "classical", TRUE]
    with pytest.raises(DataError, match="'classical' made 1 sounds of 3 records"):
        judged(heard, {"classical": true[:1]}, judges=["si_sdr"])


def test_what_cannot_be_compared_is_left_out_and_counted():
    one = noise(0)
    silent = Sound(np.zeros(RATE, np.float32), RATE)
    heard = [
        Heard(mixed(one, noise(1), 0.1), one),
        Heard(one, None),
        Heard(noise(2, size=RATE + 900), one),
        Heard(mixed(one, noise(3), 1.0), one, is_aligned=False),
        Heard(silent, one),
    ]
    found = judged(heard, judges=["si_sdr"])
    assert found.about["measured"] == {"si_sdr": 1} and abs(found.values[MODEL]["si_sdr"] - 20) < 0.3
    assert judged(heard[1:2], judges=["si_sdr"]).values == {MODEL: {}}


def test_words_are_counted_of_known_texts_in_known_languages_with_the_truth_beside(parrot):
    good, bad, french = noise(0), noise(1, size=RATE + 1), noise(2, size=RATE + 2)
    heard = [
        Heard(bad, good, text="One two, three four!", language="en-US"),
        Heard(french, french, text="un deux", language="fr"),
        Heard(bad, good, text="", language="en"),
        Heard(bad, good, text="odin dva", language="ru"),
        Heard(bad, good, text="...", language=""),
    ]
    found = judged(heard, judges=["words"])
    assert found.values[MODEL]["wer"] == pytest.approx(2 / 6) and found.values[TRUE] == {"wer": 0.0, "cer": 0.0}
    assert found.values[MODEL]["cer"] == pytest.approx(11 / 25)
    assert found.about == {"sounds": 5, "measured": {"words": 2}, "recognizer": "parrot"}
    assert set(parrot.asked) == {"en", "fr"}


def test_a_missing_judge_is_named_and_the_others_measure(monkeypatch, caplog):
    def missing(config):
        raise MissingExtra("'pesq' is not installed. Install it with: pip install 'mmlm[judges]'")

    monkeypatch.setattr(module, "BUILDERS", {"pesq": missing, "si_sdr": module.BUILDERS["si_sdr"]})
    with caplog.at_level(logging.WARNING):
        found = judged([Heard(mixed(noise(0), noise(1), 0.1), noise(0))])
    assert found.values[MODEL].keys() == {"si_sdr"}
    assert "judges that are not installed measure nothing" in caplog.text
    assert "pesq: 'pesq' is not installed. Install it with: pip install" in caplog.text
    with pytest.raises(MissingExtra, match="mmlm"):
        judged([Heard(noise(0), noise(0))], judges=["pesq"])


def test_a_spectrogram_shows_a_tone_at_its_height_and_silence_as_dark():
    time_n = np.arange(RATE) / RATE
    tone = Sound(np.sin(2 * np.pi * 2000 * time_n).astype(np.float32), RATE)
    level_fm = levels(tone)
    assert abs(level_fm[:, 60].argmax() - 0.75 * len(level_fm)) <= 2  # 2000 of 8000 Hz, from below
    assert (levels(Sound(np.zeros(99, np.float32), RATE)) == -80).all()
    picture = Image.open(io.BytesIO(spectrogram_png(tone)))
    shades = picture.convert("L")
    assert picture.size == (WIDTH, HEIGHT) and shades.getpixel((200, 90)) > 3 * max(1, shades.getpixel((200, 20)))
    assert len(spectrogram_png(noise(0, size=RATE * 20))) < 60_000


def test_a_long_sound_has_no_more_spectra_than_are_seen_and_its_picture_says_how_long_it_is():
    long = Sound(np.concatenate([np.zeros(60 * RATE, np.float32), noise(0, size=60 * RATE).wave_n]), RATE)
    level_fm = levels(long)
    assert level_fm.shape[1] <= MOST_COLUMNS and level_fm.shape[0] == levels(noise(0)).shape[0]
    quiet = (level_fm == -80).all(0)
    assert abs(quiet.mean() - 0.5) < 0.01 and quiet[: len(quiet) // 3].all()
    assert extent(long) == "120.00 s, 0 to 8 kHz" and extent(Sound(np.zeros(2205, np.float32), 22050)) == "0.10 s, 0 to 11.025 kHz"


def test_sources_whose_long_names_begin_alike_have_sounds_of_their_own(tmp_path):
    pytest.importorskip("soundfile")
    found, name = Measurement(), f"speech_files, path {'folder/' * 20}"
    for number, end in enumerate(("first", "second"), 1):
        one = Heard(noise(number), noise(number))
        found.verdicts[f"{name}{end}"] = Verdict(about={"sounds": 1, "measured": {}}, players=[("<a>", {MODEL: one.made}, one)])
        found.values[f"{name}{end}"] = {"si_sdr": 1.0}
    page = write_measured_report(tmp_path, Recipe.read("codec/small"), found, {"metrics": {}}, str).read_text()
    paths = re.findall(r'<audio[^>]*src="([^"]+)"', page)
    assert len(set(paths)) == 2 and "<a>" not in page and page.count("1.00 s, 0 to 8 kHz") == 2
    sounds = [read_sound(tmp_path / unquote(path)).wave_n for path in paths]
    assert all(np.abs(sound - noise(number).wave_n).max() < 1e-3 for number, sound in enumerate(sounds, 1))


@pytest.mark.parametrize(
    ("task", "override", "why"),
    [
        ("codec", "evaluate.shots=[4]", "evaluate.shots: has no effect: the task 'codec' is measured on data.test"),
        ("tabular", "evaluate.max_sounds=4", "evaluate.max_sounds: has no effect: the task 'tabular' makes no sound"),
        ("text", "evaluate.judges=[pesq]", "evaluate: has no effect: the task 'text' is measured on data.test"),
        ("codec", "evaluate.judges=[pesk]", r"evaluate.judges.0: must be .*Did you mean 'pesq'\?"),
    ],
)
def test_keys_of_the_other_kind_of_task_have_no_effect(task, override, why):
    recipe = {"codec": "codec/small", "tabular": "tabular/quickstart", "text": "probes/text"}[task]
    with pytest.raises(RecipeError, match=why):
        Recipe.read(recipe, [override])
    read = Recipe.read(recipe)
    dumped = read.dump()
    assert Recipe.read(dumped) == read and ("max_sounds" in dumped) == (task == "codec") and ("xgboost" in dumped) == (task == "tabular")
    assert json.dumps(dumped)
