"""Enhancement by a mask as a run: training, resume, samples, evaluation under degradations of its own, and what the parts promise."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.data.audio_files import write_sound
from mmlm.data.crops import WavePairs
from mmlm.objectives.audio import si_sdr
from mmlm.recipe import Recipe
from mmlm.run import evaluate, load_run, preview, train
from mmlm.sound import Sound
from mmlm.tasks.config import MaskNetworkConfig
from mmlm.tasks.enhancement import MaskLearner
from mmlm.tasks.mask_network import MaskNetwork
from mmlm.tasks.spectral_gate import spectral_gate
from tests.training.toy import assert_same

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RECIPE = """
schema: 1
name: mask
output: OUTPUT
seed: 3
task:
  type: enhancement
  seconds: 0.2
  degrade: [{type: add_noise, snr_db: [0, 0], noises: [{type: generated, kinds: [white]}]}]
  degrade_test: [{type: add_noise, snr_db: [10, 10], noises: [{type: generated, kinds: [pink]}]}]
  network: {width: 8, num_blocks: 1}
data:
  train: [{type: speech_folder, path: FOLDER, hold_out: 0.2, validate_share: 0.2, split_by: utterance}]
  validate_samples: 3
train:
  steps: 6
  batch_size: 4
  micro_batch_size: 2
  lr: 2e-3
  log_every: 2
  checkpoint_every: 3
  keep_last: 9
  validate_every: 3
  sample_every: 6
evaluate: {judges: [si_sdr]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds")
    for number in range(12):
        time = np.arange(8000 + number) / 16000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 40 * number) * time) * (1 + np.sin(30 * time)) / 2
        write_sound(path / f"{number:02}.wav", Sound(wave.astype(np.float32), 16000))
    return path


def recipe(folder, output, *overrides):
    return Recipe.read(RECIPE.replace("FOLDER", str(folder)).replace("OUTPUT", str(output)), overrides)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "mask"
    train(recipe(folder, path))
    return path


def test_a_run_leaves_samples_and_validation_losses(run):
    assert sorted(path.name for path in (run / "samples" / "step_000006").iterdir())[:3] == ["1_given.wav", "1_made.wav", "1_true.wav"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = next(line for line in lines if "validation.si_sdr" in line)
    assert {"validation.loss.magnitude", "validation.loss.complex", "validation.si_sdr_gain"} <= found.keys()


def test_a_stopped_run_goes_on_bit_for_bit(folder, run, tmp_path):
    def stop(step, line):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(recipe(folder, tmp_path / "mask"), progress=stop).reason == "signal"
    train(recipe(folder, tmp_path / "mask"))
    assert_same(run, tmp_path / "mask", 6)
    weights = [(path / "model.safetensors").read_bytes() for path in (run, tmp_path / "mask")]
    assert weights[0] == weights[1]


def test_a_finished_run_is_measured_under_its_own_degradations_beside_what_was_given(run):
    found = evaluate(run)
    assert found["metrics"].keys() == {"si_sdr", "si_sdr_gain", "real_time_factor"}
    given, gate = found["baselines"]["what was given"], found["baselines"]["spectral gate"]
    assert abs(given["si_sdr"] - 10) < 0.5 and given["si_sdr_gain"] == 0 and gate.keys() == {"si_sdr", "si_sdr_gain"}
    ((_, curves),) = found["curves"].items()
    assert [place for place, _ in curves["SI-SDR, dB"]] == [10.0]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "validation.si_sdr" in line)
    assert abs(first["validation.si_sdr"] - first["validation.si_sdr_gain"]) < 1  # while training: 0 dB, as in task.degrade
    assert (run / "heard").is_dir() and "To be heard" in (run / "report.html").read_text()
    assert f"mmlm generate {run} --audio noisy.wav" in (run / "README.md").read_text()


