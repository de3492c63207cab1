"""What stands in a drawn scene, and how it is drawn.

A scene is a function of a random generator and a config. Boxes come from geometry, not from pixels. Pictures are drawn three times as large
and averaged down, each thing by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from mmlm.data.config.scenes import ScenesConfig
from mmlm.tokenizers.boxes import Box

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
COLORS = {
    "red": (214, 40, 40), "green": (44, 160, 60), "blue": (40, 80, 210), "yellow": (236, 200, 40),
    "purple": (130, 60, 180), "orange": (244, 130, 30), "cyan": (50, 190, 210), "gray": (128, 128, 128),
}  # fmt: skip
NAMES = tuple(COLORS)
SIZES = ("small", "medium", "large")
FILLS = ("solid", "striped")
STRIPED = 0.3  # share of things
HELD_OUT = frozenset({("red", "circle"), ("blue", "square"), ("green", "triangle"), ("yellow", "star")})  # of the split compose
JITTER_COLOR, JITTER_RADIUS = 14, 0.07
APART = 0.02  # largest IoU of two things, where none may hide another
SEEN = 0.5  # smallest share of the box of a thing that is seen, where one may
SCALE = 3  # of the drawing, against the picture
TRIES = 60
A = 0.33  # half the width of a cross's arms


@dataclass(frozen=True, eq=False)
class Item:
    """One thing. center, radius: in pixels; box: [x1, y1, x2, y2] in pixels. rgb: its own colour."""

    shape: str
    color: str
    size: str
    fill: str
    center: tuple[float, float]
    radius: float
    rgb: tuple[int, int, int]

    @property
    def outline(self) -> np.ndarray:
        """Its corners [n, 2]; of a circle the four outermost points."""
        return OUTLINES[self.shape] * self.radius + self.center

    @cached_property
    def box(self) -> Box:
        """The box around its outline."""
        (x1, y1), (x2, y2) = OUTER[self.shape]
        (x, y), r = self.center, self.radius
        return x + r * x1, y + r * y1, x + r * x2, y + r * y2


def _star() -> list[tuple[float, float]]:
    angles, lengths = np.pi * (np.arange(10) / 5 - 0.5), np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return list(zip(lengths * np.cos(angles), lengths * np.sin(angles), strict=True))


OUTLINES = {
    name: np.array(points, dtype=np.float64)
    for name, points in {
        "circle": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
        "triangle": [(0, -1), (0.95, 0.8), (-0.95, 0.8)],
        "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        "star": _star(),
        "cross": [(-A, -1), (A, -1), (A, -A), (1, -A), (1, A), (A, A), (A, 1), (-A, 1), (-A, A), (-1, A), (-1, -A), (-A, -A)],
    }.items()
}  # for a radius of 1
OUTER = {name: (tuple(points.min(0).tolist()), tuple(points.max(0).tolist())) for name, points in OUTLINES.items()}


def intersection(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return max(wide, 0.0) * max(high, 0.0)


def area(box: Box) -> float:
    """Area of a box."""
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def arranged(rng: np.random.Generator, config: ScenesConfig, width: int, height: int) -> list[Item]:
    """Things that stand apart, or hide little of one another; the later ones are in front."""
    count = int(rng.integers(config.min_things, config.max_things + 1))
    held = sorted(HELD_OUT)[int(rng.integers(len(HELD_OUT)))] if config.split == "compose" else None
    items: list[Item] = []
    for number in range(count):
        kind = _kind(rng, config, width, height, held if number == 0 else None)
        for x, y in rng.random((TRIES, 2)).tolist():
            free = [side - 2 * kind.radius - 2 for side in (width, height)]
            item = replace(kind, center=(kind.radius + 1 + x * free[0], kind.radius + 1 + y * free[1]))
            if _fits(item, items, config.overlap):
                items.append(item)
                break
    if config.overlap:
        return items  # how much of each is seen was reckoned for this order
    order = rng.permutation(len(items))
    return [items[int(place)] for place in order]


def _kind(rng: np.random.Generator, config: ScenesConfig, width: int, height: int, pair: tuple[str, str] | None) -> Item:
    """A thing without a place. pair: its colour and shape; None: any that is not held out."""
    while pair is None:
        color, shape = NAMES[int(rng.integers(len(NAMES)))], SHAPES[int(rng.integers(len(SHAPES)))]
        pair = None if (color, shape) in HELD_OUT else (color, shape)
    color, shape = pair
    size, wider = int(rng.integers(3)), float(rng.uniform(1 - JITTER_RADIUS, 1 + JITTER_RADIUS))
    shift = rng.integers(-JITTER_COLOR, JITTER_COLOR + 1, 3).tolist()
    red, green, blue = (min(max(value + by, 0), 255) for value, by in zip(COLORS[color], shift, strict=True))
    radius = config.radii[size] * min(width, height) * wider
    return Item(shape, color, SIZES[size], FILLS[int(rng.random() < STRIPED)], (0.0, 0.0), radius, (red, green, blue))


def _fits(item: Item, others: list[Item], overlap: bool) -> bool:
    box = item.box
    for other in others:
        shared = intersection(box, other.box)
        if overlap:
            if sum(intersection(other.box, each.box) for each in [*others[others.index(other) + 1 :], item]) > (1 - SEEN) * area(other.box):
                return False
        elif shared > APART * (area(box) + area(other.box) - shared):
            return False
    return True


def picture(rng: np.random.Generator, items: list[Item], width: int, height: int, noise: float) -> np.ndarray:
    """The scene as pixels, uint8 [y, x, 3]."""
    canvas = _background(rng, width, height)
    for item in items:
        (left, top, right, bottom), cover = _cover(item, width, height)
        size = ((right - left) * SCALE, (bottom - top) * SCALE)
        color: np.ndarray = np.array(item.rgb, dtype=np.float32)
        if item.fill == "striped":
            stripes = np.asarray(_stripes(item, size).reduce(SCALE), dtype=np.float32)[:, :, None] / 255
            color = stripes * color + (1 - stripes) * (color + 2 * 255) / 3
        part = canvas[top:bottom, left:right]
        part += cover * (color - part)
    if noise:
        canvas += rng.normal(0, 255 * noise, canvas.shape).astype(np.float32)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def mask(items: list[Item], width: int, height: int) -> np.ndarray:
    """Which pixels things cover at least half of, bool [y, x]."""
    found_yx = np.zeros((height, width), dtype=bool)
    for item in items:
        (left, top, right, bottom), cover = _cover(item, width, height)
        found_yx[top:bottom, left:right] |= cover[:, :, 0] >= 0.5
    return found_yx


def _cover(item: Item, width: int, height: int) -> tuple[tuple[int, int, int, int], np.ndarray]:
    """(left, top, right, bottom of the part of the picture that a thing is drawn into, its share of each pixel there [y, x, 1])."""
    x1, y1, x2, y2 = item.box
    left, top = max(int(x1), 0), max(int(y1), 0)
    right, bottom = min(int(x2) + 2, width), min(int(y2) + 2, height)
    drawn = Image.new("L", ((right - left) * SCALE, (bottom - top) * SCALE))
    _fill(ImageDraw.Draw(drawn), item, left, top)
    return (left, top, right, bottom), np.asarray(drawn.reduce(SCALE), dtype=np.float32)[:, :, None] / 255


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A light tone, a gradient, or slow clouds, float32 [y, x, 3]."""
    tone, tint, kind = float(rng.integers(215, 250)), rng.integers(-6, 7, 3), int(rng.integers(3))
    plane = np.full((height, width), tone, dtype=np.float32)
    if kind == 1:
        ramp = np.linspace(-20, 0, max(width, height), dtype=np.float32)
        plane += ramp[:width] if rng.random() < 0.5 else ramp[:height, None]
    elif kind == 2:
        clouds = rng.normal(0, 6, (8, 8)).astype(np.float32)
        plane += np.asarray(Image.fromarray(clouds).resize((width, height), Image.Resampling.BILINEAR))
    return np.clip(plane[:, :, None] + tint.astype(np.float32), 0, 255)


def _fill(draw: ImageDraw.ImageDraw, item: Item, left: int, top: int) -> None:
    if item.shape == "circle":
        x1, y1, x2, y2 = item.box
        draw.ellipse([(x1 - left) * SCALE, (y1 - top) * SCALE, (x2 - left) * SCALE, (y2 - top) * SCALE], fill=255)
    else:
        draw.polygon(((item.outline - (left, top)) * SCALE).ravel().tolist(), fill=255)


def _stripes(item: Item, size: tuple[int, int]) -> Image.Image:
    stripes, step = Image.new("L", size), max(3, round(item.radius * SCALE / 3))
    draw = ImageDraw.Draw(stripes)
    for x in range(0, size[0] + size[1], step):
        draw.line([(x, 0), (x - size[1], size[1])], fill=255, width=max(1, step // 2))
    return stripes
