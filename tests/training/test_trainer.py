"""One step, and what surrounds it: accumulation, guards, hooks, limits, logs."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mmlm.base.errors import DataError, MissingExtra, MmlmError, NumericsError, RecipeError
from mmlm.training import checkpoint
from mmlm.training.config import TrainConfig
from mmlm.training.interrupts import Interrupts
from mmlm.training.log import RunLog, read_log
from mmlm.training.machine import kept_memory, peak_gib
from mmlm.training.trainer import Trainer

PLAIN = {"steps": 6, "batch_size": 8, "lr": 1e-2, "log_every": 1, "checkpoint_every": 100}


def fit(toy, folder, model=None, samples=None, seed=5, **options):
    config = TrainConfig(**{**PLAIN, **options})
    model = model if model is not None else toy.Toy(dropout=0.0)
    result = Trainer(model, samples or toy.ToySamples(), config, folder, seed=seed, **toy.hooks(config)).fit()
    return model, result


@pytest.mark.parametrize("micro", [1, 2, 3, 7])
def test_accumulation_over_ragged_micro_batches_equals_one_big_batch(toy, tmp_path, micro):
    fit(toy, tmp_path / "one")
    fit(toy, tmp_path / "many", micro_batch_size=micro)
    for one, many in zip(toy.lines(tmp_path / "one"), toy.lines(tmp_path / "many"), strict=True):
        for key in ("loss", "loss.fit", "loss.size", "grad_norm"):
            assert many[key] == pytest.approx(one[key], rel=1e-5), key
        assert many["tokens"] == one["tokens"]


def test_the_gradient_is_that_of_the_sum_over_the_weight(toy, tmp_path):
    """Against the definition: coefficient * sum / weight over the whole batch, by hand."""
    batch = toy.ToySamples()
    model = toy.Toy(dropout=0.0)
    fit(toy, tmp_path, steps=1, micro_batch_size=3, loss_weights={"size": 3.0}, samples=batch, clip_norm=0, warmup=0, model=model)
    from mmlm.training.order import items, sample_rng

    whole = batch.collate([batch.sample(index, sample_rng(5, epoch, index)) for epoch, index in items(0, 8, num_items=11, seed=5)])
    other = toy.Toy(dropout=0.0)
    losses = other(whole)
    loss = losses["fit"][0] / losses["fit"][1] + 3.0 * losses["size"][0] / losses["size"][1]
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in other.parameters() if p.grad is not None))
    (line,) = toy.lines(tmp_path)
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5) and line["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert line["loss.fit"] == pytest.approx((losses["fit"][0] / losses["fit"][1]).item(), rel=1e-5)


def test_clipping_bounds_the_step_and_the_log_shows_the_norm_before(toy, tmp_path):
    moved = []
    for name, clip in (("clipped", 1e-3), ("free", 0.0)):
        model = toy.Toy(dropout=0.0)
        before = [p.detach().clone() for p in model.parameters()]
        fit(toy, tmp_path / name, model=model, steps=1, clip_norm=clip, warmup=0, optimizer={"type": "adamw", "eps": 1.0}, weight_decay=0.0)
        moved.append(math.sqrt(sum(float((p.detach() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True))))
    clipped, free = toy.lines(tmp_path / "clipped"), toy.lines(tmp_path / "free")
    assert clipped[0]["grad_norm"] == free[0]["grad_norm"] > 1
    assert moved[0] == pytest.approx(1e-2 * 1e-3, rel=0.01) and moved[1] > 100 * moved[0]


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(toy, tmp_path, deterministic):
    options = {"steps": 12, "workers": 1, "deterministic": deterministic, "precision": "bf16"}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        fit(toy, tmp_path / name, model=toy.Toy(), seed=seed, **options)
    toy.assert_same(tmp_path / "a", tmp_path / "b")
    assert toy.lines(tmp_path / "a") == toy.lines(tmp_path / "b") != toy.lines(tmp_path / "c")


class Sick(nn.Module):
    """The toy, with a fault at some of its calls."""

    def __init__(self, toy, kind, calls):
        super().__init__()
        self.toy, self.kind, self.bad, self.count = toy, kind, calls, 0
        self.loss_weights = toy.loss_weights

    def forward(self, batch):
        self.count += 1
        if self.count not in self.bad:
            return self.toy(batch)
        if self.kind.startswith("input"):
            batch.x[0, 0] = math.nan if self.kind == "input nan" else math.inf
        losses = self.toy(batch)
        total, weight = losses["fit"]
        if self.kind.startswith("loss"):
            total = total * (math.nan if self.kind == "loss nan" else math.inf)
        elif self.kind == "gradient":
            total = total + torch.where(self.toy.inner.bias > -1e9, self.toy.inner.bias * 0, torch.sqrt(self.toy.inner.bias - 1e10)).sum()
        elif self.kind == "norm":
            total = total + 1e30 * (self.toy.inner.weight - self.toy.inner.weight.detach()).sum()
        return {**losses, "fit": (total, weight)}


TOLD = {
    "input nan": "loss 'fit' is nan, loss 'size' is nan",
    "input inf": "the gradient of toy.inner.weight is not finite",
    "loss nan": "loss 'fit' is nan (",
    "loss inf": "loss 'fit' is inf (",
    "gradient": "the gradient of toy.inner.bias is not finite",
    "norm": "the norm of the gradient overflows",
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted(toy, tmp_path, kind, caplog):
    seen = {}

    def look(step, record):
        seen[step] = {name: value.clone() for name, value in model.state_dict().items()}

    model = Sick(toy.Toy(dropout=0.0), kind, calls={3})
    config = TrainConfig(**{**PLAIN, "ema_decay": 0.5})
    result = Trainer(model, toy.ToySamples(), config, tmp_path, seed=5, progress=look).fit()
    assert all(torch.equal(seen[2][name], seen[3][name]) for name in seen[2]), kind
    assert not all(torch.equal(seen[3][name], seen[4][name]) for name in seen[3])
    assert all(bool(value.isfinite().all()) for value in seen[6].values())
    log = toy.lines(tmp_path)
    assert [line["skipped"] for line in log] == [0, 0, 1, 1, 1, 1] and result.skipped == 1
    assert log[2]["loss"] is None and all(math.isfinite(line["loss"]) for line in log[:2] + log[3:])
    assert "step 3" in caplog.text and TOLD[kind] in caplog.text and "samples" in caplog.text


def test_a_sick_sample_is_named(toy, tmp_path, caplog):
    fit(toy, tmp_path, samples=toy.ToySamples(bad=(4,)), batch_size=2, steps=6)
    told = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(told) == 1 and "4" in told[0].partition("samples")[2]


def test_after_too_many_steps_in_a_row_the_run_stops_and_the_last_good_checkpoint_stays(toy, tmp_path):
    model = Sick(toy.Toy(dropout=0.0), "loss nan", calls=set(range(5, 100)))
    config = TrainConfig(**{**PLAIN, "steps": 50, "checkpoint_every": 2, "max_skipped": 3})
    with pytest.raises(NumericsError) as error:
        Trainer(model, toy.ToySamples(), config, tmp_path, seed=5).fit()
    text = str(error.value)
    assert all(word in text for word in ("step 8", "loss 'fit' is nan", "4 steps in a row", "train.max_skipped is 3", "step 6", "train.lr"))
    good = checkpoint.read(tmp_path / "checkpoints" / "step_000004")[0]["model"]
    last = checkpoint.read(tmp_path / "checkpoints" / "step_000006")[0]["model"]
    assert all(torch.equal(good[name], last[name]) for name in good)


def test_skips_that_are_not_in_a_row_do_not_stop_the_run(toy, tmp_path):
    model = Sick(toy.Toy(dropout=0.0), "loss nan", calls=set(range(2, 40, 2)))
    config = TrainConfig(**{**PLAIN, "steps": 20, "max_skipped": 1})
    assert Trainer(model, toy.ToySamples(), config, tmp_path).fit().skipped == 10


def test_the_average_is_that_of_the_definition_and_is_what_hooks_see(toy, tmp_path):
    weights, seen = [], {}

    def look(step, record):
        weights.append(trainer.model.inner.weight.detach().clone())

    def validate(model, step):
        seen[step] = model.inner.weight.detach().clone()
        return {"error": 0.0}

    config = TrainConfig(**{**PLAIN, "ema_decay": 0.3, "validate_every": 2})
    model = toy.Toy(dropout=0.0)
    expected = model.inner.weight.detach().clone()
    trainer = Trainer(model, toy.ToySamples(), config, tmp_path, validate=validate, progress=look)
    trainer.fit()
    for step, weight in enumerate(weights, 1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
        if step in seen:
            torch.testing.assert_close(seen[step], expected)
    torch.testing.assert_close(model.inner.weight.detach(), expected)
    assert sorted(seen) == [2, 4, 6]


def test_frozen_parts_are_used_without_dropout_and_stay_as_they_are(toy, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.toy = toy.Toy()
            self.frozen = nn.Sequential(nn.Linear(toy.WIDTH, toy.WIDTH), nn.BatchNorm1d(toy.WIDTH), nn.Dropout(0.5))
            self.loss_weights = self.toy.loss_weights

        def forward(self, batch):
            assert self.training and self.toy.training and not self.frozen[2].training
            batch.x = self.frozen(batch.x)
            return self.toy(batch)

    model = Two()
    model.frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in model.frozen.state_dict().items()}
    fit(toy, tmp_path, model=model, weight_decay=0.5, validate_every=2)
    assert all(torch.equal(value, before[name]) for name, value in model.frozen.state_dict().items())


def test_bfloat16_weights_are_trained_in_float32(toy, tmp_path):
    model = toy.Toy(dropout=0.0).bfloat16()
    fit(toy, tmp_path, model=model, precision="bf16", lr=1e-5)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any(torch.equal(p, p.bfloat16().float()) for p in (model.inner.weight, model.outer.weight))


def test_bf16_runs_the_matrix_products_in_bfloat16(toy, tmp_path):
    seen = set()
    for precision in ("fp32", "bf16"):
        model = toy.Toy(dropout=0.0)
        model.inner.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        fit(toy, tmp_path / precision, model=model, precision=precision, steps=1)
    assert seen == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize("unit, wanted", [("amx_bf16", torch.bfloat16), ("avx512_bf16", torch.bfloat16), ("avx512_f", torch.float32)])
def test_auto_is_bf16_where_the_machine_multiplies_it_faster(toy, tmp_path, monkeypatch, unit, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": False, unit: True}, raising=False)
    seen = set()
    model = toy.Toy(dropout=0.0)
    model.inner.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    fit(toy, tmp_path, model=model, precision="auto", steps=1)
    assert seen == {wanted}


@pytest.mark.parametrize("unit, told", [("avx512_bf16", False), ("avx512_f", True)])
def test_it_is_told_where_bf16_is_the_slower_one(toy, tmp_path, monkeypatch, caplog, unit, told):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {unit: True}, raising=False)
    fit(toy, tmp_path, precision="bf16", steps=1)
    assert ("bf16 is slower than fp32 on this machine" in caplog.text) == told


def test_a_run_ends_in_time_at_the_least_rate_with_everything_that_belongs_to_an_end(toy, tmp_path):
    options = {**toy.FULL, "steps": 10**6, "max_seconds": 0.5, "validate_every": 10**5, "sample_every": 10**5, "checkpoint_every": 10**5}
    model, result = toy.train(tmp_path, options)
    assert result.reason == "time" and 0.5 <= result.seconds < 20 and result.exit_code == 0
    log = read_log(tmp_path / "log.jsonl")
    training = [line for line in log if "loss" in line]
    assert training[-1]["step"] == result.step and log[-1]["validation.step"] == result.step
    assert training[-1]["lr"] == pytest.approx(0.1 * 1e-2, rel=0.2) and max(line["lr"] for line in training) > 0.3 * 1e-2
    assert checkpoint.steps(tmp_path / "checkpoints") == [result.step]
    assert (tmp_path / "samples" / checkpoint.step_name(result.step) / "sample.txt").exists()
    again = toy.train(tmp_path, options)[1]
    assert again.step == result.step and again.reason == "time" and len(read_log(tmp_path / "log.jsonl")) == len(log)


def test_the_log_has_the_agreed_keys(toy, tmp_path):
    fit(toy, tmp_path, validate_every=3)
    training, validation = ([line for line in read_log(tmp_path / "log.jsonl") if kind in line] for kind in ("loss", "validation.error"))
    keys = "step epoch loss loss.fit loss.size grad_norm lr tokens tokens_per_second data_wait peak_gib skipped seconds"
    assert all(list(line) == keys.split() for line in training) and len(training) == 6
    assert [list(line) for line in validation] == [["step", "seconds", "validation_seconds", "validation.error", "validation.step"]] * 2
    assert [line["epoch"] for line in training] == [(8 * step - 1) // 11 for step in range(1, 7)]
    last = training[-1]
    assert last["tokens_per_second"] > 0 and 0 <= last["data_wait"] <= 1 and last["peak_gib"] > 0.05


def test_the_time_of_validation_is_told_and_not_counted_in_the_rate(toy, tmp_path):
    def validate(model, step):
        time.sleep(0.4)
        return {"error": 1.0}

    config = TrainConfig(steps=4, batch_size=4, log_every=4, validate_every=2)
    Trainer(toy.Toy(), toy.ToySamples(), config, tmp_path, validate=validate).fit()
    first, line, last = read_log(tmp_path / "log.jsonl")
    assert 0.4 <= first["validation_seconds"] < 0.8 and 0.4 <= last["validation_seconds"] < 0.8
    assert first["seconds"] < 0.4 <= line["seconds"] <= last["seconds"] < 0.8
    assert line["tokens"] / line["tokens_per_second"] < 0.3


def test_the_logged_loss_is_the_mean_over_the_steps_since_the_last_line(toy, tmp_path):
    fit(toy, tmp_path / "each", model=toy.Toy(dropout=0.0), lr=1e-30, weight_decay=0.0)
    fit(toy, tmp_path / "some", model=toy.Toy(dropout=0.0), lr=1e-30, weight_decay=0.0, log_every=3)
    each, some = toy.lines(tmp_path / "each"), toy.lines(tmp_path / "some")
    assert [line["step"] for line in some] == [3, 6]
    rows = np.diff([0, *(line["tokens"] for line in each)])
    mean = sum(line["loss.size"] * count for line, count in zip(each[:3], rows[:3], strict=True)) / sum(rows[:3])
    assert some[0]["loss.size"] == pytest.approx(mean, rel=1e-6)


def test_progress_is_told_after_every_step(toy, tmp_path):
    told = []
    config = TrainConfig(**{**PLAIN, "log_every": 4})
    Trainer(toy.Toy(), toy.ToySamples(), config, tmp_path, progress=lambda step, record: told.append((step, bool(record)))).fit()
    assert told == [(step, step in (4, 6)) for step in range(1, 7)]


def test_dry_run_stops_after_two_steps_with_a_checkpoint_and_hooks(toy, tmp_path):
    _, result = toy.train(tmp_path, toy.FULL, until=2)
    assert (result.step, result.reason, result.metrics["step"]) == (2, "steps", 2.0)
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]


def test_a_failing_hook_keeps_the_run_resumable(toy, tmp_path):
    def validate(model, step):
        if step == 6:
            raise ValueError("no metric today")
        return {"error": 1.0}

    config = TrainConfig(**{**toy.FULL, "checkpoint_every": 1})
    trainer = Trainer(toy.Toy(), toy.ToySamples(), config, tmp_path, seed=5, validate=validate, draw=toy.draw)
    with pytest.raises(ValueError, match="no metric today"):
        trainer.fit()
    assert trainer.model.inner.weight.isfinite().all() and checkpoint.steps(tmp_path / "checkpoints")[-1] == 5
    toy.train(tmp_path, toy.FULL)
    toy.train(tmp_path.parent / "whole", toy.FULL)
    toy.assert_same(tmp_path, tmp_path.parent / "whole")


class Odd(nn.Module):
    def __init__(self, toy, weights):
        super().__init__()
        self.toy, self.weights = toy, weights

    def forward(self, batch):
        return self.toy(batch)

    def loss_weights(self, batch):
        return self.weights(self.toy.loss_weights(batch))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda true: {**true, "fit": true["fit"] * 2}, ["loss 'fit'", "loss_weights said"]),
        (lambda true: {"fit": true["fit"]}, ["different terms", "size"]),
        (lambda true: {**true, "more": 1.0}, ["different terms", "more"]),
    ],
)
def test_a_model_whose_weights_do_not_agree_is_refused(toy, tmp_path, weights, words):
    with pytest.raises(MmlmError) as error:
        fit(toy, tmp_path, model=Odd(toy.Toy(), weights))
    assert all(word in str(error.value) for word in words)


def test_a_batch_without_any_weight_changes_nothing_but_by_decay(toy, tmp_path):
    class Weightless(toy.ToySamples):
        def collate(self, items):
            batch = super().collate(items)
            batch.weight.zero_()
            return batch

    _, result = fit(toy, tmp_path, samples=Weightless(), weight_decay=0.0)
    assert result.step == 6 and result.skipped == 0
    assert all("loss.fit" not in line and line["loss"] == line["loss.size"] for line in toy.lines(tmp_path))


@pytest.mark.parametrize(
    ("options", "hooks", "words"),
    [
        ({"loss_weights": {"fitt": 2.0}}, {}, ["train.loss_weights", "fitt", "Did you mean 'fit'?"]),
        ({"validate_every": 2}, {"validate": None}, ["train.validate_every", "no effect"]),
        ({"sample_every": 2}, {"draw": None}, ["train.sample_every", "no effect"]),
        ({"validate_every": 2, "keep_best": {"metric": "eror"}}, {}, ["train.keep_best.metric", "eror", "Did you mean 'error'?"]),
    ],
    ids=["loss", "validate", "sample", "metric"],
)
def test_a_key_that_fits_nothing_in_the_run_is_an_error(toy, tmp_path, options, hooks, words):
    config = TrainConfig(**{**PLAIN, **options})
    with pytest.raises(RecipeError) as error:
        Trainer(toy.Toy(), toy.ToySamples(), config, tmp_path, **{**toy.hooks(config), **hooks}).fit()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_no_samples_is_an_error(toy, tmp_path):
    with pytest.raises(RecipeError, match="no samples"):
        Trainer(toy.Toy(), toy.ToySamples(size=0), TrainConfig(), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_ends_the_run_with_its_message_and_the_steps_before_can_be_resumed(toy, tmp_path, workers):
    class Broken(toy.ToySamples):
        def sample(self, index, rng):
            if self.broken and index == 4:
                raise DataError("t.jsonl, line 5: no such picture.")
            return super().sample(index, rng)

    samples = Broken()
    samples.broken = True
    with pytest.raises(DataError, match=r"^t.jsonl, line 5: no such picture.$"):
        fit(toy, tmp_path, samples=samples, batch_size=1, checkpoint_every=1, steps=20, workers=workers)
    assert 0 < checkpoint.steps(tmp_path / "checkpoints")[-1] < 11
    samples.broken = False
    assert fit(toy, tmp_path, samples=samples, batch_size=1, steps=20, workers=workers)[1].step == 20


def test_a_missing_tracker_is_told_with_the_command(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install wandb"):
        fit(toy, tmp_path, trackers=["wandb"])


def test_trackers_get_the_settings_and_every_line(toy, tmp_path, monkeypatch):
    from accelerate import Accelerator, PartialState

    sent, ended = [], []

    def init_trackers(self, name, config):
        sent.append((name, config))
        self.trackers.append(SimpleNamespace(finish=lambda: ended.append(name)))

    monkeypatch.setattr("mmlm.training.trainer.require_tracker", lambda name: None)
    monkeypatch.setattr(Accelerator, "init_trackers", init_trackers)
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: sent.append((step, values)))
    monkeypatch.setattr(PartialState, "destroy_process_group", lambda self, group=None: pytest.fail("other processes wait for this one"))
    fit(toy, tmp_path / "run", trackers=["tensorboard"], steps=2)
    assert sent[0][0] == "run" and sent[0][1]["optimizer.type"] == "adamw" and sent[0][1]["seed"] == 5
    assert [step for step, _ in sent[1:]] == [1, 2] and sent[1][1]["loss.fit"] > 0 and ended == ["run"]


def test_a_folder_that_cannot_be_written_is_told(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="output: the run folder .*file/run cannot be written: Not a directory"):
        fit(toy, tmp_path / "file" / "run")


def test_a_log_on_a_full_disk_ends_the_run_with_one_line(toy, tmp_path):
    tmp_path.joinpath("log.jsonl").symlink_to("/dev/full")
    with pytest.raises(MmlmError, match="log.jsonl: cannot be written: No space left on device") as error:
        fit(toy, tmp_path)
    assert error.value.exit_code == 1


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.signal == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_signal_breaks_off():
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.signal == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was ignored")


def test_one_model_can_be_trained_again_elsewhere(toy, tmp_path):
    model, _ = fit(toy, tmp_path / "a")
    before = model.inner.weight.detach().clone()
    fit(toy, tmp_path / "b", model=model)
    assert not torch.equal(before, model.inner.weight)


def test_memory_is_kept_while_training_and_given_back_after_it():
    def held_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    before = held_mib()
    with pytest.raises(ZeroDivisionError), kept_memory() as works:
        assert works
        blocks = [torch.zeros(1 << 20) for _ in range(64)]  # 256 MiB
        blocks.clear()
        assert held_mib() > before + 200
        raise ZeroDivisionError
    assert held_mib() < before + 100 and 0.01 < peak_gib() < 100


def test_the_log_is_json_without_nan(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", 0)
    log.write({"step": 1, "loss": math.nan, "norm": math.inf})
    log.close()
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": None, "norm": None}


def test_a_half_written_line_is_cut_off_and_not_read(tmp_path):
    path = Path(tmp_path / "log.jsonl")
    path.write_bytes(b'{"step": 1}\n{"st')
    assert read_log(path) == [{"step": 1}]
    log = RunLog(path, 12)
    log.write({"step": 2})
    log.close()
    assert read_log(path) == [{"step": 1}, {"step": 2}]


def test_parts_of_the_samples_have_random_numbers_of_their_own(toy, tmp_path):
    class Told(toy.ToySamples):
        def __init__(self):
            super().__init__()
            self.drawn = []

        def sample(self, index, rng):
            self.drawn.append(int(rng.integers(1 << 60)))
            return super().sample(index, np.random.default_rng(0))

    class Both(toy.ToySamples):
        parts, sizes = [Told(), Told()], [3, 2]

    config = TrainConfig(steps=3, batch_size=8, log_every=1)
    assert Trainer(toy.Toy(dropout=0.0), Both(), config, tmp_path).fit().step == 3
    one, other = (part.drawn for part in Both.parts)
    assert len(one) == 9 and len(other) == 6 and not set(one) & set(other)
    assert read_log(tmp_path / "log.jsonl")[-1]["epoch"] == 14 // len(Both())
