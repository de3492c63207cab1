"""Footprints of boxes in space: values worked out by hand, and those of points thrown at random."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmlm.analysis.footprints import area, bev_iou, clipped, corners, mean_bev_iou


def box(x, y, length, width, heading=0.0):
    return (x, y, 0.0, length, width, 1.0, heading)


ROOT = math.sqrt(2)


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (box(0, 0, 4, 2), box(0, 0, 4, 2), 1.0), (box(0, 0, 4, 2), box(0, 0, 4, 2, math.pi), 1.0), (box(0, 0, 4, 2), box(4, 0, 4, 2), 0.0),
        (box(0, 0, 4, 2), box(2, 0, 4, 2), 4 / 12), (box(0, 0, 4, 2), box(0, 0, 4, 2, math.pi / 2), 4 / 12),
        (box(0, 0, 4, 2), box(9, 9, 1, 1), 0.0), (box(0, 0, 4, 4), box(0, 0, 2, 2, 0.3), 4 / 16),
        (box(0, 0, 2, 2), box(0, 0, 2, 2, math.pi / 4), (8 * ROOT - 8) / (8 - (8 * ROOT - 8))),  # a regular octagon
        (box(0, 0, 2, 2), box(1, 0, ROOT, ROOT, math.pi / 4), 1 / 5),  # half a diamond, of area 2, in a square
        (box(0, 0, 0, 0), box(0, 0, 0, 0), 0.0),
    ],
)  # fmt: skip
def test_shares_are_those_worked_out_by_hand(one, other, wanted) -> None:
    assert bev_iou(one, other) == pytest.approx(wanted, abs=1e-12) and bev_iou(other, one) == pytest.approx(wanted, abs=1e-12)


def test_shares_are_those_of_points_thrown_at_random() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-4, 4, (100_000, 2))

    def inside(one):
        x, y, _, length, width, _, heading = one
        moved = points - (x, y)
        along = moved @ (math.cos(heading), math.sin(heading))
        across = moved @ (-math.sin(heading), math.cos(heading))
        return (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)

    for _ in range(20):
        one, other = (box(*rng.uniform(-1, 1, 2), *rng.uniform(0.5, 4, 2), rng.uniform(-4, 4)) for _ in range(2))
        a, b = inside(one), inside(other)
        assert bev_iou(one, other) == pytest.approx((a & b).sum() / max((a | b).sum(), 1), abs=0.02)


def test_corners_turn_to_the_left_and_what_lies_apart_is_cut_away() -> None:
    turned = box(1, 2, 4, 2, math.pi / 2)
    assert np.allclose(corners(turned), [(0, 4), (0, 0), (2, 0), (2, 4)]) and area(corners(turned)) == pytest.approx(8)
    assert clipped(corners(turned), corners(box(9, 9, 1, 1))) == []
    assert mean_bev_iou([turned, None], [turned, turned]) == pytest.approx(0.5) and mean_bev_iou([], []) == 0
