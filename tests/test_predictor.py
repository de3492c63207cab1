"""The predictor is an estimator of scikit-learn, and adapters fitted to a table change what it says."""

import warnings

import numpy as np
import pandas
import pytest
from sklearn.utils.estimator_checks import check_estimator

from mmlm.base.errors import DataError
from mmlm.predictor import TabularPredictor
from mmlm.recipe import Recipe
from mmlm.run import train

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
train: {steps: 2, batch_size: 2, log_every: 1}
"""
EXPECTED = {
    "check_classifiers_train": "asks for an accuracy that a model of two training steps does not have",
    "check_regressors_train": "asks for a score that a model of two training steps does not have",
    "check_methods_sample_order_invariance": "asks for 1e-7, but the model computes in single precision",
    "check_methods_subset_invariance": "asks for 1e-7, but the model computes in single precision",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictor") / "run"
    train(Recipe.read(RECIPE, [f"output={folder}"]))
    return folder


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_the_checks_of_scikit_learn_pass(run, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(TabularPredictor(run, kind=kind), on_skip=None, on_fail=None, expected_failed_checks=EXPECTED)
    failed = [f"{one['check_name']}: {one['exception']!r}" for one in found if one["status"] == "failed"]
    assert not failed and sum(one["status"] == "passed" for one in found) >= 40


def test_texts_gaps_and_numbers_are_predicted_from_a_frame(run):
    rng = np.random.default_rng(0)
    x = pandas.DataFrame({"size": rng.normal(size=40), "colour": rng.choice(["red", "blue", None], 40)})
    predictor = TabularPredictor(run).fit(x, np.where(x["size"] > 0, "big", "small"))
    assert set(predictor.predict(x)) <= {"big", "small"} and predictor.classes_.tolist() == ["big", "small"]
    np.testing.assert_allclose(predictor.predict_proba(x).sum(1), 1)
    numbers = TabularPredictor(run).fit(x, x["size"] * 10)
    assert numbers.is_regression_ and not hasattr(numbers, "predict_proba")
    assert np.isfinite(numbers.predict(x)).all() and -30 < numbers.predict(x).min() < numbers.predict(x).max() < 30


def test_more_examples_than_wanted_are_sampled_in_the_shares_of_their_classes(run, caplog):
    x, y = np.arange(300.0).reshape(-1, 1), np.repeat([0, 1, 2], [200, 90, 10])
    predictor = TabularPredictor(run, max_shots=30).fit(x, y)
    assert np.bincount(predictor.labels_).tolist() == [20, 9, 1] and "max_shots" in caplog.text


def test_adapters_fitted_to_the_examples_change_the_prediction_and_lower_its_loss(run):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 3))
    y = (x[:, 0] > 0).astype(int)
    shots = TabularPredictor(run).fit(x[:60], y[:60])
    tuned = TabularPredictor(run, fit_by="lora", steps=60, lr=2e-2).fit(x[:60], y[:60])
    loss = [-np.log(p.predict_proba(x[60:])[np.arange(60), y[60:]]).mean() for p in (shots, tuned)]
    assert loss[1] < loss[0] - 0.05


@pytest.mark.parametrize(
    ("y", "told"),
    [
        ([1] * 12, "one class"),
        (list("abcdefghijkl"), "2 to 10 classes"),
        ([1.0, np.inf] * 6, "infinity"),
        ([1, 2], "inconsistent numbers of samples"),
    ],
)
def test_a_target_that_cannot_be_learned_is_told(run, y, told):
    with pytest.raises((DataError, ValueError), match=told):
        TabularPredictor(run).fit(np.arange(12.0).reshape(-1, 1), y).predict(np.zeros((1, 1)))
