"""Speech while it is written: how soon the first sound of a sentence is there, in Python and over HTTP, and how fast the rest; the recipe's
model, untrained. Seconds are those of the processor, over HTTP of server and client together, as in all benchmarks."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
import torch

from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task
from mmlm.serving.uses import Use
from mmlm.tokenizers.config import SmallCodecConfig
from tests.bench.measure import MARGIN
from tests.serving.conftest import TOKEN, listening

for package in ("pocketsphinx", "librosa"):
    pytest.importorskip(package)
pytestmark = pytest.mark.bench
FIRST_SOUND, REAL_TIME = 0.5, 0.5  # seconds; seconds a second of sound
TEXT = "please leave a message after the tone and somebody will call you back as soon as possible"


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """(recipe, task, model)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tmp_path = tmp_path_factory.mktemp("speaker")
    codec = SmallCodecConfig(num_books=8, book_size=256).build()
    codec.begin().eval()
    codec.save(tmp_path / "codec")
    recipe = Recipe.read("tts/ralle", [f"tokenizers.codec.path={tmp_path / 'codec'}", "task.order=delay"])
    task = build_task(recipe)
    return recipe, task, build_model(recipe, task).eval()


def test_the_first_sound_comes_soon_and_the_rest_faster_than_real_time(speaker):
    _, task, model = speaker
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


@pytest.mark.parametrize("form", ["pcm", "wav"])
def test_the_first_sound_comes_soon_over_http(form, speaker):
    recipe, task, model = speaker
    use = Use(Path("speaker"), "tts", "tts", task.inputs, task.outputs, lambda given: task.answer(model, given), recipe, task, model)
    first, waited = [], []
    with (
        listening([use]) as (address, _),
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120) as http,
    ):
        for seed in range(4):  # the first one compiles
            asked = {"input": TEXT, "response_format": form, "stream_format": "audio", "seed": seed}
            began, clock, head = time.process_time(), time.perf_counter(), 0 if form == "pcm" else 44
            with http.stream("POST", "/v1/audio/speech", json=asked) as answer:
                assert answer.status_code == 200
                for part in answer.iter_raw():
                    head -= len(part)
                    if head < 0:  # a first sample, behind what stands before it
                        first.append(time.process_time() - began)
                        waited.append(time.perf_counter() - clock)
                        break
    print(f"first sound over HTTP ({form}) after {sorted(first[1:])[1]:.2f} s of the processor, {sorted(waited[1:])[1]:.2f} s of the clock")
    assert sorted(first[1:])[1] < FIRST_SOUND * MARGIN
