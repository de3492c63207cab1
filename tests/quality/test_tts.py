"""Speech from text learned within minutes: durations before speech keep words from being lost in strings longer than any that was trained.

Spoken digits of two real voices, read as strings of two to five words; strings of six to ten are asked for. Both models have equal size,
steps and codec (one codebook of 1,024 entries, 50 a second, trained on the same recordings), and are heard by one recognizer that knows
digits alone, learned from the same recordings, whose errors on real strings of other recordings are told beside theirs.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from mmlm.data import token_shards
from mmlm.data.audio_files import read_sound
from mmlm.evaluation.speech_text import text_errors
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.sound import Sound
from mmlm.tokenizers.spoken_numbers import ONES
from tests.quality.digit_recognizer import DigitRecognizer

pytestmark = pytest.mark.quality
DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "speech_digits"
VOICES = ("george", "jackson")
LENGTHS, STRINGS = (6, 7, 8, 9, 10), 8  # strings of each length
OFF = ["train.validate_every=0", "train.sample_every=0"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of recordings, those with the index 0 to 4 apart, with a table of their texts."""
    if not DATA.is_dir():
        pytest.skip("needs the recordings of spoken digits")
    folder = tmp_path_factory.mktemp("digits")
    for part in ("train", "test"):
        (folder / part).mkdir()
    rows = ["file|text|speaker"]
    for voice in VOICES:
        with tarfile.open(DATA / f"digits_{voice}.tar") as tar:
            for member in tar.getmembers():
                name = Path(member.name).name
                if not name.endswith(".flac"):
                    continue
                digit, _, index = name.removesuffix(".flac").split("_")
                part = "test" if int(index) < 5 else "train"
                (folder / part / name).write_bytes(tar.extractfile(member).read())
                rows += [f"{name}|{ONES[int(digit)]}|{voice}"] if part == "train" else []
    (folder / "train" / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def codec(digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "user_cache_folder", lambda: digits / "cache")
        source = f"{{type: speech_folder, path: {digits / 'train'}, language: en, hold_out: 0, min_seconds: 0.1, on_bad: skip}}"
        train(
            Recipe.read("codec/single", [f"data.train=[{source}]", f"output={digits / 'codec'}", "train.steps=500", "task.seconds=1", *OFF])
        )
        yield digits / "codec"


def spoken(digits, codec, kind, texts):
    """(run's task, what a model of one kind says of some texts)."""
    source = f"{{type: speech_folder, path: {digits / 'train'}, language: en, hold_out: 0, on_bad: skip}}"
    overrides = [f"data.train=[{source}]", f"output={digits / kind}", f"tokenizers.codec={{type: small_codec, path: {codec}}}"]
    overrides += ["task.join=[2, 5]", "train.steps=1200", "backbone.width=192", "backbone.num_layers=4", *OFF]
    train(Recipe.read(f"tts/{kind}", overrides))
    _, task, model = load_run(digits / kind)
    return task, [one.sound for one in task.speak(model, texts, seed=1)]


def test_durations_keep_the_words_of_long_strings(digits, codec):
    rng = np.random.default_rng(0)
    strings = [rng.integers(0, 10, length).tolist() for length in LENGTHS for _ in range(STRINGS)]
    texts = [" ".join(ONES[digit] for digit in string) for string in strings]
    files = sorted((digits / "train").glob("*.flac"))
    clips = {digit: [read_sound(file, rate_hz=16000) for file in files if file.name.startswith(f"{digit}_")] for digit in range(10)}
    judge = DigitRecognizer().learn(clips)
    task, steered = spoken(digits, codec, "ralle", texts)
    _, plain = spoken(digits, codec, "plain", texts)
    real = []
    for number, string in enumerate(strings):
        voice = VOICES[number % 2]
        files = [digits / "test" / f"{digit}_{voice}_{rng.integers(5)}.flac" for digit in string]
        real.append(Sound(np.concatenate([read_sound(file, rate_hz=16000).wave_n for file in files]), 16000))
    through = task.codec.decode_many(task.codec.encode_many(real))
    said = {"real": real, "real through the codec": through, "with durations": steered, "plain": plain}
    wer = {name: text_errors(texts, judge.transcribe(sounds)).wer for name, sounds in said.items()}
    print("\nword errors of strings of 6 to 10 digits:", ", ".join(f"{name} {value:.3f}" for name, value in wer.items()))
    assert wer["real"] <= 0.1
    assert wer["with durations"] <= 0.6 * wer["plain"]
