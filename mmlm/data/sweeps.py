"""Sweeps of LiDAR to learn from, with the boxes of what is in them: points [n, 4], x ahead, y left, z up in metres, and intensity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from mmlm.data.pictures import Expression, Question
from mmlm.encoders.views import view_of
from mmlm.tokenizers.boxes import Box, Grounded

Text = TypeVar("Text")


@dataclass(frozen=True)
class Cuboid:
    """Something in a sweep. label: what it is called.   box: [x, y, z, length, width, height, heading], see mmlm.tokenizers.boxes3d."""

    label: str
    box: Box

    @property
    def view(self) -> int:
        """The view that its middle lies in."""
        return view_of(self.box[0], self.box[1])

    @property
    def distance(self) -> float:
        """Metres along the ground from the sensor to its middle."""
        return float(np.hypot(self.box[0], self.box[1]))


@dataclass(frozen=True)
class Viewed(Generic[Text]):
    """What is said or asked of one view, which the words do not name, or of the whole scene (None)."""

    view: int | None
    said: Text


@dataclass(frozen=True, eq=False)
class Sweep:
    """A sweep and what is known of it. where: file and line that tell of it, for messages.   read: gives its points, float32 [n, 4]."""

    id: str
    where: str
    read: Callable[[], np.ndarray]
    things: tuple[Cuboid, ...] = ()
    captions: tuple[Viewed[Grounded], ...] = ()
    expressions: tuple[Expression, ...] = ()
    questions: tuple[Viewed[Question], ...] = ()
