"""A stranger's folder: two languages, other rates, stereo, a list with a bad line; trained, stopped, gone on with, measured and used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.cli import main
from mmlm.data import token_shards
from mmlm.data.audio_files import read_sound
from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from tests.tasks.untrained import save_codec
from tests.training.toy import assert_same

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytestmark = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs: apt-get install espeak-ng")
TEXTS = {
    "fr-fr": ["bonjour tout le monde", "merci beaucoup", "appuyez sur une touche"],
    "es": ["buenos d\u00edas", "muchas gracias, adi\u00f3s", "pulse uno"],
}
RATES = {"fr-fr": 44100, "es": 11025}
RECIPE = """
schema: 1
name: stranger
output: FOLDER/run
task: {type: tts, max_seconds: 6}
data:
  train: [{type: speech_manifest, path: FOLDER/list.jsonl, hold_out: 0.2, split_by: utterance, on_bad: skip, needs_text: true}]
tokenizers:
  phonemes: {type: phonemes, engine: espeak, language: fr-fr, boundaries: true, unspeakable: skip}
  codec: {type: small_codec, path: FOLDER/codec}
heads: {codes: {type: codebooks}}
backbone: {width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}
train: {steps: 6, batch_size: 2, log_every: 1, checkpoint_every: 2, keep_last: 9}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings at two rates, some in stereo, listed with one file that is cut short and one that is missing."""
    folder = tmp_path_factory.mktemp("stranger")
    lines = []
    for voice, texts in TEXTS.items():
        for number, text in enumerate(texts):
            name = f"{voice}-{number}.wav"
            subprocess.run(["espeak-ng", "-v", voice, "-w", str(folder / "made.wav"), text], check=True)
            made = read_sound(folder / "made.wav", rate_hz=RATES[voice]).wave_n
            soundfile.write(folder / name, np.stack([made, 0.5 * made], axis=1) if number % 2 else made, RATES[voice])
            lines.append({"audio": name, "text": text, "language": voice, "speaker": voice})
    (folder / "cut.wav").write_bytes((folder / "es-0.wav").read_bytes()[:500])
    lines += [{"audio": "cut.wav", "text": "pulse uno"}, {"audio": "gone.wav", "text": "pulse dos"}]
    (folder / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    save_codec(folder / "codec")
    return folder


@pytest.fixture(autouse=True)
def own_cache(folder, monkeypatch):
    monkeypatch.setattr(token_shards, "user_cache_folder", lambda: folder / "cache")


def recipe(folder, *overrides) -> Recipe:
    return Recipe.read(RECIPE.replace("FOLDER", str(folder)), overrides)


def test_it_trains_is_stopped_goes_on_is_measured_and_speaks(folder, caplog, capsys):
    def stop(step, line):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(recipe(folder), progress=stop).reason == "signal"
    assert "list.jsonl, line 7" in caplog.text and "list.jsonl, line 8" in caplog.text
    assert train(recipe(folder)).step == 6
    whole = recipe(folder, f"output={folder / 'whole'}")
    train(whole)
    assert_same(folder / "run", folder / "whole", 6)
    metrics = evaluate(folder / "run", ["evaluate.judges=[voice]"])
    assert metrics["metrics"]["length_error"] >= 0
    assert main(["generate", str(folder / "run"), "--text", "merci", "--output", str(folder / "said.wav")]) == 0
    assert read_sound(folder / "said.wav").seconds > 0
    capsys.readouterr()
    assert main(["generate", str(folder / "run"), "--text", "!!!", "--output", str(folder / "no.wav")]) == 2
    assert "nothing that can be spoken" in capsys.readouterr().err and not (folder / "no.wav").exists()


def test_bad_recordings_stop_a_run_that_was_not_told_to_skip_them(folder):
    with pytest.raises(DataError, match="2 of 8 recordings cannot be used"):
        train(recipe(folder, "data.train.0.on_bad=stop"))
