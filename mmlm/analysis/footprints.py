"""How much boxes in space share, seen from above: intersection over union of turned rectangles, by clipping polygons.

A box is [x, y, z, length, width, height, heading], as mmlm.tokenizers.boxes3d has it.

Source: clipping of Sutherland & Hodgman 1974.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from mmlm.tokenizers.boxes import Box

Corner: TypeAlias = tuple[float, float]


def corners(box: Box) -> list[Corner]:
    """The four corners of a box seen from above, turning to the left from the front left one."""
    x, y, _, length, width, _, heading = box
    cos, sin = math.cos(heading), math.sin(heading)
    ends = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
    return [(x + a * length * cos - b * width * sin, y + a * length * sin + b * width * cos) for a, b in ends]


def clipped(polygon: Sequence[Corner], window: Sequence[Corner]) -> list[Corner]:
    """What of a polygon lies within a convex one; the corners of both turn to the left."""
    found = list(polygon)
    for at, (x1, y1) in enumerate(window):
        x2, y2 = window[(at + 1) % len(window)]
        sides = [(x2 - x1) * (y - y1) - (y2 - y1) * (x - x1) for x, y in found]  # above 0: to the left of this edge, which is inside
        kept: list[Corner] = []
        for place, side in enumerate(sides):
            before = sides[place - 1]
            (u1, v1), (u2, v2) = found[place - 1], found[place]
            if (side >= 0) != (before >= 0):
                share = before / (before - side)
                kept.append((u1 + share * (u2 - u1), v1 + share * (v2 - v1)))
            if side >= 0:
                kept.append((u2, v2))
        found = kept
        if not found:
            return []
    return found


def area(polygon: Sequence[Corner]) -> float:
    """Area of a polygon whose corners turn to the left."""
    pairs = zip(polygon, [*polygon[1:], *polygon[:1]], strict=True)
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs) / 2


def bev_iou(one: Box, other: Box) -> float:
    """Intersection over union of the footprints of two boxes; 0 where both are empty."""
    reach = (math.hypot(one[3], one[4]) + math.hypot(other[3], other[4])) / 2
    if math.hypot(one[0] - other[0], one[1] - other[1]) >= reach:
        return 0.0
    shared = max(area(clipped(corners(one), corners(other))), 0.0)
    whole = one[3] * one[4] + other[3] * other[4] - shared
    return min(shared / whole, 1.0) if whole > 0 else 0.0


def mean_bev_iou(found: Sequence[Box | None], true: Sequence[Box]) -> float:
    """Mean over pairs; no box counts as 0."""
    values = [0.0 if box is None else bev_iou(box, wanted) for box, wanted in zip(found, true, strict=True)]
    return float(np.mean(values)) if values else 0.0
