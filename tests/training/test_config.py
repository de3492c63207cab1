"""Every key of `train` and `adapt` does something, or is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mmlm.base.errors import NumericsError, RecipeError
from mmlm.base.schema import check
from mmlm.training.config import OPTIMIZERS, SCHEDULES, AdaptConfig, LoraConfig, TrainConfig
from mmlm.training.trainer import Trainer

BASE = {"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup": 0.3, "validate_every": 3, "checkpoint_every": 2, "log_every": 2}

CHANGES = {
    "steps": 5, "max_seconds": 1e-9, "batch_size": 3, "micro_batch_size": 1, "optimizer": "lion", "lr": 2e-2, "schedule": "linear",
    "warmup": 0.0, "min_lr_ratio": 0.5, "weight_decay": 0.7, "clip_norm": 0.01, "loss_weights": {"size": 5.0}, "ema_decay": 0.5,
    "precision": "bf16", "deterministic": True, "max_skipped": 1, "workers": 1, "log_every": 1, "checkpoint_every": 3, "keep_last": 1,
    "keep_best": {"metric": "error", "mode": "max"}, "validate_every": 2, "sample_every": 2, "trackers": ["mlflow"],
}  # fmt: skip

WEIGHTS = {
    "steps", "max_seconds", "batch_size", "micro_batch_size", "optimizer", "lr", "schedule", "warmup", "min_lr_ratio", "weight_decay",
    "clip_norm", "loss_weights", "ema_decay", "precision", "keep_best",
}  # fmt: skip

OPTIONS = {
    ("schedule", "wsd", "decay_share"): 0.7, ("schedule", "wsd", "shape"): "sqrt",
    ("optimizer", "adamw", "beta1"): 0.5, ("optimizer", "adamw", "beta2"): 0.5, ("optimizer", "adamw", "eps"): 1e-1,
    ("optimizer", "muon", "momentum"): 0.5, ("optimizer", "muon", "num_iterations"): 1, ("optimizer", "muon", "beta1"): 0.5,
    ("optimizer", "muon", "beta2"): 0.5, ("optimizer", "muon", "eps"): 1e-1,
    ("optimizer", "adafactor", "beta2_decay"): -0.1, ("optimizer", "adafactor", "clip_update"): 100.0,
    ("optimizer", "lion", "beta1"): 0.1, ("optimizer", "lion", "beta2"): 0.1,
}  # fmt: skip


def outcome(toy, folder, monkeypatch, options, bad=()):
    """All that a person can see of a run: weights, log, files, how it ended."""
    sent, switches = [], set()
    monkeypatch.setattr("mmlm.training.trainer.require_tracker", lambda name: None)
    monkeypatch.setattr("accelerate.Accelerator.__init__", _without_trackers(sent))
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda self, name, config: None)
    monkeypatch.setattr("accelerate.Accelerator.log", lambda self, values, step: None)
    config = TrainConfig(**options)
    model, samples = toy.Toy(), toy.ToySamples(bad=bad)
    model.register_forward_hook(lambda *_: switches.add(torch.are_deterministic_algorithms_enabled()))
    hooks = {"validate": toy.validate if config.validate_every else None, "draw": toy.draw if config.sample_every else None}
    try:
        reason = Trainer(model, samples, config, folder, seed=5, **hooks).fit().reason
    except NumericsError:
        reason = "stopped"
    weights = [parameter.tolist() for parameter in model.parameters()]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return weights, toy.lines(folder), files, reason, bool(samples.seen), switches, sent


def _without_trackers(sent):
    from accelerate import Accelerator

    real = Accelerator.__init__

    def start(self, *args, log_with=None, **kwargs):
        sent.append(log_with)
        real(self, *args, **kwargs)

    return start


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_every_key_changes_something(toy, tmp_path, monkeypatch, key):
    base = {**BASE, "max_skipped": 10, **({"sample_every": 3} if key == "sample_every" else {})}
    bad = range(6) if key == "max_skipped" else ()
    changed = {"a": base, "b": {**base, key: CHANGES[key]}}
    before, after = (outcome(toy, tmp_path / name, monkeypatch, options, bad) for name, options in changed.items())
    assert before != after
    if key in WEIGHTS:
        assert before[0] != after[0], "no weight changed"
    if key == "workers":
        assert before[:4] == after[:4], "a number of workers changed the run"


@pytest.mark.parametrize("path", OPTIONS, ids=".".join)
def test_every_option_of_a_schedule_and_an_optimizer_changes_something(toy, tmp_path, monkeypatch, path):
    section, name, key = path
    few_steps = {"decay_share": 0.9} if key == "shape" else {}
    ours = [{**BASE, section: {"type": name, **few_steps, **extra}} for extra in ({}, {key: OPTIONS[path]})]
    before, after = (outcome(toy, tmp_path / str(at), monkeypatch, options) for at, options in enumerate(ours))
    assert before[0] != after[0]


def test_no_key_is_left_out():
    assert set(CHANGES) == set(TrainConfig.model_fields)
    known = {
        (section, name, key)
        for section, registry in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS))
        for name, config in registry.entries.items()
        for key in config.model_fields
        if key != "type"
    }
    assert set(OPTIONS) == known
    assert set(AdaptConfig.model_fields) == {"freeze", "lr_scale", "lora", "replace", "dropout"}  # tests of adapt, compression, objectives
    assert set(LoraConfig.model_fields) == {"rank", "alpha", "dropout", "targets", "dora", "per_task"}  # the last: tests of several tasks


FAULTS = [
    ({"steps": 0}, "steps: must be at least 1, but is 0"),
    ({"batch_size": -2}, "batch_size: must be at least 1, but is -2"),
    ({"lr": 0}, "lr: must be greater than 0"),
    ({"lr": "fast"}, "lr: must be a number"),
    ({"lr": float("nan")}, "lr: must be"),
    ({"optimizer": "adam"}, "optimizer: unknown optimizer 'adam'. Did you mean 'adamw'?"),
    ({"optimizer": {"type": "adamw", "momentum": 0.9}}, "optimizer.momentum: unknown key"),
    ({"schedule": "cosin"}, "schedule: unknown schedule 'cosin'. Did you mean 'cosine'?"),
    ({"schedule": "constant", "min_lr_ratio": 0.1}, "min_lr_ratio: has no effect: the schedule is constant"),
    ({"warmup": 1.5}, "warmup: must be a share below 1 or a whole number of steps"),
    ({"warmup": -1}, "warmup: must be at least 0"),
    ({"batch_size": 4, "micro_batch_size": 5}, "micro_batch_size (5) must be at most batch_size (4)"),
    ({"keep_best": {"metric": "loss"}}, "keep_best needs validate_every"),
    ({"keep_best": {"metric": "loss", "mode": "low"}, "validate_every": 1}, "keep_best.mode: must be 'min' or 'max'"),
    ({"keep_last": 0}, "keep_last: must be at least 1"),
    ({"ema_decay": 1.0}, "ema_decay: must be less than 1"),
    ({"precision": "fp16"}, "precision: must be 'fp32', 'bf16' or 'auto'"),
    ({"trackers": ["tensorbord"]}, "trackers.0: must be"),
    ({"learning_rate": 1e-3}, "learning_rate: unknown key"),
    ({"deterministic": "no"}, "deterministic: must be true or false"),
]


@pytest.mark.parametrize(("raw", "told"), FAULTS, ids=[str(raw) for raw, _ in FAULTS])
def test_a_wrong_value_is_told_with_its_key(raw, told):
    with pytest.raises(RecipeError) as error:
        check(TrainConfig, raw, "recipe.yaml")
    assert told in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"lr_scale": {"backbone": 0.0}}, "lr_scale: backbone: must be greater than 0"),
        ({"lora": {"rank": 0}}, "lora.rank: must be at least 1"),
        ({"lora": {"targets": []}}, "lora.targets: must have at least 1 items"),
        ({"frozen": ["backbone"]}, "frozen: unknown key. Did you mean 'freeze'?"),
    ],
)
def test_a_wrong_value_of_adapt_is_told_with_its_key(raw, told):
    with pytest.raises(RecipeError) as error:
        check(AdaptConfig, raw, "recipe.yaml")
    assert told in str(error.value), str(error.value)


def test_a_config_dumps_and_reads_back_equal():
    config = TrainConfig(optimizer={"type": "muon", "momentum": 0.9}, schedule="constant", loss_weights={"box": 2})
    assert check(TrainConfig, config.model_dump(mode="json"), "x") == config


def test_the_config_loads_no_torch():
    code = "import sys, mmlm.training.config; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.split() == ["False", "False"]
