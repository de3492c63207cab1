"""Speech while it is written: how soon the first sound of a sentence is there, and how fast the rest; the recipe's model, untrained."""

from __future__ import annotations

import time

import pytest
import torch

from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task
from mmlm.tokenizers.config import SmallCodecConfig
from tests.bench.measure import MARGIN

for package in ("pocketsphinx", "librosa"):
    pytest.importorskip(package)
pytestmark = pytest.mark.bench
FIRST_SOUND, REAL_TIME = 0.5, 0.5  # seconds; seconds a second of sound
TEXT = "please leave a message after the tone and somebody will call you back as soon as possible"


def test_the_first_sound_comes_soon_and_the_rest_faster_than_real_time(tmp_path):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    codec = SmallCodecConfig(num_books=8, book_size=256).build()
    codec.begin().eval()
    codec.save(tmp_path / "codec")
    recipe = Recipe.read("tts/ralle", [f"tokenizers.codec.path={tmp_path / 'codec'}", "task.order=delay"])
    task = build_task(recipe)
    model = build_model(recipe, task).eval()
    first, factors = [], []
    for seed in range(4):  # the first one compiles
        times, seconds, begin = [], [], time.process_time()

        def hear(number, sound, times=times, seconds=seconds):
            times.append(time.process_time())
            seconds.append(sound.seconds)

        task.speak(model, [TEXT], seed=seed, hear=hear)
        first.append(times[0] - begin)
        factors.append((time.process_time() - begin) / sum(seconds))
    first_sound, factor = sorted(first[1:])[1], sorted(factors[1:])[1]
    print(f"first sound after {first_sound:.2f} s, real-time factor {factor:.3f}, of {sum(seconds):.1f} s")
    assert first_sound < FIRST_SOUND * MARGIN and factor < REAL_TIME * MARGIN
