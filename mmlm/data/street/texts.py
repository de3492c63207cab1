"""Captions, expressions and questions about a street. Each expression and question is checked by running its program.

Programs are those of mmlm.data.scenes.programs; a thing has a label, a view and a distance, and the nearest of some is the one that is
nearer than every other by a margin. What is said of one view does not name it: the reader knows it otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmlm.data.pictures import Expression, Question
from mmlm.data.scenes.programs import ALL, TRIES, Known, Program, Unclear
from mmlm.data.sweeps import Cuboid, Viewed
from mmlm.encoders.views import VIEWS
from mmlm.tokenizers.boxes import Grounded, Phrase

MARGIN = 1.0  # metres by which the nearest thing is nearer
NEAR = 12.0  # metres within which a thing is called near
NOTHING = "Nothing is here."


class Street(Known[Cuboid]):
    """Things around a sensor."""

    def most(self, kind: str, among: frozenset[int]) -> int:
        """The nearest or the farthest. Raises Unclear."""
        if not among:
            raise Unclear
        sign = {"nearest": 1.0, "farthest": -1.0}[kind]
        first, *others = sorted(among, key=lambda number: sign * self.items[number].distance)
        if others and abs(self.items[others[0]].distance - self.items[first].distance) < MARGIN:
            raise Unclear
        return first


def within(view: int | None) -> Program:
    """The things of a view, or all."""
    return ALL if view is None else ("filter", "view", view, ALL)


def named(label: str, of: Program = ALL) -> Program:
    """Those with a label."""
    return ("filter", "label", label, of)


def caption(street: Street, view: int | None) -> Grounded:
    """Every thing of a view, the nearest first, each phrase with its box; of the whole scene view after view, those with nothing left
    out."""
    if view is not None:
        return _listed("", _ordered(street, view), ".") if street.things(within(view)) else Grounded(NOTHING)
    parts = [_listed(f"{name.capitalize()}: ", _ordered(street, number), ".") for number, name in enumerate(VIEWS)
             if street.things(within(number))]  # fmt: skip
    text, phrases = "", list[Phrase]()
    for part in parts:
        text += " " if text else ""
        phrases += [Phrase(each.start + len(text), each.end + len(text), each.boxes) for each in part.phrases]
        text += part.text
    return Grounded(text, tuple(phrases)) if parts else Grounded(NOTHING)


def _ordered(street: Street, view: int) -> list[Cuboid]:
    return sorted((street.items[number] for number in street.things(within(view))), key=lambda each: each.distance)


def _listed(before: str, things: Sequence[Cuboid], after: str) -> Grounded:
    text, phrases = before, []
    for place, thing in enumerate(things):
        text += "" if place == 0 else " and " if place == len(things) - 1 else ", "
        said = f"{'near' if thing.distance < NEAR else 'far'} {thing.label}"
        text += "a "
        phrases.append(Phrase(len(text), len(text) + len(said), (thing.box,)))
        text += said
    return Grounded(text + after, tuple(phrases))


def expression(rng: np.random.Generator, street: Street) -> tuple[Expression, Program] | None:
    """Words for one thing alone, by its class, its view, and that it is the nearest; of the ways that do one is drawn."""
    if not street.items:
        return None
    number = int(rng.integers(len(street.items)))
    thing = street.items[number]
    here = f"to the {VIEWS[thing.view]}"
    options: list[tuple[str, Program]] = [
        (f"the {thing.label}", named(thing.label)),
        (f"the {thing.label} {here}", named(thing.label, within(thing.view))),
        (f"the nearest {thing.label}", ("most", "nearest", named(thing.label))),
        (f"the nearest thing {here}", ("most", "nearest", within(thing.view))),
        (f"the farthest {thing.label}", ("most", "farthest", named(thing.label))),
    ]
    fitting = [option for option in options if street.means(option[1], number)]
    if not fitting:
        return None
    text, program = fitting[int(rng.integers(len(fitting)))]
    return Expression(text, thing.box), program


def question(rng: np.random.Generator, street: Street, view: int | None, labels: Sequence[str]) -> tuple[Viewed[Question], Program] | None:
    """A question about a view or the whole scene with the answer that the things decide; kinds are drawn alike."""
    for _ in range(TRIES):
        kind, label = ("nearest", "count", "exist")[int(rng.integers(3))], labels[int(rng.integers(len(labels)))]
        program: Program
        if kind == "nearest":
            text, program = "What is nearest?", ("query", "label", ("most", "nearest", within(view)))
        elif kind == "count":
            text, program = f"How many {label}s are there?", ("count", named(label, within(view)))
        else:
            text, program = f"Is there a {label}?", ("exist", named(label, within(view)))
            if bool(street.things(program[1])) != (rng.random() < 0.5):
                continue
        try:
            return Viewed(view, Question(text, street.answer(program), kind)), program
        except Unclear:
            continue
    return None
