"""Validation while training: what it measures, that it disturbs nothing, and what is said where it cannot be made."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.evaluation.validation import Validation
from mmlm.recipe import Recipe
from mmlm.records import DrawnSamples, Records
from mmlm.run import build_model, build_task, load_run, train
from mmlm.training import checkpoint
from mmlm.training.learner import Learner
from mmlm.training.log import read_log
from mmlm.training.state import load_model
from mmlm.training.trainer import Trainer

CELLS = """
task: {type: tabular, episode: {num_rows: 12, max_shots: 8, max_columns: 4}}
encoders: {cell: {type: table_cells, hidden: 16}}
backbone:
  width: 16
  num_layers: 2
  dropout: 0.1
  pattern:
    - {mixer: {type: attention, num_heads: 2, over: column, causal: false, rope: null}, feed_forward: null}
    - {mixer: {type: attention, num_heads: 2, over: row, causal: false, rope: null}}
"""
TEXT = """
task: {type: tabular_text, context: 1024, episode: {num_rows: 8, max_shots: 6, max_columns: 3, max_classes: 3}}
tokenizers: {text: {type: text, vocabulary_size: 300}}
backbone: {width: 32, num_layers: 2, dropout: 0.1, pattern: [{mixer: {type: attention, num_heads: 2}}]}
"""
REST = """
schema: 1
name: tiny
data: {train: [{type: structural_tables}], validate: [{type: structural_tables}], validate_samples: 5}
train: {steps: 6, batch_size: 2, lr: 1e-2, log_every: 2, ema_decay: 0.5, checkpoint_every: 100, validate_every: 2, sample_every: 3}
"""
TASKS = {"cells": CELLS, "text": TEXT}
FILE = "data.train=[{type: table_file, path: tabular/penguins.csv, target: species, validate_share: 0.1}]"


def read(kind: str, *overrides: str) -> Recipe:
    return Recipe.read(REST + TASKS[kind], overrides)


def parts(recipe: Recipe, *, count: int = 5, **options) -> tuple[Learner, Validation]:
    """A model of first weights and what validates it."""
    task, objective = build_task(recipe), recipe.objective.build()
    learner = Learner(build_model(recipe, task), objective).eval()
    records = Records.of_training(recipe, task).for_validation(recipe)
    samples = DrawnSamples(task, objective, learner.model.vocabulary, records)
    return learner, Validation(samples, task, recipe.train.model_copy(update=options), count=count, seed=recipe.seed)


@pytest.fixture(params=TASKS)
def kind(request) -> str:
    return request.param


@pytest.mark.parametrize("data", ["generated", "file"])
def test_the_loss_and_the_accuracy_are_those_of_every_sample_alone(kind, data):
    recipe = read(kind, *([FILE, "data.validate=[]"] if data == "file" else []))
    learner, validation = parts(recipe)
    found = validation(learner, 1)
    sums, right = [], []
    _, single = parts(recipe, micro_batch_size=1)
    assert len(single.batches) == 5 and len(validation.batches) == 3
    for batch, record in zip(single.batches, validation.records, strict=True):
        total, weight = learner(batch)["language_model"]
        sums.append((float(total.detach()), float(weight)))
        chance = validation.task.predict_proba(learner.model, record)
        right += (chance.argmax(1) == record.labels[record.num_shots :]).tolist()
    assert found["loss"] == found["loss.language_model"] == pytest.approx(np.sum(sums, 0)[0] / np.sum(sums, 0)[1], rel=1e-5)
    assert found["accuracy"] == np.mean(right) and 0 < found["accuracy"] < 1
    assert single(learner, 7) == pytest.approx(found, rel=1e-5)
    doubled = parts(recipe, loss_weights={"language_model": 2.0})[1](learner, 1)
    assert doubled["loss"] == pytest.approx(2 * found["loss"]) and doubled["loss.language_model"] == found["loss.language_model"]


def test_samples_depend_on_seed_and_number_alone_and_are_none_of_training(kind):
    def content(records):
        return [(record.features.content_hash(), record.labels.tolist()) for record in records]

    few, many = (content(parts(read(kind), count=count)[1].records) for count in (3, 5))
    assert few == many[:3] and len({repr(each) for each in many}) == 5
    assert not set(map(repr, content(parts(read(kind, "seed=1"))[1].records))) & set(map(repr, many))
    recipe = read(kind)
    task = build_task(recipe)
    training = Records.of_training(recipe, task)
    assert content([training.draw(np.random.default_rng([0, number])) for number in range(3)]) != few


def run(folder: Path, recipe: Recipe, cuts: tuple[int, ...]) -> None:
    """`mmlm.run.train`, ended after some steps as by a full stop of the process, and gone on with."""
    for cut in cuts:
        with pytest.MonkeyPatch.context() as patch:
            whole = Trainer.fit
            patch.setattr(Trainer, "fit", lambda self, *, fresh=False, until=None: whole(self, fresh=fresh, until=cut))  # noqa: B023
            train(recipe.model_copy(update={"output": str(folder)}))


def assert_same(one: Path, other: Path, ignore: tuple[str, ...] = ()) -> None:
    """The last checkpoints of both runs are equal, bit for bit and number for number, but for times."""
    found = [checkpoint.read(folder / "checkpoints" / checkpoint.step_name(6)) for folder in (one, other)]
    hidden = {"seconds", "log_bytes", "config", "window", "logged", *ignore}
    counters = [{key: value for key, value in content.items() if key not in hidden} for _, content in found]
    assert counters[0] == counters[1]
    assert found[0][0].keys() == found[1][0].keys() == {"model", "optimizer", "ema"}
    for file, tensors in found[0][0].items():
        assert tensors.keys() == found[1][0][file].keys()
        assert all(torch.equal(tensor, found[1][0][file][name]) for name, tensor in tensors.items()), file


def test_a_run_with_validation_and_samples_resumes_bit_by_bit_and_is_that_without_them(kind, tmp_path):
    run(tmp_path / "whole", read(kind), (6,))
    run(tmp_path / "cut", read(kind), (1, 3, 4, 6))
    run(tmp_path / "plain", read(kind, "train.validate_every=0", "train.sample_every=0"), (6,))
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "plain", ignore=("validated", "drawn", "metrics", "validation"))
    logs = []
    for name in ("whole", "cut"):
        lines = [line for line in read_log(tmp_path / name / "log.jsonl") if "validation.loss" in line]
        logs.append({line["step"]: {key: value for key, value in line.items() if key.startswith("validation.")} for line in lines})
    assert set(logs[0]) == {2, 4, 6} <= set(logs[1]) and all(logs[1][step] == values for step, values in logs[0].items())
    for step in (3, 6):
        texts = [(tmp_path / name / "samples" / checkpoint.step_name(step) / "predictions.txt").read_text() for name in ("whole", "cut")]
        assert texts[0] == texts[1]


def test_the_averaged_weights_are_measured(kind, tmp_path):
    recipe = read(kind, f"output={tmp_path / 'run'}")
    metrics = train(recipe).metrics
    learner, validation = parts(recipe)
    assert validation(learner, 6) != metrics
    load_model(learner, tmp_path / "run" / "checkpoints" / "step_000006")
    assert validation(learner, 6) == metrics
    assert torch.equal(load_run(tmp_path / "run")[2].embedding.weight, learner.model.embedding.weight)


def test_the_kept_best_is_what_a_run_ends_with(tmp_path):
    best = "{metric: loss, mode: max}"  # the worst, so that it is not the last
    recipe = read("cells", f"output={tmp_path / 'run'}", f"train.keep_best={best}", "train.steps=8", "train.lr=3e-2")
    result = train(recipe)
    log = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "validation.loss" in line]
    worst = max(log, key=lambda line: line["validation.loss"])
    assert result.best == (worst["step"], worst["validation.loss"]) and log[-1]["best_step"] == worst["step"] < 8
    learner, validation = parts(recipe)
    learner.model = load_run(tmp_path / "run")[2]
    assert validation(learner, 0)["loss"] == worst["validation.loss"]
    assert f"at step {worst['step']}:" in (tmp_path / "run" / "README.md").read_text()


def test_another_validation_set_or_metric_forgets_the_best(tmp_path):
    def best(*overrides):
        return train(read("cells", f"output={tmp_path / 'run'}", *overrides)).best

    loss, accuracy = "train.keep_best={metric: loss, mode: max}", "train.keep_best={metric: accuracy, mode: max}"
    first = best(loss)
    assert first == best(loss)
    other = best(loss, "data.validate_samples=6")
    assert other[0] == 6 and other[1] != first[1]
    assert best(accuracy, "data.validate_samples=6")[1] < 1
    assert best("data.validate_samples=6") is None


def test_samples_show_prompt_prediction_probability_and_truth(kind, tmp_path):
    recipe = read(kind, f"output={tmp_path / 'run'}")
    train(recipe)
    _, task, model = load_run(tmp_path / "run")
    text = (tmp_path / "run" / "samples" / "step_000006" / "predictions.txt").read_text()
    validation = parts(recipe)[1]
    assert text.count("sample ") == 4
    for record in validation.records[:4]:
        assert task.shown(record) in text
        for chance, label in zip(task.predict_proba(model, record), record.labels[record.num_shots :], strict=True):
            best = int(chance.argmax())
            line = [record.classes[best], f"{chance[best]:.3f}", record.classes[label], *(["(wrong)"] if best != label else [])]
            assert any(found.split()[1:] == " ".join(line).split() for found in text.splitlines()), line


def test_a_class_outside_the_options_is_shown_as_that(tmp_path):
    learner, validation = parts(read("cells"), count=1)
    (record,) = validation.records
    record = dataclasses.replace(record, labels=np.r_[record.labels[:-1], -1])
    validation.task.write_samples(learner.model, [record], tmp_path)
    assert "another class  (wrong)" in (tmp_path / "predictions.txt").read_text()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.validate=[]"], "train.validate_every needs data to validate on. Write data.validate"),
        (["data.validate=[]", "train.validate_every=0"], "train.sample_every needs data to validate on."),
        ([FILE, "data.validate=[{type: table_file, path: tabular/penguins.csv, target: sex}]"], "penguins.csv is trained on too"),
        (["data.train=[{type: real_tables}]", "data.validate=[{type: real_tables}]"], "the train split of real_tables is trained on too"),
        ([FILE, "data.train.0.hold_out=0.95"], "hold_out (0.95) + validate_share (0.1) leave nothing to train on"),
        (["train.keep_best={metric: acuracy}"], "Did you mean 'accuracy'? Known: accuracy, loss, loss.language_model"),
    ],
    ids=["none", "samples", "file", "split", "shares", "metric"],
)
def test_what_cannot_be_validated_is_told_before_anything_starts(overrides, told, tmp_path):
    with pytest.raises(RecipeError) as error:
        train(read("cells", f"output={tmp_path / 'run'}", *overrides))
    assert told in str(error.value) and not (tmp_path / "run").exists()


def test_validation_data_that_is_not_used_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(read("cells", f"output={tmp_path / 'run'}", "train.validate_every=0", "train.sample_every=0", "train.steps=1"))
    assert "data.validate is not used" in caplog.text
