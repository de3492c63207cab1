"""Calibration errors against scikit-learn and by hand; what mending recovers."""

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.evaluation import metrics
from mmlm.evaluation import reliability as r
from mmlm.tasks import calibration as c


def sample(n=4000, classes=3, temperature=1.0, seed=0):
    """Calibrated probabilities sharpened by 1 / temperature, and classes drawn from the calibrated ones."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), n)
    truth = np.array([rng.choice(classes, p=row) for row in p])
    return c.with_temperature(p, temperature), truth


def test_brier_auroc_and_classification_scores_equal_those_of_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    p, truth = sample(500)
    binary, positive = np.round(p[:, 0], 1), truth == 0  # rounded: many ties
    assert metrics.brier(np.c_[p[:, 0], 1 - p[:, 0]], (~positive).astype(int)) / 2 == pytest.approx(
        sk.brier_score_loss(positive, p[:, 0]), abs=1e-12
    )
    assert r.auroc(binary, positive) == pytest.approx(sk.roc_auc_score(positive, binary), abs=1e-12)
    guess = p.argmax(1)
    assert metrics.macro_f1(p, truth) == pytest.approx(sk.f1_score(truth, guess, average="macro"), abs=1e-12)
    assert metrics.balanced_accuracy(p, truth) == pytest.approx(sk.balanced_accuracy_score(truth, guess), abs=1e-12)
    assert metrics.nll(p, truth) == pytest.approx(sk.log_loss(truth, p), abs=1e-9)


def test_calibration_error_by_hand_in_bins_of_equal_width_and_of_equal_mass():
    confidence, right = np.array([0.1, 0.2, 0.3, 0.9]), np.array([0, 1, 0, 1])
    width = r.reliability(confidence, right, bins=2, by="width")
    assert width.count.tolist() == [3, 1] and width.error == pytest.approx((3 * (1 / 3 - 0.2) + 0.1) / 4)
    mass = r.reliability(confidence, right, bins=2, by="mass")
    assert mass.count.tolist() == [2, 2] and mass.error == pytest.approx((0.35 + 0.1) / 2)
    tied = r.reliability(np.full(30, 0.5), np.arange(30) % 2, bins=15, by="mass")
    assert tied.count.tolist() == [30] and tied.error == 0


def test_chance_alone_raises_the_error_of_calibrated_predictions_but_not_the_debiased_one():
    plain, debiased = [], []
    for seed in range(20):
        p, truth = sample(128, seed=seed)
        plain.append(r.ece(p, truth))
        debiased.append(r.debiased_ece(p, truth))
    assert np.mean(plain) > 0.08 and np.mean(debiased) < 0.6 * np.mean(plain)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_fitted_temperature_undoes_the_one_applied(temperature):
    p, truth = sample(temperature=temperature)
    fitted = c.fit_temperature(p, truth)
    assert fitted == pytest.approx(1 / temperature, rel=0.08)
    assert r.ece(c.with_temperature(p, fitted), truth) < 0.03


def test_the_fitted_temperature_has_the_least_loss_of_a_grid():
    p, truth = sample(40, temperature=0.4)
    best = metrics.nll(c.with_temperature(p, c.fit_temperature(p, truth)), truth)
    assert all(best <= metrics.nll(c.with_temperature(p, t), truth) + 1e-9 for t in np.geomspace(0.05, 20, 200))
    assert c.fit_temperature(p[:3], truth[:3]) == 1.0


def test_prior_matching_helps_where_the_model_ignores_class_frequency_and_not_where_classes_are_balanced():
    flat = np.full((40, 2), 0.5)
    skewed, even = np.r_[np.zeros(34, int), np.ones(6, int)], np.arange(40) % 2
    gamma = c.fit_prior_exponent(flat, skewed)
    assert 0.5 < gamma <= 3 and c.fit_prior_exponent(flat, even) == pytest.approx(0, abs=1e-6)
    mended = c.match_prior(flat, c.class_shares(skewed, 2), gamma)
    assert metrics.nll(mended, skewed) < metrics.nll(flat, skewed) - 0.15
    assert c.fit_prior_exponent(flat[:3], skewed[:3]) == 0


def test_a_prediction_that_says_what_an_empty_prompt_says_becomes_uniform():
    free = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    np.testing.assert_allclose(c.contextual(free.mean(0)[None], free), [[1 / 3] * 3], atol=1e-12)
    np.testing.assert_allclose(c.contextual(np.array([[0.5, 0.5]]), np.array([0.9, 0.1])), [[0.1, 0.9]], atol=1e-12)


def test_one_kind_of_row_and_impossible_confidences_are_refused():
    with pytest.raises(DataError, match="2 positive and 0 negative"):
        r.auroc(np.array([0.1, 0.2]), np.array([True, True]))
    with pytest.raises(DataError, match="within 0 and 1"):
        r.reliability(np.array([1.5]), np.array([1]))
