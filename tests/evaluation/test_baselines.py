"""The baselines give probabilities of all classes for whatever the examples hold."""

import numpy as np
import pytest

from mmlm.data.episodes import Episode
from mmlm.data.tables import Column, Table
from mmlm.evaluation.baselines import BASELINES, xgboost_search

PREDICTORS = {**BASELINES, "xgboost_search": xgboost_search}


def problem(columns: list[Column], labels: list[int], shots: int) -> Episode:
    return Episode(Table("t", columns), np.array(labels), ["a", "b", "c"], shots, "y")


def column(name: str, kind: str, shown: bool, rows: int = 12) -> Column:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, rows).astype(float) if kind == "category" else rng.normal(size=rows)
    if not shown:
        values[:8] = np.nan
    return Column(name, kind, values, ["x", "y"] if kind == "category" else [])


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("shown", [["category"], ["number"], ["category", "number"], []])
def test_columns_that_are_missing_in_every_example_harm_none(name, shown):
    columns = [column(f"{kind}{seen}", kind, seen) for kind in ("category", "number") for seen in {False, kind in shown}]
    chance = PREDICTORS[name](problem(columns, [0, 1, 0, 1, 0, 1, 0, 1, -1, -1, -1, -1], 8))
    assert chance.shape == (4, 3) and np.isfinite(chance).all()
    np.testing.assert_allclose(chance.sum(1), 1, atol=1e-5)
    assert (chance[:, 2] < 0.01).all()


@pytest.mark.parametrize("name", PREDICTORS)
def test_one_class_and_no_example_give_what_is_known(name):
    columns = [column("n", "number", True)]
    alone = PREDICTORS[name](problem(columns, [1] * 8 + [-1] * 4, 8))
    assert (alone.argmax(1) == 1).all()
    np.testing.assert_allclose(PREDICTORS[name](problem(columns, [-1] * 12, 0)), 1 / 3)


@pytest.mark.parametrize("name", [name for name in PREDICTORS if name != "majority"])
def test_a_clear_rule_is_found(name):
    rng = np.random.default_rng(1)
    values = rng.normal(size=96)
    labels = (values > 0).astype(int)
    chance = PREDICTORS[name](Episode(Table("t", [Column("n", "number", values)]), labels, ["a", "b"], 64, "y"))
    assert (chance.argmax(1) == labels[64:]).mean() > 0.85


@pytest.mark.parametrize("name", PREDICTORS)
def test_columns_may_have_any_name(name):
    columns = [Column("weight [kg] <dry>", "number", np.arange(12.0)), Column("[x]", "category", np.arange(12) % 2.0, ["x", "y"])]
    chance = PREDICTORS[name](problem(columns, [0] * 4 + [1] * 4 + [-1] * 4, 8))
    assert chance.shape == (4, 3) and np.isfinite(chance).all()


def test_a_column_that_is_the_same_in_all_examples_does_not_drown_the_others():
    rng = np.random.default_rng(1)
    values, same = rng.normal(size=78), np.full(78, 0.1)
    assert 0 < same[:6].std() < 1e-16  # an error of rounding
    same[6:] = rng.choice([0.1, 0.2], 72)
    labels = (values > 0).astype(int)
    values[:6], labels[:6] = [-2, -1, -0.5, 0.5, 1, 2], [0, 0, 0, 1, 1, 1]
    chance = BASELINES["logistic_regression"](
        Episode(Table("t", [Column("n", "number", values), Column("same", "number", same)]), labels, ["a", "b"], 6, "y")
    )
    assert (chance.argmax(1) == labels[6:]).mean() > 0.85
