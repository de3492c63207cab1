"""A resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmlm.training import checkpoint
from mmlm.training.config import TrainConfig
from mmlm.training.log import read_log
from mmlm.training.trainer import Trainer

STEPS = 12
TIMES = ("tokens_per_second", "data_wait", "peak_gib", "seconds")
FULL = {
    "steps": STEPS, "batch_size": 4, "micro_batch_size": 3, "lr": 1e-2, "log_every": 5, "checkpoint_every": 4, "keep_last": 100,
    "validate_every": 6, "sample_every": 6, "ema_decay": 0.9, "keep_best": {"metric": "error", "mode": "min"},
}  # fmt: skip


def run(toy, folder, until=None, **changes):
    config = TrainConfig(**{**FULL, **changes})
    hooks = {"validate": toy.validate if config.validate_every else None, "draw": toy.draw if config.sample_every else None}
    model = toy.Toy()
    result = Trainer(model, toy.ToySamples(), config, folder, seed=5, **hooks).fit(until=until)
    return model, result


def content(folder: Path, step: int = STEPS):
    """Everything of a checkpoint but times: tensors by file and name, and the state."""
    files, state = checkpoint.read(folder / "checkpoints" / checkpoint.step_name(step))
    for key in ("seconds", "log_bytes", "config"):
        state.pop(key)
    return files, state


def same(one: Path, other: Path, step: int = STEPS, ignore: tuple[str, ...] = ()) -> None:
    (tensors, state), (tensors_, state_) = content(one, step), content(other, step)
    assert {key: value for key, value in state.items() if key not in ignore} == {k: v for k, v in state_.items() if k not in ignore}
    assert tensors.keys() == tensors_.keys()
    for file, found in tensors.items():
        assert found.keys() == tensors_[file].keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, tensors_[file][name]), f"{file} {name}"


def lines(folder: Path):
    return [{key: value for key, value in record.items() if key not in TIMES} for record in read_log(folder / "log.jsonl")]


@pytest.fixture(scope="session")
def whole(toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(toy, folder)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, 6, 11])  # 3 steps of 4 pass the end of an epoch of 11 samples, 6 that of the second
def test_a_resumed_run_equals_the_whole_one(toy, whole, tmp_path, cut, workers):
    files = cut_off(toy, tmp_path / "run", cut, workers)
    run(toy, tmp_path / "run", workers=workers)
    same(whole, tmp_path / "run")
    assert lines(whole) == lines(tmp_path / "run")
    assert files


def cut_off(toy, folder, cut, workers=0, **changes):
    """A run that stops at a signal after the step `cut`, as a killed one whose last checkpoint is of that step."""

    class Cut(Exception):
        pass

    def stop(step, record):
        if step == cut:
            raise Cut

    config = TrainConfig(**{**FULL, "checkpoint_every": cut, "workers": workers, **changes})
    hooks = {"validate": toy.validate if config.validate_every else None, "draw": toy.draw if config.sample_every else None}
    with pytest.raises(Cut):
        Trainer(toy.Toy(), toy.ToySamples(), config, folder, seed=5, progress=stop, **hooks).fit()
    return json.loads((folder / "checkpoints" / checkpoint.step_name(cut) / "state.json").read_text())
