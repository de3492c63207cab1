"""Pictures to learn from, with what is said of them: captions whose phrases carry boxes, expressions that name one thing, questions.

Boxes are in pixels of the picture as it is read, [x1, y1, x2, y2], origin at the top left, y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmlm.tokenizers.boxes import Box, Grounded, Phrase


@dataclass(frozen=True)
class Thing:
    """Something in a picture. label: what it is called."""

    label: str
    box: Box


@dataclass(frozen=True)
class Expression:
    """Words that fit one thing of a picture and no other."""

    text: str
    box: Box


@dataclass(frozen=True)
class Question:
    """A question and its answer. kind: what sort of question it is, for tables of results."""

    text: str
    answer: str
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what is known of it. where: file and line that tell of it, for messages. read: gives its pixels, uint8 [y, x, 3].
    is_listed: its things have been looked for, so that without any there is none."""

    id: str
    where: str
    width: int
    height: int
    read: Callable[[], np.ndarray]
    captions: tuple[Grounded, ...] = ()
    expressions: tuple[Expression, ...] = ()
    questions: tuple[Question, ...] = ()
    things: tuple[Thing, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    is_listed: bool = False

    def share(self, box: Box) -> Box:
        """A box as shares of the width and height, within the picture."""
        x1, y1, x2, y2 = box
        wide, high = float(self.width), float(self.height)
        return _inside(x1 / wide), _inside(y1 / high), _inside(x2 / wide), _inside(y2 / high)

    def pixels(self, share: Box) -> Box:
        """A box in pixels for one in shares."""
        x1, y1, x2, y2 = share
        return x1 * self.width, y1 * self.height, x2 * self.width, y2 * self.height


def every_thing(things: Sequence[Thing]) -> Grounded:
    """A text that names each thing by itself, with its box: from the top down, of equal height from the left."""
    order = sorted(things, key=lambda thing: (thing.box[1], thing.box[0]))
    text, phrases = "", []
    for thing in order:
        text += " " if text else ""
        phrases.append(Phrase(len(text), len(text) + len(thing.label), (thing.box,)))
        text += thing.label
    return Grounded(text, tuple(phrases))


def random_part(height: int, width: int, least_area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of a picture, of the same aspect ratio and of at least this share of its area."""
    share = math.sqrt(rng.uniform(least_area, 1.0))
    down, across = (max(1, round(size * share)) for size in (height, width))
    top, left = (int(rng.integers(have - want + 1)) for have, want in ((height, down), (width, across)))
    return left, top, left + across, top + down


def seen_in(things: Sequence[Thing], part: Box) -> list[Thing]:
    """Those of which at least half lies in a part of the picture, with what lies in it as shares of the part. All boxes are in shares."""
    left, top, right, bottom = part
    wide, high = right - left, bottom - top
    found = []
    for thing in things:
        x1, y1, x2, y2 = thing.box
        box = _inside((x1 - left) / wide), _inside((y1 - top) / high), _inside((x2 - left) / wide), _inside((y2 - top) / high)
        seen = (box[2] - box[0]) * wide * (box[3] - box[1]) * high
        if seen > 0 and seen >= (x2 - x1) * (y2 - y1) / 2:
            found.append(Thing(thing.label, box))
    return found


def _inside(value: float) -> float:
    return min(max(value, 0.0), 1.0)
