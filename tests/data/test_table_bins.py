"""Bins of a number: equal sizes, texts, assignment, point estimates."""

from __future__ import annotations

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data.table_bins import assign, bin_labels, bin_means, quantile_bins
from mmlm.data.tables import number_texts


@pytest.mark.parametrize("n_bins", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("rows", [8, 9, 31, 100, 1001])
def test_bins_of_distinct_values_hold_equally_many_rows_to_one(rows, n_bins):
    rng = np.random.default_rng(rows + n_bins)
    for scale in (1e-9, 1.0, 1e12):
        for values in (rng.standard_normal(rows) * scale, rng.lognormal(0, 3, rows) * scale, rng.permutation(rows) * scale - 3 * scale):
            edges = quantile_bins(values, n_bins)
            counts = np.bincount(assign(values, edges), minlength=n_bins)
            assert len(counts) == n_bins and np.abs(counts - rows / n_bins).max() < 1


def test_bins_follow_the_order_of_tests_and_join_where_values_are_equal():
    edges = np.array([1.0, 2.5])
    assert assign(np.array([0.0, 1.0, 2.4, 2.5, 9.0, np.nan]), edges).tolist() == [0, 1, 1, 2, 2, -1]
    assert bin_labels(edges) == ["less than 1", "between 1 and 2.5", "greater than 2.5"]
    assert bin_labels(np.array([3.0])) == ["less than 3", "greater than 3"]
    assert quantile_bins(np.array([5.0] * 50 + [7.0]), 4).tolist() == [6.0]
    assert quantile_bins(np.array([0.0] * 50 + [1.0, 2.0, np.nan]), 2).tolist() == [0.5]
    tied = np.array([0.0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    assert np.bincount(assign(tied, quantile_bins(tied, 4))).tolist() == [4, 6]
    for bad in ([1.0, 1.0, np.nan], []):
        with pytest.raises(DataError, match="fewer than two distinct values"):
            quantile_bins(np.array(bad), 3)


def test_edges_have_few_digits_and_put_rows_where_the_quantiles_do():
    values = np.random.default_rng(0).standard_normal(200) * 12.3 + 4
    edges, exact = quantile_bins(values, 8), np.sort(values)[200 * np.arange(1, 8) // 8]
    assert (assign(values, edges) == assign(values, exact)).all()
    assert max(len(text.lstrip("-")) for text in number_texts(edges)) <= 6
    assert quantile_bins(np.array([-0.3, 0.4]), 2).tolist() == [0.0]


def test_the_point_estimate_is_the_mean_of_the_training_rows_in_the_bin():
    values = np.array([1.0, 2, 3, 4, 10, 20, np.nan])
    edges = quantile_bins(values, 3)
    assert bin_means(values, edges).tolist() == [1.5, 3.5, 15]
    assert bin_means(np.array([1.0]), np.array([5.0, 7.0])).tolist() == [1.0, 6.0, 7.0]
    assert assign(values, edges).tolist() == [0, 0, 1, 1, 2, 2, -1]
