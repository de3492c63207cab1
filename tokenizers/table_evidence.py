"""What each single column says about the class of a row: channels of a cell, measured on the example rows alone.

For a cell of row i and an example row j of the same column, w_ij = exp(-(rank_i - rank_j)^2 / (2 bandwidth^2)) for numbers, whose ranks
go from 0 to 1, and [equal] for categories; missing cells are near each other only. An example row never counts for itself. With
share_k = (sum_j w_ij [y_j = k] + prior_k) / (sum_j w_ij + 1) the channels are, for each bandwidth: log(share_k / prior_k) for each class,
that of the row's own class (examples alone), its mean over the examples (the same in the whole column), and log(1 + sum_j w_ij).
Source: leave-one-out target statistics as in CatBoost, arXiv:1706.09516, section 3.2, with a kernel in place of equality for numbers.

Axes: r rows   s example rows, the first of them   c columns   k classes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmlm.tokenizers.table_cells import AnyColumn

MAX_WEIGHTS = 1 << 22  # weights w_ij computed at once


def num_evidence(bandwidths: Sequence[float], num_classes: int) -> int:
    """Channels of a cell."""
    return len(bandwidths) * (num_classes + 3)


def evidence(columns: Sequence[AnyColumn], labels_s: np.ndarray, num_classes: int, most: int, bandwidths: Sequence[float]) -> np.ndarray:
    """float32 [r, c, channels] for classes 0 to num_classes - 1, with room for `most` classes. labels_s: classes of the example rows."""
    rows, shots = len(columns[0].values), len(labels_s)
    out_rcf = np.zeros((rows, len(columns), num_evidence(bandwidths, most)), dtype=np.float32)
    if not shots or not bandwidths:
        return out_rcf
    hot_sk = np.eye(num_classes, dtype=np.float32)[labels_s]
    count_k = hot_sk.sum(0)
    prior_rk = np.tile(count_k + 0.5, (rows, 1))
    prior_rk[:shots] -= hot_sk
    prior_rk /= prior_rk.sum(1, keepdims=True)
    step = max(1, MAX_WEIGHTS // (rows * shots))
    for start in range(0, len(columns), step):
        some = columns[start : start + step]
        place_cr = np.stack([_places(column, shots) for column in some])
        missing_cr = np.isnan(place_cr)
        place_cr = np.where(missing_cr, 0, place_cr).astype(np.float32)
        apart_crs = np.abs(place_cr[:, :, None] - place_cr[:, None, :shots])
        comparable_crs = missing_cr[:, :, None] == missing_cr[:, None, :shots]
        comparable_crs[:, np.arange(shots), np.arange(shots)] = False
        is_number_c = np.array([column.kind != "category" for column in some])[:, None, None]
        for at, bandwidth in enumerate(bandwidths):
            near_crs = np.exp(-0.5 * np.square(apart_crs / bandwidth))
            weight_crs = np.where(is_number_c, near_crs, apart_crs == 0) * comparable_crs
            mass_cr1 = weight_crs.sum(2, keepdims=True)
            ratio_crk = np.log((weight_crs @ hot_sk + prior_rk) / ((mass_cr1 + 1) * prior_rk))
            first = at * (most + 3)
            mine = out_rcf[:, start : start + step, first : first + most + 3]
            own_cs = np.take_along_axis(ratio_crk[:, :shots], labels_s[None, :, None], axis=2)[..., 0]
            mine[:, :, :num_classes] = ratio_crk.swapaxes(0, 1)
            mine[:shots, :, most] = own_cs.T
            mine[:, :, most + 1] = own_cs.mean(1)
            mine[:, :, most + 2] = np.log1p(mass_cr1[..., 0].T) / 3
    return out_rcf


def _places(column: AnyColumn, shots: int) -> np.ndarray:
    """Codes of a category; of numbers the ranks among the example rows, from 0 to 1. NaN where missing."""
    values = np.asarray(column.values, dtype=np.float64)
    if column.kind == "category":
        return values
    known = np.sort(values[:shots][~np.isnan(values[:shots])])
    if not known.size:
        return np.where(np.isnan(values), np.nan, 0.5)
    rank = (np.searchsorted(known, values, side="left") + np.searchsorted(known, values, side="right")) / (2 * known.size)
    return np.where(np.isnan(values), np.nan, rank)
