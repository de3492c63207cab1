"""Several processes train as one with the same global batch does, though masks and micro-batches are ragged."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlm.recipe import Recipe
from mmlm.run import train
from mmlm.training import checkpoint
from mmlm.training.trainer import Result
from mmlm.weights import read_tensors

OPTIONS = {"steps": 12, "batch_size": 4, "micro_batch_size": 1, "lr": 1e-2, "log_every": 1, "checkpoint_every": 6, "ema_decay": 0.9}

RECIPE = """
schema: 1
name: tiny
task: {type: tabular_text, context: 400, episode: {num_rows: 6, max_shots: 4, max_columns: 2, max_classes: 3}}
data: {train: [{type: structural_tables}]}
tokenizers: {text: {type: text, vocabulary_size: 300}}
backbone: {width: 16, num_layers: 1, pattern: [{mixer: {type: attention, num_heads: 2}}]}
"""


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(toy, server, folder, options, stop=0, world=2, code=0):
    port = free_port()
    processes = [server.Process(target=toy.ranked, args=(rank, world, port, folder, options, stop)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [code] + [code] * (world - 1)


@pytest.fixture(scope="module")
def one(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "run"
    toy.train(folder, {**OPTIONS, "micro_batch_size": None}, dropout=0.0)
    return folder


@pytest.fixture(scope="module")
def two(toy, server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    run(toy, server, folder, OPTIONS)
    return folder


def assert_close(one, two, toy):
    a, b = toy.lines(one), toy.lines(two)
    assert len(a) == len(b) == 12
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys() and left["step"] == right["step"] and left["tokens"] == right["tokens"]
        for key in ("loss", "loss.fit", "loss.size", "grad_norm", "lr"):
            assert left[key] == pytest.approx(right[key], rel=1e-5), key
    (first, _), (second, _) = (checkpoint.read(folder / "checkpoints" / "step_000012") for folder in (one, two))
    for file in ("model", "ema", "optimizer"):
        for name, tensor in first[file].items():
            if name != "calls":  # each process counts its own samples there
                torch.testing.assert_close(second[file][name], tensor, rtol=1e-4, atol=1e-5)


def test_two_processes_give_the_losses_of_one(toy, one, two):
    assert_close(one, two, toy)


def test_all_processes_end_with_the_same_weights(two):
    first, second = (read_tensors(two / f"rank{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first if name != "calls")


def test_a_run_of_two_processes_goes_on_as_one_and_the_other_way(toy, server, one, tmp_path):
    toy.train(tmp_path / "up", OPTIONS, dropout=0.0, until=6)
    run(toy, server, tmp_path / "up", OPTIONS)
    assert_close(one, tmp_path / "up", toy)
    run(toy, server, tmp_path / "down", {**OPTIONS, "checkpoint_every": 100}, stop=5, code=128 + signal.SIGTERM)
    assert checkpoint.steps(tmp_path / "down" / "checkpoints") == [5]
    toy.train(tmp_path / "down", OPTIONS, dropout=0.0)
    assert_close(one, tmp_path / "down", toy)


def test_all_processes_end_with_the_weights_of_the_best_checkpoint(toy, server, tmp_path):
    best = {"validate_every": 2, "keep_best": {"metric": "step", "mode": "min"}}
    run(toy, server, tmp_path / "run", {**OPTIONS, **best, "steps": 4})
    kept, _ = checkpoint.read(tmp_path / "run" / "checkpoints" / "step_000002")
    for rank in (0, 1):
        held = read_tensors(tmp_path / "run" / f"rank{rank}.safetensors")
        assert all(torch.equal(held[name], tensor) for name, tensor in kept["ema"].items())


@pytest.mark.parametrize("is_main", [True, False], ids=["main", "other"])
def test_the_main_process_alone_writes_the_run(is_main, tmp_path, monkeypatch):
    class Others:
        def wait(self):
            waited.append((tmp_path / "run" / "recipe.yaml").is_file())

    def fit(trainer, **_):
        trainer.ranks = Others()
        trainer.ranks.is_main = is_main
        return Result(1, "steps", 0.0, 0)

    waited: list[bool] = []
    monkeypatch.setattr("mmlm.run.Trainer.fit", fit)
    (tmp_path / "a.yaml").write_text(RECIPE)
    train(Recipe.read(tmp_path / "a.yaml", [f"output={tmp_path / 'run'}"]))
    assert waited == [is_main]


def test_the_others_wait_for_a_long_validation(toy, tmp_path, monkeypatch):
    class AskedError(Exception):
        pass

    def accelerator(*, kwargs_handlers, **_):
        raise AskedError(kwargs_handlers[0].timeout)

    monkeypatch.setattr("accelerate.Accelerator", accelerator)
    with pytest.raises(AskedError) as error:
        toy.train(tmp_path / "run", OPTIONS)
    assert error.value.args[0].total_seconds() >= 12 * 3600


def test_a_batch_that_cannot_be_dealt_out_is_refused(toy, server, tmp_path):
    run(toy, server, tmp_path / "odd", {**OPTIONS, "batch_size": 3}, code=1)


def test_the_command_of_the_page_trains_one_run_with_two_processes(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs/howto/README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"^    torchrun (.*) FILE$", page, re.MULTILINE)
    (tmp_path / "a.yaml").write_text(RECIPE)
    ends = ["train.steps=4", "train.batch_size=4", "train.log_every=1", "tokenizers.other={type: text, vocabulary_size: 300}"]
    for name, launcher in {
        "two": ["torch.distributed.run", "--master_port", str(free_port()), *told.split()],
        "one": ["mmlm", "train"],
    }.items():
        words = [sys.executable, "-m", *launcher, str(tmp_path / "a.yaml"), *ends, f"output={tmp_path / name}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0 and done.stdout.count("4 steps in") == 1, done.stderr
        assert done.stderr.count("tokenizers.other is not used") == 1
    two, one = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("two", "one"))
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one] and len(two) == 4
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
