"""Labels as a task: what carries loss, what is measured, and every probe with another mixer by one override."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmlm.cli import main
from mmlm.data.config import CountingConfig
from mmlm.data.probes.base import NONE, Labelled
from mmlm.recipe import Recipe, shipped
from mmlm.run import build_model, build_task, evaluate, load_run, preview, train
from mmlm.stream import NO_LABEL, pack

PROBES = [name for name in shipped() if name.startswith("probes/") and name != "probes/text"]
RECIPE = """
schema: 1
name: tiny
task: labels
data:
  train: [{type: recall, length: 12, num_pairs: 2, num_tokens: 12}]
  validate: [{type: recall, length: 12, num_pairs: 2, num_tokens: 12}]
  validate_samples: 4
  test: [{type: recall, length: 12, num_pairs: 2, num_tokens: 12}, {type: recall, length: 20, num_pairs: 2, num_tokens: 12}]
  test_samples: 30
backbone: {width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}
train: {steps: 3, batch_size: 4, log_every: 1, validate_every: 3, sample_every: 3, keep_best: {metric: accuracy, mode: max}}
"""


@pytest.fixture(scope="module")
def parts():
    recipe = Recipe.read(RECIPE)
    task = build_task(recipe)
    return recipe, task, build_model(recipe, task).eval()


def drawn(recipe: Recipe, count: int) -> list[Labelled]:
    source = recipe.data.train[0].build()
    return [source.draw(np.random.default_rng(number), None) for number in range(count)]


def test_labels_carry_loss_at_their_own_token_and_the_vocabulary_holds_what_the_sources_write(parts):
    recipe, task, model = parts
    assert task.vocabulary == {"token": 12}
    (record,) = drawn(recipe, 1)
    batch = pack([task.example(record, np.random.default_rng(0))], model.vocabulary)
    assert batch.ids[0].tolist() == record.tokens.tolist()
    assert batch.labels[0].tolist() == np.where(record.labels == NONE, NO_LABEL, record.labels).tolist()
    assert float(model.loss_weights(batch)["language_model"]) == len(record.asked) == 2
    task.meet([CountingConfig(modulus=7)])
    assert task.vocabulary == {"token": 7}
    task.meet(recipe.data.train)


def test_a_prediction_is_the_likeliest_label_of_each_sequence_alone_however_many_are_read_together(parts):
    recipe, task, model = parts
    records = drawn(recipe, 9)
    together = task.predict(model, records)
    task.config = task.config.model_copy(update={"tokens_at_once": 25})
    apart = task.predict(model, records)
    task.config = recipe.tasks[0]
    for record, one, other in zip(records, together, apart, strict=True):
        scores = model.logits(torch.from_numpy(record.tokens)[None])[0]
        wanted = np.full(len(record.tokens), NONE)
        wanted[record.asked] = scores.argmax(-1).numpy()[record.asked]
        assert one.tolist() == other.tolist() == wanted.tolist()


def test_accuracy_exactness_baseline_and_curve_count_labels(parts):
    _, task, _ = parts
    one = Labelled(np.zeros(4, int), np.array([NONE, 1, 2, 1]), np.array([0, 1, 5, 9]))
    other = Labelled(np.zeros(2, int), np.array([1, NONE]), np.array([2, 0]))
    said = [np.array([NONE, 1, 1, 1]), np.array([1, NONE])]
    assert task.score(said, [one, other]) == {"accuracy": 0.75, "exact": 0.5}
    assert task.baselines([one, other]) == {"commonest label": {"accuracy": 0.75, "exact": 0.5}}
    assert task.curves(said, [one, other])["accuracy"] == [(1.0, 1.0), (2.0, 1.0), (5.0, 0.0), (9.0, 1.0)]


def test_a_run_from_recipe_to_report(tmp_path, capsys):
    run = tmp_path / "run"
    result = train(Recipe.read(RECIPE, [f"output={run}"]))
    assert 0 <= result.metrics["accuracy"] <= 1
    assert "said" in (run / "samples" / "step_000003" / "predictions.txt").read_text()
    assert "Nothing yet" in (run / "README.md").read_text()
    metrics = evaluate(run)
    assert metrics == json.loads((run / "metrics.json").read_text()) | {"curves": metrics["curves"]}
    assert set(metrics["metrics"]) == {f"{what}: recall{more}" for what in ("accuracy", "exact") for more in (", length 12", ", length 20")}
    assert metrics["data"] == {"records": {"recall, length 12": 30, "recall, length 20": 30}}
    page = (run / "report.html").read_text()
    for value in metrics["metrics"].values():
        assert f"{value:.4g}" in page and f"{value:.4g}" in (run / "README.md").read_text()
    assert page.count("<svg") >= 3 and "commonest label" in page
    assert evaluate(run)["metrics"] == metrics["metrics"]
    assert main(["evaluate", str(run), "data.test=[{type: recall, length: 12, num_pairs: 2, num_tokens: 12}]"]) == 0
    assert "accuracy " in capsys.readouterr().out
    assert load_run(run)[1].vocabulary == {"token": 12}
    assert main(["evaluate", str(run), "data.test=[]"]) == 2
    assert "data.test: is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_runs_with_another_mixer_by_one_override(name, tmp_path):
    small = ["train.steps=1", "train.batch_size=2", "data.test_samples=2", f"output={tmp_path / 'run'}"]
    recipe = Recipe.read(name, [*small, "backbone.pattern=M*"])
    assert [layer.mixer.type for layer in recipe.backbone.layers] == ["mamba2", "attention"]
    assert "tokens" in preview(recipe, 1)
    train(recipe)
    assert all(0 <= value <= 1 for value in evaluate(tmp_path / "run")["metrics"].values())
