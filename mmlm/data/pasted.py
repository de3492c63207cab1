"""Cut-outs on a plain ground: where they stand, their boxes, and the picture.

A box is exact: it encloses the pixels of a thing, as it is drawn, that are covered by half or more.

Axes: y, x pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from mmlm.data.scenes.objects import APART, area, intersection
from mmlm.tokenizers.boxes import Box

TRIES = 60
HALF = 127  # of alpha
COVERED = [0] * (HALF + 1) + [255] * (255 - HALF)  # by alpha


@dataclass(frozen=True, eq=False)
class CutOut:
    """A thing without a place. rgba: its pixels, colours times alpha (RGBa), no clear border."""

    rgba: Image.Image
    article: str
    name: str
    kind_article: str
    kind: str


@dataclass(frozen=True, eq=False)
class Pasted:
    """A thing at a place. patch: its pixels as they are drawn, RGBa. left, top: where its first pixel lies."""

    cut_out: CutOut
    patch: Image.Image
    left: int
    top: int

    @property
    def name(self) -> str:
        """What it is called by its caption."""
        return self.cut_out.name

    @property
    def kind(self) -> str:
        """What things of its folder are called."""
        return self.cut_out.kind

    @cached_property
    def box(self) -> Box:
        """Around the pixels that are covered by half or more; around all of it where none is."""
        inner = self.patch.getchannel("a").point(COVERED).getbbox() or (0, 0, *self.patch.size)
        x1, y1, x2, y2 = inner
        return float(self.left + x1), float(self.top + y1), float(self.left + x2), float(self.top + y2)

    @property
    def center(self) -> tuple[float, float]:
        """The middle of its box."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def radius(self) -> float:
        """Half the longer side of its box."""
        x1, y1, x2, y2 = self.box
        return max(x2 - x1, y2 - y1) / 2


def arranged(rng: np.random.Generator, cut_outs: Sequence[CutOut], sizes: Sequence[float], width: int, height: int) -> list[Pasted]:
    """Things that stand apart. One that finds no room gets smaller, down to the smallest size, and is left out where that does not help."""
    items: list[Pasted] = []
    side = min(width, height)
    for cut_out in cut_outs:
        longest = float(rng.uniform(sizes[0], sizes[1])) * side
        for x, y in rng.random((TRIES, 2)).tolist():
            share = longest / max(cut_out.rgba.size)
            wide, high = (max(1, round(each * share)) for each in cut_out.rgba.size)
            left, top = int(x * (width - wide + 1)), int(y * (height - high + 1))
            box = (float(left), float(top), float(left + wide), float(top + high))
            if all(_apart(box, other.box) for other in items):
                items.append(Pasted(cut_out, cut_out.rgba.resize((wide, high), Image.Resampling.BOX), left, top))
                break
            longest = max(longest * 0.98, sizes[0] * side)
    return items


def _apart(box: Box, other: Box) -> bool:
    shared = intersection(box, other)
    return shared <= APART * (area(box) + area(other) - shared)


def pasted(seed: Sequence[int], items: Sequence[Pasted], width: int, height: int) -> np.ndarray:
    """The picture, uint8 [y, x, 3]. seed: of its ground."""
    canvas = ground(np.random.default_rng(seed), width, height)
    for item in items:
        rgba: np.ndarray = np.asarray(item.patch, dtype=np.float32)
        high, wide = rgba.shape[:2]
        part = canvas[item.top : item.top + high, item.left : item.left + wide]
        part *= 1 - rgba[:, :, 3:] / 255
        part += rgba[:, :, :3]
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def ground(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """One colour, two that flow into one another, or noise of any grain around one; float32 [y, x, 3]."""
    one, other = rng.integers(60, 256, (2, 3)).astype(np.float32)
    plane = np.broadcast_to(one, (height, width, 3)).copy()
    kind = int(rng.integers(3))
    if kind == 1:
        angle = float(rng.uniform(0, 2 * np.pi))
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        ramp = x * np.cos(angle) + y * np.sin(angle)
        ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1.0)
        plane += ramp[:, :, None].astype(np.float32) * (other - one)
    elif kind == 2:
        grain = int(rng.integers(2, max(3, min(width, height))))
        noise = rng.normal(0, float(rng.uniform(4, 16)), (grain, grain)).astype(np.float32)
        plane += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))[:, :, None]
    return plane
