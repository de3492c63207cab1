"""Pictures to learn from, with what is said of them: captions whose phrases carry boxes, expressions that name one thing, questions.

Boxes are in pixels of the picture as it is read, [x1, y1, x2, y2], origin at the top left, y down.
"""

from __future__ import annotations

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
    """A picture and what is known of it. where: file and line that tell of it, for messages. read: gives its pixels, uint8 [y, x, 3]."""

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


def _inside(value: float) -> float:
    return min(max(value, 0.0), 1.0)