def test_what_is_done_to_a_record_depends_on_its_id_alone(run):
    _, task, model = load_run(run)
    records = recipe_records(run)
    one, other = task.predict(model, records[:2]), task.predict(model, records[1:2])
    assert (one[1].given.wave_n == other[0].given.wave_n).all() and (one[1].made.wave_n == other[0].made.wave_n).all()
    assert len(one[0].made.wave_n) == len(one[0].true.wave_n)


def recipe_records(run):
    return load_run(run)[0].data.train[0].build().held_out_records().everything()


def test_a_preview_tells_what_is_done(folder, tmp_path):
    text = preview(recipe(folder, tmp_path))
    assert "add_noise: noise white, snr_db 0" in text and "a batch of 4: 80 tokens" in text


def test_what_changes_time_is_no_degradation(folder, tmp_path):
    with pytest.raises(RecipeError, match="'time_stretch' would move the degraded sound"):
        train(recipe(folder, tmp_path, "task.degrade=[{type: time_stretch}]"))
    with pytest.raises(RecipeError, match=r"window \(400\) must be a multiple of hop \(160\)"):
        recipe(folder, tmp_path, "task.network.window=400")


@pytest.mark.parametrize("mask", ["complex", "magnitude"])
def test_a_network_keeps_length_level_and_begins_near_what_was_given(mask):
    torch.manual_seed(0)
    model = MaskNetwork(MaskNetworkConfig(mask=mask, width=8, num_blocks=1)).eval()
    wave_bn = 0.1 * torch.randn(2, 4001, generator=torch.Generator().manual_seed(1))
    made_bn = model(wave_bn)
    assert made_bn.shape == wave_bn.shape
    assert si_sdr(made_bn.double(), wave_bn.double()).min() > 5
    torch.testing.assert_close(model(10 * wave_bn), 10 * made_bn, rtol=2e-2, atol=2e-3)
    assert made_bn.square().sum() <= wave_bn.square().sum()
    model.out.weight.data.normal_(std=5)
    assert model(wave_bn).square().sum() <= 1.1 * wave_bn.square().sum()  # no mask is larger than 1


@pytest.mark.parametrize("mask", ["complex", "magnitude"])
def test_a_network_learns_to_leave_the_tone(mask):
    torch.manual_seed(0)
    learner = MaskLearner(MaskNetwork(MaskNetworkConfig(mask=mask, width=16, num_blocks=1)))
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)
    g = torch.Generator().manual_seed(0)
    time = torch.arange(3200) / 16000

    def batch():
        true = 0.3 * torch.sin(2 * torch.pi * (500 * time + torch.rand(8, 1, generator=g)))
        return WavePairs(true + 0.2 * torch.randn(true.shape, generator=g), true, 160)

    for _ in range(30):
        optimizer.zero_grad()
        made = batch()
        losses, weights = learner(made), learner.loss_weights(made)
        assert {name: float(weight) for name, (_, weight) in losses.items()} == weights
        sum(total for total, _ in losses.values()).backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in learner.parameters())
    made = batch()
    with torch.no_grad():
        gain = si_sdr(learner.model(made.given_bn), made.true_bn) - si_sdr(made.given_bn, made.true_bn)
    assert gain.mean() > 5


def test_the_spectral_gate_takes_steady_noise_and_keeps_speech():
    rng, size = np.random.default_rng(0), 32_000
    bursts = (np.sin(2 * np.pi * np.arange(size) / 16_000) > 0) * np.sin(2 * np.pi * 700 * np.arange(size) / 16_000)
    noisy = Sound((0.3 * bursts + 0.03 * rng.normal(size=size)).astype(np.float32), 16_000)
    made = spectral_gate(noisy)
    pause = slice(10_000, 15_000)
    assert np.square(made.wave_n[pause]).mean() < 0.1 * np.square(noisy.wave_n[pause]).mean()
    assert si_sdr(torch.from_numpy(made.wave_n), torch.from_numpy(bursts)) > si_sdr(
        torch.from_numpy(noisy.wave_n), torch.from_numpy(bursts)
    ) + 3  # fmt: skip
    assert not spectral_gate(Sound(np.zeros(100, np.float32), 16_000)).wave_n.any()
