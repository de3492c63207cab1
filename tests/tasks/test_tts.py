"""Text to speech as a run: tokens made ahead, samples, evaluation, speaking from Python and the command line, and what is refused."""

from __future__ import annotations

import itertools
import logging
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.cli import main
from mmlm.data import token_shards
from mmlm.data.audio_files import read_sound, write_sound
from mmlm.data.speech import Utterance
from mmlm.recipe import Recipe
from mmlm.run import build_task, evaluate, load_run, preview, train
from mmlm.sound import Sound
from mmlm.speaking import Speaker
from mmlm.staged import Chunk
from mmlm.tasks import tts
from tests.tasks.untrained import save_codec

for package in ("soundfile", "soxr", "librosa"):
    pytest.importorskip(package)
pocketsphinx = pytest.importorskip("pocketsphinx")
pytestmark = pytest.mark.skipif(shutil.which("flite") is None, reason="needs: apt-get install flite")
SENTENCES = ["please leave a message", "the number is busy", "two people are waiting", "thank you for calling", "enter the number, please"]
RECIPE = """
schema: 1
name: speech
output: FOLDER/run
task: {type: tts, PROSODY max_seconds: 6, join: [1, 2]}
data:
  train: [{type: synthesized, sentences: SENTENCES, voices: ["flite:slt"], hold_out: 0.2, validate_share: 0.2, split_by: utterance}]
  validate_samples: 1
tokenizers:
  phonemes: {type: phonemes, boundaries: true, dictionary: FOLDER/words.txt}
  codec: {type: small_codec, path: FOLDER/codec}
  TOKENIZER
heads: {codes: {type: codebooks}}
backbone: {width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}
train: {steps: 2, batch_size: 2, log_every: 1, validate_every: 2, sample_every: 2}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a codec that has been saved, untrained, and a small dictionary, whose rules are learned in a moment."""
    folder = tmp_path_factory.mktemp("tts")
    lines = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")).read_text().splitlines()
    said = {word for sentence in SENTENCES for word in sentence.replace(",", "").split()}
    kept = [line for at, line in enumerate(lines) if line.split()[0] in said or at % 1000 == 0]
    (folder / "words.txt").write_text("\n".join(kept) + "\n")
    save_codec(folder / "codec")
    return folder


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setattr(token_shards, "user_cache_folder", lambda: home / "cache")


def recipe(home, *overrides, prosody=True) -> Recipe:
    text = RECIPE.replace("FOLDER", str(home)).replace("SENTENCES", str(SENTENCES))
    text = text.replace("PROSODY", "prosody: prosody, window: 1," if prosody else "")
    return Recipe.read(text.replace("TOKENIZER", "prosody: {type: prosody}" if prosody else ""), overrides)


