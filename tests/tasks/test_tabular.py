"""The in-context tabular task: what a prediction may depend on, and a run from recipe to filled table."""

import dataclasses

import numpy as np
import pandas
import pytest
import torch
from pydantic import ValidationError

from mmlm.data.config import EpisodeConfig, StructuralTablesConfig
from mmlm.data.prior import StructuralTables
from mmlm.data.tables import Table
from mmlm.evaluation.baselines import majority
from mmlm.evaluation.config import EvaluateConfig
from mmlm.evaluation.protocol import compare, summary
from mmlm.predictor import TabularPredictor, fill_column
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, load_run, train

RECIPE = """
schema: 1
name: tiny
task: {type: tabular, episode: {num_rows: 12, max_shots: 8, max_columns: 4}}
data: {train: [{type: structural_tables}]}
encoders: {cell: {type: table_cells, hidden: 16}}
backbone:
  width: 16
  num_layers: 2
  pattern:
    - {mixer: {type: attention, num_heads: 2, over: column, causal: false, rope: null}, feed_forward: null}
    - {mixer: {type: attention, num_heads: 2, over: row, causal: false, rope: null}}
train: {steps: 3, batch_size: 2, log_every: 1}
"""


def drawn(seed: int):
    rng = np.random.Generator(np.random.Philox(key=seed))
    return StructuralTables(StructuralTablesConfig()).draw(rng, EpisodeConfig(num_rows=16, max_shots=8))


def test_a_prediction_depends_neither_on_the_other_queries_nor_on_the_order_of_columns_and_examples():
    recipe = Recipe.read(RECIPE)
    task = build_task(recipe)
    model = build_model(recipe, task)
    problem = next(e for e in map(drawn, range(20)) if len(e.features.columns) > 2 and e.num_shots > 2)
    count = problem.num_shots

    def predicted(**changes):
        return task.predict_proba(model, dataclasses.replace(problem, **changes))

    whole = predicted()
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-6)
    assert np.ptp(whole, axis=0).max() > 1e-5, "the queries all got the same prediction"
    alone = predicted(features=problem.features.take(np.arange(count + 1)), labels=problem.labels[: count + 1])
    np.testing.assert_allclose(alone[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(predicted(features=problem.features.select(list(reversed(problem.features.names)))), whole, atol=1e-5)
    order = np.r_[np.arange(count)[::-1], np.arange(count, len(problem.labels))]
    np.testing.assert_allclose(predicted(features=problem.features.take(order), labels=problem.labels[order]), whole, atol=1e-5)
    hidden = np.where(np.arange(len(problem.labels)) < count, problem.labels, -1)
    np.testing.assert_array_equal(predicted(labels=hidden), whole)


def test_the_same_seed_draws_the_same_task_and_another_seed_another():
    same, again, other = drawn(1), drawn(1), drawn(2)
    assert same.features.content_hash() == again.features.content_hash() and (same.labels == again.labels).all()
    assert same.features.content_hash() != other.features.content_hash()


def test_a_run_goes_from_recipe_to_a_filled_table(tmp_path):
    recipe = Recipe.read(RECIPE, [f"output={tmp_path / 'run'}"])
    assert train(recipe).step == 3
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 3
    known, task, model = load_run(tmp_path / "run")
    assert known.tasks == recipe.tasks and torch.isfinite(model.embedding.weight).all()
    (tmp_path / "shots.csv").write_text(
        "size,colour,kind\n" + "\n".join(f"{i},{'red' if i % 2 else 'blue'},{'ab'[i % 2]}" for i in range(8))
    )
    (tmp_path / "new.csv").write_text("size,colour\n1,red\n2,blue\n3,\n")
    assert fill_column(tmp_path / "run", tmp_path / "new.csv", "kind", tmp_path / "shots.csv", tmp_path / "out.csv") == 3
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "size,colour,kind" and all(line.split(",")[-1] in "ab" for line in lines[1:])
    predictor = TabularPredictor(tmp_path / "run").fit(np.arange(12.0).reshape(-1, 1), np.arange(12) % 3)
    assert predictor.predict_proba(np.zeros((2, 1))).shape == (2, 3) and set(predictor.predict(np.zeros((2, 1)))) <= {0.0, 1.0, 2.0}


def test_the_comparison_counts_what_is_right():
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"x": rng.normal(size=60), "y": rng.choice(["a", "b"], 60, p=[0.8, 0.2])})
    table = Table.from_frame(frame, "toy").with_target("y")
    config = EvaluateConfig(shots=[8], seeds=2, max_queries=32)
    found = summary(compare([table], majority, config, {"majority": majority}), config)
    assert found["metrics"]["accuracy_8"] == found["baselines"]["majority"]["accuracy_8"]
    assert found["baselines"]["majority"]["model_minus_this_8"] == 0
    assert 0.5 < found["metrics"]["accuracy_8"] < 1


def test_as_few_rows_to_predict_as_may_be_asked_for_are_a_comparison():
    few = EvaluateConfig.model_fields["max_queries"].metadata[0].ge
    with pytest.raises(ValidationError, match=f"at least {few}"):
        EvaluateConfig(max_queries=few - 1)
    frame = pandas.DataFrame({"x": np.arange(60.0), "y": ["a", "b"] * 30})
    config = EvaluateConfig(shots=[8], seeds=1, max_queries=few)
    assert compare([Table.from_frame(frame, "toy").with_target("y")], majority, config, {}).values
