"""A resumed run is the uninterrupted one, bit for bit: weights, optimizer, average, counters, log."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError
from mmlm.training import checkpoint
from mmlm.training.config import TrainConfig
from mmlm.training.state import where_different
from mmlm.training.trainer import Trainer


@pytest.fixture(scope="session")
def whole(toy, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    toy.train(folder, toy.FULL)
    return folder


class Cut(Exception):
    pass


def train_until(toy, folder, step, **changes):
    """A run that breaks off right after the checkpoint of a step, without a word."""

    def stop(now, record):
        if now == step:
            raise Cut

    with pytest.raises(Cut):
        toy.train(folder, {**toy.FULL, "checkpoint_every": step, **changes}, progress=stop)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, 6, 11])  # the first epoch of 11 samples ends in step 3, the second in step 6
def test_a_resumed_run_equals_the_whole_one(toy, whole, tmp_path, cut, workers):
    train_until(toy, tmp_path, cut, workers=workers)
    assert [line["step"] for line in toy.lines(tmp_path)] == [step for step in (5, 6, 10) if step <= cut]
    toy.train(tmp_path, {**toy.FULL, "workers": workers})
    toy.assert_same(whole, tmp_path)
    assert toy.lines(whole) == toy.lines(tmp_path)


def test_a_run_resumed_twice_equals_the_whole_one(toy, whole, tmp_path):
    for cut in (2, 7):
        train_until(toy, tmp_path, cut)
    toy.train(tmp_path, toy.FULL)
    toy.assert_same(whole, tmp_path)
    assert toy.lines(whole) == toy.lines(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"workers": 0}, {"workers": 2}),
        ({"workers": 2}, {"workers": 1}),
        ({"log_every": 3}, {"log_every": 4}),
        ({"validate_every": 0, "keep_best": None, "sample_every": 0}, {}),
        ({}, {"validate_every": 0, "keep_best": None, "sample_every": 0}),
        ({"checkpoint_every": 5}, {"checkpoint_every": 2}),
    ],
    ids=str,
)
def test_workers_log_interval_and_hooks_may_change_in_between(toy, whole, tmp_path, before, after):
    train_until(toy, tmp_path, 5, **before)
    toy.train(tmp_path, {**toy.FULL, **after})
    counters = ("window", "logged", "validated", "drawn", "metrics", "best_step", "best_value")
    toy.assert_same(whole, tmp_path, ignore=counters)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor", "lion"])
def test_every_optimizer_resumes_exactly(toy, tmp_path, optimizer):
    options = {"optimizer": {"type": optimizer}, "lr": 1e-3}
    toy.train(tmp_path / "whole", {**toy.FULL, **options})
    train_until(toy, tmp_path / "cut", 5, **options)
    toy.train(tmp_path / "cut", {**toy.FULL, **options})
    toy.assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_at_ten_random_moments_then_resume_gives_the_same_weights(toy, start, whole, tmp_path, workers):
    for number in range(10):
        kill_and_resume(toy, start, whole, tmp_path / str(number), workers, kills=1, seed=number)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_many_kills_in_a_row_then_resume_gives_the_same_weights(toy, start, whole, tmp_path, workers):
    for number in range(6):
        kill_and_resume(toy, start, whole, tmp_path / str(number), workers, kills=4, seed=number)


def kill_and_resume(toy, start, whole, folder, workers, kills, seed=0):
    options = {**toy.FULL, "checkpoint_every": 1, "workers": workers}
    moments = random.Random(seed)
    steps = []
    for _ in range(kills):
        process = start(folder, options, 0.004)
        deadline, target = time.monotonic() + 30, moments.randrange(1, 4)
        begun_at = max(checkpoint.steps(folder / "checkpoints"), default=0)
        while process.is_alive() and max(checkpoint.steps(folder / "checkpoints"), default=0) < begun_at + target:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.01))
        process.kill()
        process.join()
        steps.append((process.exitcode, max(checkpoint.steps(folder / "checkpoints"), default=0)))
    assert any(code == -signal.SIGKILL for code, _ in steps), steps
    toy.train(folder, options)
    toy.assert_same(whole, folder)
    assert toy.lines(whole) == toy.lines(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_the_run_with_a_checkpoint_within_one_step(toy, start, whole, tmp_path, number, workers):
    options = {**toy.FULL, "checkpoint_every": 100, "workers": workers}
    folder = tmp_path / "run"
    process = start(folder, {**options, "log_every": 1}, 0.03)
    deadline = time.monotonic() + 30
    log = folder / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.002)
    seen = log.read_text().count("\n")
    os.killpg(process.pid, number)  # as a terminal does: the workers get it too
    process.join(20)
    assert process.exitcode == 128 + number, folder.with_suffix(".stderr").read_text()
    (step,) = checkpoint.steps(folder / "checkpoints")
    assert seen <= step <= seen + 2 and step < 12
    assert not (folder / ".lock").exists()
    toy.train(folder, options)
    toy.assert_same(whole, folder, ignore=("window", "logged"))


def test_a_signal_during_validation_leaves_it_at_once_and_resume_repeats_it(toy, whole, tmp_path):
    def validate(model, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return toy.validate(model, step)

    handler = signal.getsignal(signal.SIGTERM)
    config = TrainConfig(**{**toy.FULL, "checkpoint_every": 100})
    begun = time.monotonic()
    result = Trainer(toy.Toy(), toy.ToySamples(), config, tmp_path, seed=5, validate=validate, draw=toy.draw).fit()
    assert (result.reason, result.step, result.signal, result.exit_code) == ("signal", 6, 15, 143)
    assert time.monotonic() - begun < 20 and signal.getsignal(signal.SIGTERM) is handler
    toy.train(tmp_path, toy.FULL)
    toy.assert_same(whole, tmp_path)
    assert toy.lines(whole) == toy.lines(tmp_path)
    assert (tmp_path / "samples" / "step_000006" / "sample.txt").exists()


def test_a_finished_run_is_not_trained_again(toy, whole):
    model, result = toy.train(whole, toy.FULL)
    assert result.step == 12 and result.reason == "steps"
    assert [line["step"] for line in toy.lines(whole)] == [5, 6, 10, 12, 12][: len(toy.lines(whole))]


def test_more_steps_go_on_from_the_end(toy, tmp_path):
    toy.train(tmp_path, {**toy.FULL, "steps": 6, "schedule": "constant"})
    toy.train(tmp_path, {**toy.FULL, "steps": 12, "schedule": "constant"})
    assert [line["step"] for line in toy.lines(tmp_path) if "loss" in line] == [5, 6, 10, 12]


def test_fresh_starts_over(toy, tmp_path):
    toy.train(tmp_path, toy.FULL)
    (tmp_path / "samples" / "step_000040").mkdir()  # of a longer run
    config = TrainConfig(**{**toy.FULL, "lr": 1e-3})
    Trainer(toy.Toy(), toy.ToySamples(), config, tmp_path, seed=6, **toy.hooks(config)).fit(fresh=True)
    assert [line["step"] for line in toy.lines(tmp_path) if "loss" in line] == [5, 10, 12]
    assert checkpoint.read(tmp_path / "checkpoints" / "step_000012")[1]["seed"] == 6
    assert checkpoint.steps(tmp_path / "samples") == [6, 12]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 6}, ["seed 5", "6", "--fresh"]),
        ({"options": {"optimizer": "lion"}}, ["adamw", "lion", "--fresh"]),
        ({"size": 12}, ["toy-11", "toy-12"]),
        ({"frozen": "outer.weight"}, ["optimizer.safetensors", "not trained", "outer.weight"]),
    ],
    ids=["seed", "optimizer", "data", "frozen"],
)
def test_a_checkpoint_of_another_run_is_refused(toy, whole, changes, words):
    config = TrainConfig(**{**toy.FULL, **changes.get("options", {})})
    model = toy.Toy()
    if "frozen" in changes:
        model.get_parameter(changes["frozen"]).requires_grad_(False)
    trainer = Trainer(model, toy.ToySamples(changes.get("size", 11)), config, whole, seed=changes.get("seed", 5), **toy.hooks(config))
    with pytest.raises(CheckpointError) as error:
        trainer.fit()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_of_long_descriptions_what_differs_is_shown():
    ours, theirs = f"{'a' * 500}hold_out: 0.1{'b' * 500}", f"{'a' * 500}hold_out: 0.25{'b' * 500}"
    shown = where_different(ours, theirs)
    assert "hold_out: 0.1bbb" in shown[0] and "hold_out: 0.25bbb" in shown[1]
    assert all(len(text) <= 66 and text.startswith("...a") and text.endswith("b...") for text in shown)
    assert where_different("5", "6") == ("5", "6")


def test_a_model_of_another_shape_is_refused_by_name(toy, whole):
    model = toy.Toy()
    model.inner = torch.nn.Linear(toy.WIDTH, 9)
    config = TrainConfig(**toy.FULL)
    with pytest.raises(CheckpointError, match=r"inner.bias is \[8\], not \[9\]"):
        Trainer(model, toy.ToySamples(), config, whole, seed=5, **toy.hooks(config)).fit()


def test_a_damaged_newest_checkpoint_is_passed_over_and_written_anew(toy, whole, tmp_path, caplog):
    toy.train(tmp_path, toy.FULL)
    damaged = tmp_path / "checkpoints" / "step_000012" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    toy.train(tmp_path, {**toy.FULL, "keep_last": 1})
    assert "optimizer.safetensors" in caplog.text and "damaged" in caplog.text
    toy.assert_same(whole, tmp_path)
    assert toy.lines(whole) == toy.lines(tmp_path)


def test_training_leaves_the_callers_generators_and_switches_as_they_were(toy, tmp_path):
    def states():
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.are_deterministic_algorithms_enabled(),
        )

    config = TrainConfig(**{**toy.FULL, "deterministic": True})
    model = toy.Toy()
    before = states()
    Trainer(model, toy.ToySamples(), config, tmp_path, seed=5, **toy.hooks(config)).fit()
    assert states() == before
