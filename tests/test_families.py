"""What every kind of task promises, with its own data, encoders, heads and losses: a run that is stopped and goes on is the run that was
not, a step that is not finite changes nothing, and what a run writes tells nothing of the machine."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import mmlm.run
from mmlm.run import train
from mmlm.training import checkpoint
from mmlm.training.log import read_log
from mmlm.training.trainer import Trainer
from tests.serving.tiny import tiny_recipe, write_data
from tests.training.toy import assert_same, lines

for package in ("rdkit", "selfies", "soundfile", "soxr", "timm"):
    pytest.importorskip(package)
FAMILIES = ("text", "tabular", "regression_transformer", "picture_classes", "enhancement", "tts", "grounded", "sweeps")
OPTIONS = ("train.checkpoint_every=1", "train.keep_last=9", "train.log_every=1", "train.lr=0.01", "train.max_seconds=null")
SECRET = "an-environment-value-that-nobody-may-read"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("MMLM_TEST_SECRET", SECRET)
        write_data(folder)
        yield folder


def run(kind: str, folder: Path, name: str, *changes: str, stop: int = 0) -> Any:
    """A run of four steps, or of those up to a signal."""

    def tell(step: int, line: dict[str, Any]) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = tiny_recipe(kind, folder, *OPTIONS, "train.steps=4", f"output={folder / name / kind}", *changes)
    return train(recipe, progress=tell)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_run_that_is_stopped_twice_is_the_run_that_was_not_and_tells_nothing_of_the_machine(kind, folder):
    average = "train.ema_decay=0.9"
    run(kind, folder, "whole", average)
    first = run(kind, folder, "cut", average, "train.workers=2", stop=1)
    second = run(kind, folder, "cut", average, "train.workers=0", stop=3)
    last = run(kind, folder, "cut", average, "train.workers=2")
    assert [(first.step, first.exit_code), (second.step, second.exit_code), last.step] == [(1, 143), (3, 143), 4]
    assert_same(folder / "whole" / kind, folder / "cut" / kind, step=4)
    assert lines(folder / "whole" / kind) == lines(folder / "cut" / kind)
    written = [path for path in (folder / "whole" / kind).rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"README.md", "recipe.yaml", "log.jsonl", "manifest.json", "model.safetensors"}
    for path in written:
        content = path.read_bytes()
        assert [word for word in (SECRET, f"{Path.home()}/", os.getcwd()) if word.encode() in content] == [], path


class Sick(Trainer):
    """Of the steps 1 to 4, the third has a NaN in an input if it has numbers, the second one in its losses, the first an infinite
    gradient."""

    def __init__(self, model: torch.nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.count = 0
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)
        next(each for each in model.parameters() if each.requires_grad).register_hook(self._gradient)

    def _before(self, model: torch.nn.Module, given: Any) -> None:
        self.count += model.training
        if model.training and self.count == 3:
            poisoned.append(_poison(given))

    def _after(self, model: torch.nn.Module, given: Any, losses: dict[str, Any]) -> Any:
        if model.training and self.count == 2:
            return {name: (total * math.nan, weight) for name, (total, weight) in losses.items()}

    def _gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, math.inf) if self.count == 1 else gradient


poisoned: list[bool] = []


def _poison(value: Any, name: str = "") -> bool:
    """Put NaN in place of the first number of each input of a batch; whether there were any."""
    if isinstance(value, torch.Tensor):
        is_input = value.is_floating_point() and value.numel() > 0 and "weight" not in name and "layout" not in name
        if is_input:
            value.view(-1)[0] = math.nan
        return is_input
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return max([_poison(each, str(key)) for key, each in value.items()], default=False)
    return max([_poison(each, name) for each in value], default=False) if isinstance(value, list | tuple) else False


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_step_that_is_not_finite_changes_nothing(kind, folder, monkeypatch, caplog):
    monkeypatch.setattr(mmlm.run, "Trainer", Sick)
    poisoned.clear()
    result = run(kind, folder, "sick")
    (has_numbers,) = poisoned
    assert has_numbers == (kind not in ("text", "tts"))
    has_numbers &= kind != "sweeps"  # a point that is nowhere is left out of its sweep
    found = [checkpoint.read(folder / "sick" / kind / "checkpoints" / checkpoint.step_name(step))[0] for step in (1, 2, 3, 4)]
    for number in (1, 2) if has_numbers else (1,):
        for file, tensors in found[0].items():
            assert all(torch.equal(tensor, found[number][file][name]) for name, tensor in tensors.items() if "step" not in name), number
    assert any(not torch.equal(tensor, found[3]["model"][name]) for name, tensor in found[0]["model"].items())
    assert all(bool(tensor.isfinite().all()) for tensor in found[3]["model"].values() if tensor.is_floating_point())
    assert result.skipped == 2 + has_numbers and [line["skipped"] for line in read_log(folder / "sick" / kind / "log.jsonl")][:2] == [1, 2]
    assert "step 1: the gradient of" in caplog.text and "step 2: loss" in caplog.text
