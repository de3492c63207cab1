"""Six views of what lies around a sensor, 60 degrees each: x points ahead, y to the left; azimuths are counted from x to the left."""

from __future__ import annotations

import math

VIEWS = ("front", "front left", "back left", "back", "back right", "front right")
WIDTH = 2 * math.pi / len(VIEWS)  # of a view, in radians


def view_of(x: float, y: float) -> int:
    """The number of the view that a place lies in."""
    return int(((math.atan2(y, x) + WIDTH / 2) % (2 * math.pi)) / WIDTH) % len(VIEWS)


def from_border(x: float, y: float) -> float:
    """Radians between a place and the nearest border of its view."""
    inside = (math.atan2(y, x) + WIDTH / 2) % WIDTH
    return min(inside, WIDTH - inside)