@pytest.fixture(scope="module")
def finished(home):
    """A run with prosody that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "user_cache_folder", lambda: home / "cache")
        result = train(recipe(home))
    assert result.step == 2
    return home / "run"


def test_a_run_speaks(finished, capsys) -> None:
    speaker = Speaker(finished)
    one, two = speaker.say(["the number is busy", "thank you"], seed=3)
    assert speaker.rate_hz == 16000 and len(one.wave_n) % 320 == 0 and len(one.wave_n) > 0
    (again,) = speaker.say("the number is busy", seed=3)
    assert np.array_equal(one.wave_n, again.wave_n) and not np.array_equal(one.wave_n, two.wave_n)
    (slow,) = speaker.say("the number is busy", seed=3, pace=0.5)
    assert len(slow.wave_n) == 2 * len(one.wave_n)
    told = []
    speaker.say(["one", "two"], listen=lambda number, sound: told.append(number))
    assert told == [0, 1]


def test_the_command_writes_a_file(finished, tmp_path, capsys) -> None:
    assert main(["generate", str(finished), "--text", "two people", "--output", str(tmp_path / "out")]) == 0
    assert "spoken.wav" in capsys.readouterr().out and read_sound(tmp_path / "out" / "spoken.wav").rate_hz == 16000
    assert main(["generate", str(finished), "--text", "two people", "--temperature", "0.5"]) == 2
    assert "--temperature has no effect" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "--text", "two people", "--voice-text", "hello"]) == 2
    assert "--voice-text has no effect" in capsys.readouterr().err


def test_a_voice_comes_first_and_is_not_part_of_what_is_said(finished, tmp_path) -> None:
    speaker = Speaker(finished)
    sound = recipe(finished.parent).data.train[0].build().everything()[0]
    (said,) = speaker.say("busy", voice=sound.sound(), voice_text=sound.text, seed=1)
    (other,) = speaker.say("busy", seed=1)
    assert said.seconds < 4 and not np.array_equal(said.wave_n, other.wave_n)
    for fault, given in {
        "give voice_text": {"voice": sound.sound()},
        "no voice is given": {"voice_text": "busy"},
        "0.5 to 15 s, but this one 0.10 s": {"voice": sound.sound().cut(0, 0.1), "voice_text": "busy"},
        "could not be laid along": {"voice": Sound(np.zeros(16000, dtype=np.float32), 16000), "voice_text": "nobody says this here"},
    }.items():
        with pytest.raises(DataError, match=fault):
            speaker.say("busy", **given)


@pytest.mark.parametrize("text", ["", "   ", "...", "\U0001f600", "\u4f60\u597d"])
def test_texts_that_cannot_be_spoken_are_refused(finished, text) -> None:
    with pytest.raises(DataError):
        Speaker(finished).say(text)


def test_samples_report_and_metrics(finished) -> None:
    samples = sorted(path.name for path in (finished / "samples").rglob("*") if path.is_file())
    assert samples == ["1_codec.wav", "1_spoken.wav", "1_text.txt", "1_true.wav"]
    metrics = evaluate(finished, ["evaluate.judges=[stoi, voice]", "evaluate.num_players=1"])
    assert metrics["metrics"]["length_error"] >= 0 and (finished / "report.html").read_text().count("<audio") >= 3
    assert "what the model looked at" in (finished / "report.html").read_text()
    assert ">SIL</text>" in (finished / "report.html").read_text()  # durations beneath the spectrogram of what was spoken


def test_without_prosody_speech_ends_by_itself_and_keeps_no_pace(home) -> None:
    made = recipe(home, f"output={home / 'plain'}", prosody=False)
    train(made)
    _, task, model = load_run(home / "plain")
    (one,) = task.speak(model, ["two people"])
    assert 0 < one.sound.seconds <= 6 and one.said.codes.shape[1] == 2
    with pytest.raises(RecipeError, match="pace needs durations"):
        task.speak(model, ["two people"], pace=2)


@pytest.mark.parametrize("prosody", [True, False])
def test_delayed_codebooks_are_heard_while_they_are_written(home, finished, prosody) -> None:
    made = recipe(home, f"output={home / f'delay{prosody}'}", "task.order=delay", prosody=prosody)
    train(made)
    speaker = Speaker(home / f"delay{prosody}")
    (whole,) = speaker.say("two people are waiting", seed=2)
    pieces = list(speaker.stream("two people are waiting", seed=2))
    assert len(pieces) > 1 and 0 < pieces[0].seconds < whole.seconds
    assert np.allclose(np.concatenate([piece.wave_n for piece in pieces]), whole.wave_n, atol=1e-5)
    sound = made.data.train[0].build().everything()[0]
    voiced = {"voice": sound.sound(), "voice_text": sound.text, "seed": 1}
    (whole,) = speaker.say("busy", **voiced)
    assert np.allclose(np.concatenate([piece.wave_n for piece in speaker.stream("busy", **voiced)]), whole.wave_n, atol=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(speaker.task.codec), "decode_many", lambda *given: pytest.fail("what was heard is decoded again"))
        assert sum(piece.seconds for piece in speaker.stream("busy", seed=2)) > 0
    given = {"text": "two people are waiting", "voice": None, "voice_text": "", "pace": 1.0, "seed": 2, "attention": True}
    *growing, last = list(speaker.task.answer(speaker.model, given))
    growing = [found["audio"] for found in growing]
    assert len(growing) == len(pieces) and np.array_equal(last["audio"].wave_n, growing[-1].wave_n)
    names, weights_et = last["attention"]["names"], np.array(last["attention"]["weights"])
    assert weights_et.shape == (len(names), round(growing[-1].seconds * 50)) and "T" in names and 0 < weights_et.sum(0).max() < 1.05
    with pytest.raises(DataError, match="attention: is shown of speech without a voice"):
        list(speaker.task.answer(speaker.model, {**given, "voice": sound.sound(), "voice_text": sound.text}))
    assert np.array_equal(growing[0].wave_n, pieces[0].wave_n)
    assert all(np.array_equal(more.wave_n[: len(less.wave_n)], less.wave_n) for less, more in itertools.pairwise(growing))
    assert np.array_equal(growing[-1].wave_n, np.concatenate([piece.wave_n for piece in pieces]))
    with pytest.raises(DataError):
        next(speaker.stream("..."))
    with pytest.raises(RecipeError, match="task.order=delay to hear pieces"):
        next(Speaker(finished).stream("busy"))


def test_a_model_that_ends_before_its_first_frame_is_heard_as_one_silent_frame(finished) -> None:
    codec, heard = load_run(finished)[1].codec, []
    pieces = tts._Pieces(codec, 3, lambda number, sound: heard.append((number, sound)))
    pieces(Chunk(1, tts.SPEECH, 0, torch.zeros(0, codec.num_books, dtype=torch.long), is_last=True))
    assert [number for number, _ in heard] == [4] and len(heard[0][1].wave_n) == codec.hop and not heard[0][1].wave_n.any()
    assert [len(sound.wave_n) for sound in pieces.sounds] == [codec.hop]


def test_speech_that_nobody_listens_to_any_more_is_given_up(finished, monkeypatch) -> None:
    speaker, ended = Speaker(finished), []

    def endless(model, texts, *, hear, **options):
        for _ in range(500):
            try:
                hear(0, Sound(np.zeros(320, dtype=np.float32), 16000))
            except BaseException as error:
                ended.append(error)
                raise
            time.sleep(0.01)

    monkeypatch.setattr(speaker.task, "speak", endless)
    pieces = speaker.stream("two people")
    assert next(pieces).seconds == 0.02
    pieces.close()
    assert len(ended) == 1


def test_preview_shows_what_is_learned(home) -> None:
    text = preview(recipe(home))
    assert "SIL" in text and "frames" in text and "prosody.0 256" in text


def test_a_record_of_any_source_is_shown(home) -> None:
    task = build_task(recipe(home))
    first, *_, last = recipe(home).data.train[0].build().everything()
    assert first.text in task.shown(first) and last.text in task.shown(last)
    other = Utterance("other", "another list, line 1", held=first.sound().cut(0, first.seconds - 0.01), text=first.text)
    assert first.text in task.shown(other)


def test_recordings_that_cannot_be_used_are_told(home, tmp_path, caplog) -> None:
    task = build_task(recipe(home))
    sound = recipe(home).data.train[0].build().everything()[0].sound()
    with pytest.raises(DataError, match="line 7: has no text"):
        task.read_ahead([Utterance("a", "list, line 7", held=sound)])
    with caplog.at_level(logging.WARNING):
        wrong = Utterance("a", "list, line 8", held=sound, text="nobody ever said such a thing in here, I am quite sure of that")
        task.read_ahead([wrong])
    assert "list, line 8" in caplog.text and task.example(wrong, np.random.default_rng(0)) is None
    write_sound(tmp_path / "other.wav", sound)
    with pytest.raises(CheckpointError, match="no finished run"):
        Speaker(tmp_path)


def test_tokenizers_of_other_kinds_are_refused(home) -> None:
    with pytest.raises(RecipeError, match="task.codec: tokenizers.phonemes must be of the type small_codec"):
        build_task(recipe(home, "task.codec=phonemes"))
    with pytest.raises(RecipeError, match="unknown tokenizer 'phones'"):
        build_task(recipe(home, "task.phonemes=phones"))
