"""The predictor is an estimator of scikit-learn, and adapters fitted to a table change what it says."""

import re
import shutil
import warnings

import numpy as np
import pandas
import pytest
from sklearn.utils.estimator_checks import check_estimator

from mmlm.base.errors import DataError, MmlmError
from mmlm.predictor import TabularPredictor, fill_column
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


def test_the_target_has_the_name_of_what_is_given_beside_those_of_the_columns(run, tmp_path):
    x = pandas.DataFrame({"y": np.arange(12.0), "target": np.arange(12.0) % 3})
    kind = pandas.Series(["a", "b"] * 6, name="kind")
    for y, name in (
        (kind, "kind"),
        (kind.to_frame(), "kind"),
        (kind.rename("y"), "y_"),
        (kind.to_list(), "target_"),
        (kind.rename(None), "target_"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert TabularPredictor(run).fit(x, y).target_ == name
    assert TabularPredictor(run, fit_by="lora", steps=1).fit(x, kind).shots_.names == ["y", "target"]
    x.assign(kind=kind).to_csv(tmp_path / "shots.csv", index=False)
    x.to_csv(tmp_path / "new.csv", index=False)
    fill_column(run, tmp_path / "new.csv", "kind", tmp_path / "shots.csv", tmp_path / "filled.csv")
    assert pandas.read_csv(tmp_path / "filled.csv")["kind"].tolist() == TabularPredictor(run).fit(x, kind).predict(x).tolist()


def test_more_examples_than_wanted_are_sampled_in_the_shares_of_their_classes(run, caplog):
    x, y = np.arange(300.0).reshape(-1, 1), np.repeat([0, 1, 2], [200, 90, 10])
    predictor = TabularPredictor(run, max_shots=30).fit(x, y)
    assert np.bincount(predictor.labels_).tolist() == [20, 9, 1] and "max_shots" in caplog.text


def test_a_rare_class_keeps_an_example(run):
    x, y = np.arange(300.0).reshape(-1, 1), np.repeat([0, 1], [299, 1])
    assert np.bincount(TabularPredictor(run, max_shots=30).fit(x, y).labels_).tolist() == [29, 1]


def test_adapters_fitted_to_the_examples_change_the_prediction_and_lower_its_loss(run):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(120, 3))
    y = (x[:, 0] > 0).astype(int)
    shots = TabularPredictor(run).fit(x[:60], y[:60])
    tuned = TabularPredictor(run, fit_by="lora", steps=60, lr=2e-2).fit(x[:60], y[:60])
    loss = [-np.log(p.predict_proba(x[60:])[np.arange(60), y[60:]]).mean() for p in (shots, tuned)]
    assert loss[1] < loss[0] - 0.05


def test_adapters_of_a_run_that_had_a_teacher_are_fitted_to_the_table_without_it(run, tmp_path):
    shutil.copytree(run, tmp_path / "student")
    recipe = Recipe.read(run / "recipe.yaml", ["objective={type: distillation, teacher: runs/gone}"])
    (tmp_path / "student" / "recipe.yaml").write_text(recipe.dump())
    x, y = np.arange(12.0).reshape(-1, 1), [0, 1] * 6
    found = [TabularPredictor(folder, fit_by="lora", steps=1).fit(x, y).predict_proba(x) for folder in (run, tmp_path / "student")]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("y", "told"),
    [
        ([1] * 12, "one class"),
        (list("abcdefghijkl"), "has 12 classes, but this run can tell at most 10 apart. Join rare classes"),
        ([1.0, np.inf] * 6, "infinity"),
        ([1, 2], "inconsistent numbers of samples"),
    ],
)
def test_a_target_that_cannot_be_learned_is_told(run, y, told):
    with pytest.raises((DataError, ValueError), match=told):
        TabularPredictor(run).fit(np.arange(12.0).reshape(-1, 1), y)


@pytest.mark.parametrize(
    "y", [np.array([3, 7] * 6), np.array([True, False] * 6), np.array([0.0, 1.0] * 6), np.array(["a", "b"] * 6), np.array(["0", "1"] * 6)]
)
def test_predicted_classes_have_the_type_of_those_given(run, y):
    predictor = TabularPredictor(run).fit(np.arange(12.0).reshape(-1, 1), y)
    found = predictor.predict(np.arange(12.0).reshape(-1, 1))
    assert found.dtype == y.dtype and set(found.tolist()) <= set(y.tolist()) and predictor.classes_.tolist() == sorted(set(y.tolist()))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kind": "numeric"}, "kind: unknown value 'numeric'. Did you mean 'numbers'"),
        ({"fit_by": "Lora"}, "fit_by: unknown value 'Lora'. Did you mean 'lora'"),
        ({"max_shots": 0}, "max_shots must be a whole number of at least 1, but is 0"),
        ({"steps": "many"}, "steps must be a whole number"),
    ],
)
def test_an_option_that_is_none_is_told(run, options, told):
    with pytest.raises(DataError, match=told):
        TabularPredictor(run, **options).fit(np.arange(12.0).reshape(-1, 1), [0, 1] * 6)


