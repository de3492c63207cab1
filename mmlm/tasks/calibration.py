"""How probabilities are mended by what the examples of a prompt show. numpy only.

Contextual calibration (arXiv:2102.09690), temperature scaling (arXiv:1706.04599) and prior matching, the last two fitted on predictions of
examples that were each left out of their own prompt.

Axes: n rows   c classes   m content-free prompts
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FEWEST_EXAMPLES = 4
SMALLEST_PROBABILITY = 1e-6
TEMPERATURES, EXPONENTS = (0.05, 20.0), (0.0, 3.0)


def contextual(p_nc: np.ndarray, content_free_mc: np.ndarray) -> np.ndarray:
    """p / p_content_free, renormalised; content_free_mc: one row for each content-free prompt, averaged.

    A prediction equal to the content-free one becomes uniform.
    """
    prior_c = np.asarray(content_free_mc, dtype=np.float64).reshape(-1, np.shape(p_nc)[1]).mean(0).clip(SMALLEST_PROBABILITY)
    ratio_nc = np.asarray(p_nc, dtype=np.float64) / prior_c
    return ratio_nc / ratio_nc.sum(1, keepdims=True)


def _log(p_nc: np.ndarray) -> np.ndarray:
    return np.log(np.asarray(p_nc, dtype=np.float64).clip(1e-12))


def _softmax(z_nc: np.ndarray) -> np.ndarray:
    e_nc = np.exp(z_nc - z_nc.max(1, keepdims=True))
    return e_nc / e_nc.sum(1, keepdims=True)


def _root(slope: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising slope is zero, or the end it does not reach."""
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return (low + high) / 2


def _slope(base_nc: np.ndarray, direction_nc: np.ndarray, truth_n: np.ndarray) -> Callable[[float], float]:
    """Derivative by s of the mean NLL of softmax(base + s direction); it rises, the NLL being convex in s."""
    rows = np.arange(len(truth_n))

    def slope(s: float) -> float:
        p_nc = _softmax(base_nc + s * direction_nc)
        return float(((p_nc * direction_nc).sum(1) - direction_nc[rows, truth_n]).mean())

    return slope


def fit_temperature(p_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """The temperature from 0.05 to 20 with the least NLL on left-out examples; 1 for fewer than four of them."""
    p_nc, truth_n = np.asarray(p_nc, dtype=np.float64), np.asarray(truth_n)
    p_nc, truth_n = p_nc[truth_n >= 0], truth_n[truth_n >= 0]
    if len(truth_n) < FEWEST_EXAMPLES:
        return 1.0
    log_nc = _log(p_nc)
    low, high = TEMPERATURES
    return 1 / _root(_slope(np.zeros_like(log_nc), log_nc, truth_n), 1 / high, 1 / low)


def with_temperature(p_nc: np.ndarray, temperature: float) -> np.ndarray:
    """p ** (1 / temperature), renormalised."""
    return _softmax(_log(p_nc) / temperature)


def class_shares(truth_n: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class among examples, with one example of every class added [classes]."""
    counts_c = np.bincount(np.asarray(truth_n)[np.asarray(truth_n) >= 0], minlength=num_classes) + 1.0
    return counts_c / counts_c.sum()


def fit_prior_exponent(p_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """The exponent gamma from 0 to 3 of p * share ** gamma with the least NLL on left-out examples, whose shares leave them out too.

    0 for fewer than four examples.
    """
    p_nc, truth_n = np.asarray(p_nc, dtype=np.float64), np.asarray(truth_n)
    p_nc, truth_n = p_nc[truth_n >= 0], truth_n[truth_n >= 0]
    n, num_classes = p_nc.shape
    if n < FEWEST_EXAMPLES:
        return 0.0
    counts_nc = np.tile(np.bincount(truth_n, minlength=num_classes) + 1.0, (n, 1))
    counts_nc[np.arange(n), truth_n] -= 1
    return _root(_slope(_log(p_nc), np.log(counts_nc / counts_nc.sum(1, keepdims=True)), truth_n), *EXPONENTS)


def match_prior(p_nc: np.ndarray, shares_c: np.ndarray, exponent: float) -> np.ndarray:
    """p * share ** exponent, renormalised."""
    return _softmax(_log(p_nc) + exponent * np.log(np.asarray(shares_c, dtype=np.float64).clip(1e-12)))
