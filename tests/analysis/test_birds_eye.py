"""Sweeps from above: points and boxes lie where they belong, ahead up and left to the left."""

from __future__ import annotations

import math

import numpy as np

from mmlm.analysis.birds_eye import EDGE, GRAY, SIDE, scale_metres, seen_from_above
from mmlm.analysis.drawing import color_of
from mmlm.tokenizers.boxes import Grounded, Phrase


def places(pixels_yxc: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns [n, 2] of a colour."""
    return np.argwhere((pixels_yxc == color).all(-1))


def test_points_and_boxes_lie_where_they_belong() -> None:
    points = np.array([[10.0, 5.0, -1.0, 0.5], [10.0, 5.0, 2.0, 0.5], [-20.0, -20.0, -1.8, 0.5], [90.0, 0.0, 0.0, 0.5]], dtype=np.float32)
    empty = seen_from_above(points, Grounded(""), reach=32.0)
    scale = SIDE / 64
    assert empty.shape == (SIDE, SIDE, 3)
    high = empty[int((32 - 10) * scale), int((32 - 5) * scale)]
    low = empty[int((32 + 20) * scale), int((32 + 20) * scale)]
    assert high.max() < 60 < low.min() < 255, "the highest point of a pixel is drawn, and low ones are lighter"
    box = (16.0, 8.0, -1.0, 8.0, 2.0, 1.5, math.pi / 2)  # ahead on the left; its length lies across
    said, true = Grounded("car", (Phrase(0, 3, (box,)),)), Grounded("car", (Phrase(0, 3, ((-16.0, -8.0, -1.0, 4.0, 2.0, 1.5, 0.0),)),))
    drawn = seen_from_above(points, said, true, reach=32.0)
    mine, gray = places(drawn, color_of(0)), places(drawn, GRAY)
    rows, columns = (mine.max(0) - mine.min(0)).tolist()
    assert abs(mine[:, 0].mean() - (32 - 16) * scale) < 3 and abs((mine[:, 1].min() + mine[:, 1].max()) / 2 - (32 - 8) * scale) < 3
    assert abs(columns - 8 * scale) <= 3 and abs(rows - 2 * scale) <= 3
    assert gray[:, 0].min() > SIDE / 2 and gray[:, 1].min() > SIDE / 2


def test_an_empty_sweep_is_drawn() -> None:
    assert seen_from_above(np.zeros((0, 4), dtype=np.float32), Grounded("")).shape == (SIDE, SIDE, 3)


def test_a_bar_tells_how_large_it_is() -> None:
    assert [scale_metres(reach) for reach in (25.6, 51.2, 32.0, 3.0, 60.0, 150.0)] == [5, 10, 10, 1, 20, 50]
    for reach in (25.6, 51.2):
        row = seen_from_above(np.zeros((0, 4), dtype=np.float32), Grounded(""), reach=reach)[SIDE - EDGE]
        assert abs((row == 0).all(-1).sum() - scale_metres(reach) / reach * SIDE / 2) <= 2
