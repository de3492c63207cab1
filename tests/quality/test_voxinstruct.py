"""Speech that does what an instruction asks for, learned within minutes: style and content from one text, units between, guidance.

Spoken digits of a real voice, as strings of two or three words, each at several pitches, paces and levels; strings that were never
trained on are asked for. Style is heard from the sound alone (median pitch, duration against the plain recording's, power), content by a
Whisper. Both are told for the recordings through the codec too: no model of these tokens is expected beyond that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmlm.data import token_shards
from mmlm.data.audio_files import write_sound
from mmlm.data.config import AsteriskConfig
from mmlm.data.instructions import bare
from mmlm.data.styled import asked_style
from mmlm.evaluation.config import EvaluateConfig
from mmlm.evaluation.judges import Style
from mmlm.evaluation.speech_text import text_errors
from mmlm.evaluation.whisper import Whisper
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.sound import Sound
from mmlm.tasks.base import Heard
from mmlm.tokenizers.spoken_numbers import ONES

pytestmark = pytest.mark.quality
STRINGS, ASKED = 300, 120
OFF = ["train.validate_every=0", "train.sample_every=0"]
UNGUIDED = [f"task.guidance.{key}=1.0" for key in ("units_over_text", "speech_over_text", "speech_over_units")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with strings of digits and a list of them."""
    folder = tmp_path_factory.mktemp("voxinstruct")
    write_strings(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "user_cache_folder", lambda: folder / "cache")
        yield folder


def write_strings(folder: Path) -> None:
    """Strings of two or three recorded digits, all different, with their texts."""
    config = AsteriskConfig(languages=["en"], needs_text=True, trim_silence=True, trim_margin_seconds=0.03, hold_out=0)
    prompts = config.build().everything()
    names = {f"en/digits/{digit}": word for digit, word in enumerate(ONES[:10])}
    waves = {names[each.id]: each.sound(16000).wave_n for each in prompts if each.id in names}
    rng, strings = np.random.default_rng(0), {}
    while len(strings) < STRINGS:
        strings[tuple(ONES[digit] for digit in rng.integers(0, 10, int(rng.integers(2, 4))))] = None
    lines, pause_n = [], np.zeros(1600, np.float32)
    for number, string in enumerate(strings):
        parts = [part for word in string for part in (pause_n, waves[word])]
        write_sound(folder / f"string_{number}.wav", Sound(np.concatenate([*parts[1:]]), 16000))
        lines.append({"audio": f"string_{number}.wav", "text": " ".join(string), "speaker": "Allison", "language": "en"})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def data_of(folder: Path) -> str:
    """The source in styles."""
    plain = f"{{type: speech_manifest, path: {folder / 'list.jsonl'}, needs_text: true, hold_out: 0.15}}"
    return f"data.train=[{{type: styled_speech, copies: 5, speech: {plain}}}]"


def codec_of(folder: Path) -> Path:
    """A codec of four codebooks, trained on the recordings in all styles."""
    sizes = ["tokenizers.codec.num_books=4", "train.steps=500"]
    train(Recipe.read("codec/small", [data_of(folder), f"output={folder / 'codec'}", *sizes, *OFF]))
    return folder / "codec"


def model_of(folder: Path, name: str, *overrides: str) -> Path:
    """A model of the recipe, in small."""
    sizes = ["backbone.width=192", "backbone.num_layers=4", "tokenizers.text.vocabulary_size=400"]
    small = [*sizes, "backbone.dropout=0.1", "train.steps=2500", "train.batch_size=16"]
    units = "tokenizers.units={type: units, num_units: 100, encoder: {type: whisper, layer: 3}}"
    given = [data_of(folder), f"output={folder / name}", f"tokenizers.codec.path={folder / 'codec'}", units, *small, *OFF, *overrides]
    train(Recipe.read("tts/voxinstruct", given))
    return folder / name


def without_units() -> str:
    """The recipe's task, but for all that is about units."""
    task = Recipe.read("tts/voxinstruct").tasks[0].model_dump(exclude={"units", "units_top_k", "hide_units", "phonemes", "window"})
    task["guidance"] = {"speech_over_text": task["guidance"]["speech_over_text"]}
    return f"task={json.dumps(task)}"


@dataclass
class Judged:
    """Share of sounds in the style that was asked for, by attribute, and word errors."""

    style: dict[str, float]
    wer: float


class Listener:
    """What hears the style and the digits of speech that some held-out records ask for."""

    def __init__(self, folder: Path) -> None:
        source = Recipe.read("tts/voxinstruct", [data_of(folder), *OFF]).data.train[0].build()
        held = source.held_out_records().everything()
        rng = np.random.default_rng(0)
        self.records = [held[at] for at in rng.permutation(len(held))[:ASKED]]
        self.whisper = Whisper(None)

    def judged(self, who: str, sounds: list[Sound]) -> Judged:
        """What is heard, which is printed as well."""
        errors = text_errors([each.text for each in self.records], self.whisper.transcribe(sounds, "en"))
        heard = [Heard(sound, each.sound(), style=asked_style(each)) for sound, each in zip(sounds, self.records, strict=True)]
        found = Judged(Style(EvaluateConfig())(sounds, heard)[0], errors.wer)
        print(f"{who}: {', '.join(f'{name} {value:.3f}' for name, value in found.style.items())}; word errors {found.wer:.3f}")
        return found

    def spoken(self, who: str, folder: Path, *overrides: str, is_bare: bool = False) -> Judged:
        """What a run says, with its instructions or the quoted texts alone."""
        _, task, model = load_run(folder, overrides)
        asked = [bare(each.text) if is_bare else task.reader.asked(each) for each in self.records]
        return self.judged(who, [one.sound for one in task.speak(model, asked, seed=1)])


@pytest.fixture(scope="module")
def found(home) -> dict[str, Judged]:
    """What is heard of recordings, and of two models with and without guidance and style words."""
    codec = codec_of(home)
    listener = Listener(home)
    real = [each.sound() for each in listener.records]
    judged = {"recordings": listener.judged("recordings", real)}
    _, task, _ = load_run(codec)
    judged["codec"] = listener.judged("recordings through the codec", task.codec.decode_many(task.codec.encode_many(real)))
    run = model_of(home, "units")
    judged["guided"] = listener.spoken("with units, guided", run)
    judged["unguided"] = listener.spoken("with units, unguided", run, *UNGUIDED)
    judged["text 1"] = listener.spoken("with units, text guidance 1", run, *UNGUIDED[:2])
    judged["bare"] = listener.spoken("with units, guided, no style words", run, is_bare=True)
    alone = model_of(home, "alone", without_units())
    judged["alone"] = listener.spoken("without units, guided", alone)
    judged["alone unguided"] = listener.spoken("without units, unguided", alone, UNGUIDED[1])
    return judged


def test_the_style_is_what_was_asked_for(found) -> None:
    assert found["guided"].style["style"] >= 0.8


def test_guidance_by_the_text_makes_it_more_so(found) -> None:
    assert found["guided"].style["style"] >= found["text 1"].style["style"] + 0.05


def test_units_between_make_fewer_word_errors(found) -> None:
    assert found["guided"].wer < found["alone"].wer


def test_content_is_as_good_without_style_words(found) -> None:
    assert abs(found["bare"].wer - found["guided"].wer) <= 0.02