def test_a_column_of_numbers_in_the_examples_and_texts_in_the_rows_is_read_as_text(run, caplog):
    x = pandas.DataFrame({"a": [1.0, 2.0, 3.0, 4.0] * 3, "b": ["u", "v"] * 6})
    predictor = TabularPredictor(run).fit(x, [0, 1] * 6)
    assert len(predictor.predict(x.assign(a="1", b=5.0))) == 12
    assert "column 'b' is a category in the examples, but a number in the rows to predict" in caplog.text
    assert len(predictor.predict(x.assign(b=np.nan))) == 12
    assert len(predictor.predict(x.assign(a=None))) == 12 and "column 'a' is" not in caplog.text


def filled(run, tmp_path, table: str, shots: str, target: str = "price") -> tuple[int, list[str]]:
    (tmp_path / "new.csv").write_text(table)
    (tmp_path / "known.csv").write_text(shots)
    count = fill_column(run, tmp_path / "new.csv", target, tmp_path / "known.csv", tmp_path / "out.csv")
    return count, (tmp_path / "out.csv").read_text().splitlines()


KNOWN = "size,price\n" + "".join(f"{i},{i * 2}.5{i % 10}\n" for i in range(30))


def test_filling_keeps_every_cell_that_was_there(run, tmp_path):
    table = 'zip,size, price ,note\n007,1e1,,"a\nb"\n+08,5.0,7.125,NA\n010,,,\n'
    count, lines = filled(run, tmp_path, table, KNOWN)
    assert count == 2 and lines[0] == "zip,size,price ,note" and lines[3] == "+08,5.0,7.125,NA"
    assert re.fullmatch(r'007,1e1,\d+(\.\d{1,2})?,"a', lines[1]) and re.fullmatch(r"010,,\d+(\.\d{1,2})?,", lines[4])


def test_filling_a_file_with_decimal_commas_writes_them(run, tmp_path):
    count, lines = filled(run, tmp_path, "size;price\n1,5;\n2,5;3,25\n", KNOWN)
    assert count == 1 and lines[0] == "size;price" and lines[2] == "2,5;3,25" and re.fullmatch(r"1,5;\d+(,\d{1,2})?", lines[1])


def test_whole_numbers_are_filled_with_whole_numbers(run, tmp_path):
    count, lines = filled(run, tmp_path, "size\n1\n2\n", KNOWN.replace(".5", ""))
    assert count == 2 and lines[0] == "size,price" and all(line.partition(",")[2].isdecimal() for line in lines[1:])


def test_a_full_table_is_written_as_it_is(run, tmp_path):
    assert filled(run, tmp_path, KNOWN, KNOWN) == (0, KNOWN.splitlines())


@pytest.mark.parametrize(
    ("table", "shots", "told"),
    [
        ("sizes\n1\n", KNOWN, "new.csv: lacks the column 'size' of .*known.csv"),
        ("a\n1\n", "price\n1\n2\n", "known.csv: the examples have no column beside the target"),
        (KNOWN, "size,price\n" + "".join(f"{i},t{i}\n" for i in range(12)), "known.csv: the target 'price' has 12 classes"),
    ],
)
def test_tables_that_do_not_fit_are_named(run, tmp_path, table, shots, told):
    with pytest.raises(DataError, match=told):
        filled(run, tmp_path, table, shots)


def test_an_output_that_cannot_be_written_costs_no_prediction_and_no_file(run, tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(KNOWN)
    (tmp_path / "old.csv").write_text("old")
    for output, told in [("none/x.csv", "does not exist"), (".", "is a folder"), ("t.csv", "is read from")]:
        with pytest.raises(DataError, match=told):
            fill_column(tmp_path / "no run", tmp_path / "t.csv", "price", tmp_path / "t.csv", tmp_path / output)

    def full(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MmlmError, match=r"old.csv: cannot be written: No space left") as error:
        fill_column(run, tmp_path / "t.csv", "price", tmp_path / "t.csv", tmp_path / "old.csv")
    assert error.value.exit_code == 1 and sorted(one.name for one in tmp_path.iterdir()) == ["old.csv", "t.csv"]
    assert (tmp_path / "old.csv").read_text() == "old" and (tmp_path / "t.csv").read_text() == KNOWN
