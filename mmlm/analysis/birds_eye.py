"""Sweeps of LiDAR seen from above, with boxes in the colours of their words.

Ahead is up and left is left; the sensor is the cross in the middle. The bar at the lower left is as long as it says.

Axes: n points   y, x pixels
"""

from __future__ import annotations

import math

import numpy as np

from mmlm.analysis.drawing import color_of
from mmlm.analysis.footprints import corners
from mmlm.tokenizers.boxes import Grounded

SIDE = 512  # pixels
GRAY = (150, 150, 150)
EDGE = 12  # pixels from the bar of the scale to the sides


def seen_from_above(points_n4: np.ndarray, said: Grounded, true: Grounded | None = None, *, reach: float = 25.6) -> np.ndarray:
    """A picture, uint8 [y, x, 3], of the points within `reach` metres to each side, the higher the darker; boxes of a text with a line
    from the middle to where they head, those of `true` thinner and gray."""
    from PIL import Image, ImageDraw

    pixels_yxc = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    order = np.argsort(points_n4[:, 2])  # of points in one pixel the highest is drawn last
    points = points_n4[order]
    column_n, row_n = (np.floor((1 - points[:, axis] / reach) * SIDE / 2).astype(int) for axis in (1, 0))
    inside = (column_n >= 0) & (column_n < SIDE) & (row_n >= 0) & (row_n < SIDE)
    low, high = (float(value) for value in np.quantile(points[:, 2], (0.05, 0.99))) if len(points) else (0.0, 1.0)
    shade_n = np.clip((points[:, 2] - low) / max(high - low, 1e-6), 0, 1)
    pixels_yxc[row_n[inside], column_n[inside]] = (210 - 210 * shade_n[inside, None]).astype(np.uint8)
    picture = Image.fromarray(pixels_yxc)
    draw = ImageDraw.Draw(picture)

    def at(x: float, y: float) -> tuple[float, float]:
        return (1 - y / reach) * SIDE / 2, (1 - x / reach) * SIDE / 2

    middle = SIDE / 2
    draw.line([(middle - 5, middle), (middle + 5, middle)], fill=(0, 0, 0))
    draw.line([(middle, middle - 5), (middle, middle + 5)], fill=(0, 0, 0))
    for text, is_true in ((true, True), (said, False)):
        for number, phrase in enumerate(text.phrases if text is not None else ()):
            for box in phrase.boxes:
                ring = corners(box)
                color, width = (GRAY, 1) if is_true else (color_of(number), 2)
                draw.line([at(*corner) for corner in (*ring, ring[0])], fill=color, width=width)
                front = (ring[0][0] + ring[3][0]) / 2, (ring[0][1] + ring[3][1]) / 2
                draw.line([at(box[0], box[1]), at(*front)], fill=color, width=width)
    bar = scale_metres(reach)
    draw.line([(EDGE, SIDE - EDGE), (EDGE + bar / reach * SIDE / 2, SIDE - EDGE)], fill=(0, 0, 0), width=2)
    draw.text((EDGE, SIDE - EDGE - 4), f"{bar:g} m", fill=(0, 0, 0), anchor="lb")
    return np.asarray(picture)


def scale_metres(reach: float) -> float:
    """The largest round number of metres that is at most a third of the reach."""
    power = 10.0 ** math.floor(math.log10(reach / 3))
    return power * max(factor for factor in (1, 2, 5) if power * factor <= reach / 3 * (1 + 1e-9))
