"""Streets as a source of sweeps: any number for training, a fixed list to measure on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmlm.data.base import Numbered
from mmlm.data.config.street import StreetConfig
from mmlm.data.pictures import Expression, Question
from mmlm.data.scenes.programs import Program
from mmlm.data.street.rays import cast
from mmlm.data.street.texts import Street, caption, expression, question
from mmlm.data.sweeps import Cuboid, Sweep, Viewed
from mmlm.encoders.views import VIEWS, from_border
from mmlm.tokenizers.boxes import Box, Grounded

SIZES = {
    "car": (4.3, 1.8, 1.55), "truck": (8.0, 2.5, 3.2), "pedestrian": (0.6, 0.6, 1.75), "cyclist": (1.8, 0.6, 1.75),
    "barrier": (2.5, 0.4, 1.0),
}  # fmt: skip
CLASSES = tuple(SIZES)  # length, width and height in metres
JITTER = 0.1  # share by which sizes differ
NEAREST = 5.0  # metres
CLEAR = math.radians(4)  # of the borders of views, for the middle of a thing
FEWEST = 5  # points of a thing that is told of
SPLITS = ("train", "validate", "test")
TRIES = 60
EXPRESSIONS, QUESTIONS, ASKED_VIEWS = 3, 2, 2  # drawn for a sweep; questions of the whole scene and of each of these views


class Streets(Numbered[Sweep]):
    """Sweeps of a split. A sweep is a function of the split, its number and the config."""

    def __init__(self, config: StreetConfig) -> None:
        self.config = config

    def record(self, number: int) -> Sweep:
        """The sweep of a number; things that hardly any ray meets are not told of."""
        rng = np.random.default_rng([SPLITS.index(self.config.split), number])
        things = arranged(rng, self.config)
        points, owner_n = cast(rng, self.config, [each.box for each in things])
        counts = np.bincount(owner_n[owner_n >= 0], minlength=len(things))
        seen = tuple(each for each, count in zip(things, counts.tolist(), strict=True) if count >= FEWEST)
        name, where = f"{self.config.split} {number}", f"street, {self.config.split}, number {number}"
        captions, pointed, asked = told(np.random.default_rng([SPLITS.index(self.config.split), number, 1]), Street(seen))
        return Sweep(name, where, lambda: points, seen, captions, tuple(one for one, _ in pointed), tuple(one for one, _ in asked))


def told(
    rng: np.random.Generator, street: Street, labels: Sequence[str] = CLASSES
) -> tuple[tuple[Viewed[Grounded], ...], list[tuple[Expression, Program]], list[tuple[Viewed[Question], Program]]]:
    """(captions of the whole scene and of a view, expressions, questions), the latter two with their programs. labels: classes that are
    asked about."""
    views = [int(view) for view in rng.permutation(len(VIEWS))[:ASKED_VIEWS]]
    captions = (Viewed(None, caption(street, None)), Viewed(views[0], caption(street, views[0])))
    pointed = {found[0].text: found for found in (expression(rng, street) for _ in range(EXPRESSIONS)) if found is not None}
    drawn = [question(rng, street, view, labels) for view in (None, *views) for _ in range(QUESTIONS)]
    asked = {(found[0].view, found[0].said.text): found for found in drawn if found is not None}
    return captions, list(pointed.values()), list(asked.values())


def arranged(rng: np.random.Generator, config: StreetConfig) -> list[Cuboid]:
    """Things on the ground that stand apart, each well within one view; headings are within half a turn, as turned round it is the same."""
    found: list[Cuboid] = []
    for _ in range(int(rng.integers(config.min_things, config.max_things + 1))):
        label = CLASSES[int(rng.integers(len(CLASSES)))]
        length, width, height = (size * float(rng.uniform(1 - JITTER, 1 + JITTER)) for size in SIZES[label])
        heading = float(rng.uniform(-math.pi / 2, math.pi / 2))
        for share, angle in rng.random((TRIES, 2)).tolist():
            distance = NEAREST + share * (config.reach - NEAREST)
            x, y = distance * math.cos(2 * math.pi * angle), distance * math.sin(2 * math.pi * angle)
            box = (x, y, height / 2 - config.sensor_height, length, width, height, heading)
            if from_border(x, y) >= CLEAR and all(_apart(box, other.box) for other in found):
                found.append(Cuboid(label, box))
                break
    return found


def _apart(one: Box, other: Box) -> bool:
    return math.hypot(one[0] - other[0], one[1] - other[1]) > (math.hypot(one[3], one[4]) + math.hypot(other[3], other[4])) / 2
