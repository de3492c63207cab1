"""Any task on the command line: words to values, values to files; a task of another package gets a command and a page."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from mmlm.base.errors import DataError
from mmlm.cli import main
from mmlm.data.audio_files import read_sound, write_sound
from mmlm.serving.files import from_word, write_value
from mmlm.serving.values import sound_file, sounds_of
from mmlm.sound import Sound
from mmlm.tasks.forms import Audio, Data, Flag, Image, Number, Part, Pictures, Points, Table, Text

ROOT = Path(__file__).resolve().parents[2]
SHOUT = '''
from typing import Literal

from mmlm.tasks.config import TASKS, TextTaskConfig
from mmlm.tasks.forms import Number, Text
from mmlm.tasks.text import TextTask


@TASKS.register("shouting:Shout", source="them, 2026")
class ShoutConfig(TextTaskConfig):
    """Say it louder."""

    type: Literal["shout"] = "shout"


class Shout(TextTask):
    """Texts in capitals."""

    inputs = {"text": Text("Text"), "times": Number("Times", is_optional=True, usual=1, low=1, high=3)}
    outputs = {"loud": Text("Loud")}

    def answer(self, model, given):
        yield {"loud": given["text"].upper() * int(given["times"])}
'''
PAGE = """
from mmlm.serving.demo import build
from mmlm.serving.uses import uses_of
print([each["api_name"] for each in build(uses_of("run")).config["dependencies"] if each["api_name"]])
"""


def test_words_are_read_as_their_field_says(tmp_path):
    write_sound(tmp_path / "a.wav", Sound(np.zeros(400, np.float32), 8000))
    for name in "ab":
        Pillow.new("RGB", (5, 4)).save(tmp_path / f"{name}.png")
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    (tmp_path / "a.csv").write_text("x,y\n1,red\n2,\n")
    assert from_word(Text("t"), "t", "1") == "1" and from_word(Number("n"), "n", "1e2") == 100
    assert from_word(Audio("a"), "a", str(tmp_path / "a.wav")).seconds == 0.05
    assert from_word(Image("i"), "i", str(tmp_path / "a.png")).shape == (4, 5, 3)
    assert from_word(Points("p"), "p", str(tmp_path / "a.npy")).shape == (3, 4)
    assert from_word(Table("r"), "r", str(tmp_path / "a.csv")) == [{"x": "1", "y": "red"}, {"x": "2", "y": None}]
    assert from_word(Part("b"), "b", "1,2,30.5,4") == [1, 2, 30.5, 4]
    with pytest.raises(DataError, match="b: must be LEFT,TOP,RIGHT,BOTTOM"):
        from_word(Part("b"), "b", "1,2,x,4")
    assert from_word(Flag("f"), "f", "yes") is True and from_word(Flag("f"), "f", "false") is False
    with pytest.raises(DataError, match="f: must be one of yes, true, no, false, but is 'on'"):
        from_word(Flag("f"), "f", "on")
    assert [each.shape for each in from_word(Pictures("p"), "p", str(tmp_path))] == [(4, 5, 3)] * 2
    assert len(from_word(Pictures("p"), "p", str(tmp_path / "b.png"))) == 1
    with pytest.raises(DataError, match="n: must be a number, but is 'two'"):
        from_word(Number("n"), "n", "two")


def test_outputs_are_written_by_what_they_are(tmp_path):
    sound = Sound(np.full(80, 0.25, np.float32), 8000)
    assert np.allclose(read_sound(write_value(Audio("a"), sound, tmp_path / "out" / "a")).wave_n, 0.25, atol=1e-3)
    assert Pillow.open(write_value(Image("i"), np.zeros((4, 5, 3), np.uint8), tmp_path / "i")).size == (5, 4)
    folder = write_value(Pictures("p"), [np.zeros((4, 5, 3), np.uint8)] * 2, tmp_path / "p")
    assert [Pillow.open(folder / name).size for name in ("1.png", "2.png")] == [(5, 4)] * 2
    assert write_value(Text("t"), "said", tmp_path / "t").read_text() == "said\n"
    assert json.loads(write_value(Data("d"), {"a": [1]}, tmp_path / "d").read_text()) == {"a": [1]}
    target = write_value(Data("d"), {"a": [float("nan"), np.float32(0.5)], "é": np.arange(2)}, tmp_path / "strict")
    assert json.loads(target.read_text(), parse_constant=pytest.fail) == {"a": [None, 0.5], "é": [0, 1]} and "é" in target.read_text()


def test_any_input_can_be_given_by_its_name(runs, tmp_path, capsys):
    assert main(["generate", str(runs["words"]), "--given", "text=The 3.", "--given", "max_new_tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("text: The 3.")
    assert main(["generate", str(runs["words"]), "--given", "image=a.png"]) == 2
    assert "no task of" in (told := capsys.readouterr().err) and "text: text, max_new_tokens, temperature, seed, attention" in told
    assert main(["generate", str(runs["words"]), "--given", "text"]) == 2
    assert "must look like NAME=VALUE" in capsys.readouterr().err
    assert main(["generate", str(runs["words"]), "--given", "text=a", "--text", "b"]) == 2
    assert "--text and --given exclude each other" in capsys.readouterr().err
    Pillow.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["generate", str(runs["seen"]), "--given", f"image={tmp_path / 'a.png'}", "--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"image.png", "text.txt", "boxes.json"}


def test_a_task_of_another_package_gets_a_command_and_a_page(tmp_path):
    (tmp_path / "shouting.py").write_text(SHOUT)
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmlm.tasks]\nshout = shouting:ShoutConfig\n")
    (tmp_path / "lines.txt").write_text("one line and another line\n" * 40)
    recipe = {
        "schema": 1, "name": "shout", "output": "run", "task": {"type": "shout", "context": 16},
        "data": {"train": [{"type": "text_files", "path": "lines.txt", "hold_out": 0}]},
        "tokenizers": {"text": {"type": "text", "vocabulary_size": 280}},
        "backbone": {"width": 16, "num_layers": 1, "pattern": [{"type": "attention", "num_heads": 2}]},
        "train": {"steps": 2, "batch_size": 2},
    }  # fmt: skip
    (tmp_path / "shout.yaml").write_text(json.dumps(recipe))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"}

    def call(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("-m", "mmlm", "train", "shout.yaml")
    assert call("-m", "mmlm", "generate", "run", "--given", "text=hear", "--given", "times=2") == "loud: HEARHEAR\n"
    assert call("-c", PAGE).startswith("['run_shout'")


def test_sounds_of_high_rates_count_as_longer(monkeypatch):
    for name, value in (("MOST_SECONDS", 1.0), ("TOGETHER", 2), ("USUAL_HZ", 8000)):
        monkeypatch.setattr(f"mmlm.serving.values.{name}", value)
    low, high = (base64.b64encode(sound_file(Sound(np.zeros(rate, np.float32), rate), "flac")).decode() for rate in (8000, 16_000))
    assert len(sounds_of("input", [low, low])) == 2 and len(sounds_of("input", [high])) == 1
    with pytest.raises(DataError, match="input.1: lasts longer"):
        sounds_of("input", [high, low])
