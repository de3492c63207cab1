"""Every metric against figures worked out by hand, and intervals over data sets."""

import math

import numpy as np
import pytest

from mmlm.base.errors import DataError, RecipeError
from mmlm.evaluation.metrics import METRICS, bootstrap, metric, paired_difference, win_rate

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]])
TRUTH = np.array([0, 1, 1, -1])  # hit, hit, miss, outside the label set
LONG = (np.array([1.0, 2.0, 5.0]), np.array([1.0, 4.0, 4.0]))

BY_HAND = {
    "accuracy": ((P, TRUTH), 2 / 4),
    "balanced_accuracy": ((P, TRUTH), (1 + 1 / 2 + 0) / 3),
    "macro_f1": ((P, TRUTH), (2 / 3 + 2 / 3 + 0 + 0) / 4),  # classes 0, 1, 2 and the one outside
    "nll": ((P, TRUTH), -(math.log(0.7) + math.log(0.6) + math.log(0.4) + math.log(1e-6)) / 4),
    "brier": ((P, TRUTH), (0.14 + 0.26 + 0.62 + 1.44) / 4),
    "mae": (LONG, 1.0),
    "rmse": (LONG, math.sqrt(5 / 3)),
    "r2": (LONG, 1 - 5 / 6),
    "spearman": (LONG, 1.5 / math.sqrt(2 * 1.5)),  # ranks 1, 2, 3 and 1, 2.5, 2.5
    "crps": ((np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0.0, 2.0]), np.array([1.0, 3.0])), (0.5 + 3.0) / 2),
    "ece": ((P[:3], TRUTH[:3]), (0.3 + 0.4 + 0.5) / 3),
    "debiased_ece": ((np.tile([0.8, 0.2], (4, 1)), np.array([0, 0, 1, 1])), math.sqrt(0.09 - 0.25 / 3)),
    "classwise_ece": ((np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 0.4),
}


def test_every_registered_metric_has_a_figure_worked_out_by_hand():
    metric("ece")
    assert set(BY_HAND) == set(METRICS) and len(METRICS) == 13


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_a_metric_equals_the_figure_worked_out_by_hand(name):
    arguments, expected = BY_HAND[name]
    assert metric(name).compute(*arguments) == pytest.approx(expected, abs=1e-12)


def test_an_unknown_metric_is_answered_with_the_nearest_name():
    with pytest.raises(RecipeError, match="unknown metric 'acuracy'. Did you mean 'accuracy'"):
        metric("acuracy")


@pytest.mark.parametrize(
    ("p", "truth", "told"),
    [
        ([[0.5, 0.6]], [0], "row 0: probabilities must be finite, not negative and sum to 1"),
        ([[0.5, 0.5], [math.nan, 1.0]], [0, 0], "row 1"),
        ([[0.5, 0.5]], [2], "within -1 and 1"),
        ([[0.5, 0.5]], [0, 1], "a class per row"),
    ],
)
def test_what_is_no_probability_is_refused(p, truth, told):
    with pytest.raises(DataError, match=told):
        metric("nll").compute(np.array(p), np.array(truth))


def test_crps_of_a_point_is_its_absolute_error():
    rng = np.random.default_rng(0)
    values, truth, at = np.sort(rng.normal(size=5)), rng.normal(size=50), rng.integers(5, size=50)
    assert metric("crps").compute(np.eye(5)[at], values, truth) == pytest.approx(metric("mae").compute(values[at], truth), abs=1e-12)


def test_crps_equals_the_integral_over_the_distribution_function():
    p, values, y = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.5, 2.0]), 0.9
    grid = np.linspace(-3, 4, 700_001)
    below = (p[:, None] * (values[:, None] <= grid)).sum(0)
    integral = (((below - (y <= grid)) ** 2)[:-1] * np.diff(grid)).sum()
    assert metric("crps").compute(p[None], values, np.array([y])) == pytest.approx(integral, abs=1e-4)


def test_the_interval_holds_the_true_mean_in_about_95_of_100_samples():
    rng = np.random.default_rng(1)
    intervals = [bootstrap(rng.normal(size=60), seed=i, resamples=1000) for i in range(200)]
    assert 0.90 <= np.mean([low <= 0 <= high for _, low, high in intervals]) <= 0.99
    assert bootstrap([0.1, 0.5, 0.9]) == bootstrap([0.1, 0.5, 0.9]) and bootstrap([0.3]) == (0.3, 0.3, 0.3)


def test_pairing_removes_what_the_data_sets_have_in_common():
    base = np.linspace(0, 1, 40)
    mean, low, high = paired_difference(base + 0.01, base)
    assert mean == pytest.approx(0.01) and high - low < 1e-12 < bootstrap(base).high - bootstrap(base).low
    with pytest.raises(DataError, match="same data sets"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="finite"):
        bootstrap([])


def test_a_tie_is_half_a_win():
    assert win_rate([1, 2, 3, 4], [0, 2, 4, 5]) == 0.375
    assert win_rate([1, 2, 3, 4], [0, 2, 4, 5], is_better_high=False) == 0.625
