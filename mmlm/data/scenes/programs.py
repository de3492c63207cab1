"""What is said of a scene as small programs, so that every text can be checked against what is drawn.

    ("all",)                        every thing
    ("filter", key, value, of)      those of them with a shape, colour, size or fill
    ("relate", relation, of)        those in a relation to the one thing that `of` gives
    ("most", kind, of)              the leftmost, rightmost, topmost, bottommost, largest or smallest of them, by a margin
    ("count", of)   ("exist", of)   ("query", key, of)   ("third", of)   ("greater", of, of)

Things are told as sets of their numbers. A program that asks for one thing where there is none, or several, is Unclear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

Program: TypeAlias = tuple[Any, ...]

RELATIONS = ("left of", "right of", "above", "below", "larger than", "smaller than")
MOST = ("leftmost", "rightmost", "topmost", "bottommost", "largest", "smallest")
MARGIN = 0.08  # of a side by which centres differ where one is said to be further on
LARGER = 1.15  # times as large a radius is larger
THIRDS = ("left", "middle", "right")
KEYS = ("shape", "color", "size", "fill")
ALL: Program = ("all",)
TRIES = 12  # to draw a question that has an answer


class Placed(Protocol):
    """A thing at a place. center, radius: in pixels. Programs also ask for whatever else it has by name."""

    @property
    def center(self) -> tuple[float, float]:
        """Its middle."""

    @property
    def radius(self) -> float:
        """Half its size."""


Thing = TypeVar("Thing")
Item = TypeVar("Item", bound=Placed)


class Unclear(Exception):
    """A program asks for one thing where there is not exactly one."""


def related(items: Sequence[Placed], relation: str, one: int, other: int, width: int, height: int) -> bool:
    """Whether one thing stands in a relation to another."""
    (x, y), (u, v) = items[one].center, items[other].center
    r, s = items[one].radius, items[other].radius
    return {
        "left of": x < u - MARGIN * width, "right of": x > u + MARGIN * width, "above": y < v - MARGIN * height,
        "below": y > v + MARGIN * height, "larger than": r > LARGER * s, "smaller than": s > LARGER * r,
    }[relation]  # fmt: skip


class Known(Generic[Thing]):
    """Things that stand somewhere, and the answers of programs; subclasses know of relations, extremes and places."""

    def __init__(self, items: Sequence[Thing]) -> None:
        self.items = list(items)

    def things(self, program: Program) -> frozenset[int]:
        """Those that a program means. Raises Unclear."""
        name = program[0]
        if name == "all":
            return frozenset(range(len(self.items)))
        if name == "filter":
            _, key, value, of = program
            return frozenset(number for number in self.things(of) if getattr(self.items[number], key) == value)
        if name == "relate":
            _, relation, of = program
            return self.related_to(relation, self.one(of))
        assert name == "most"
        return frozenset([self.most(program[1], self.things(program[2]))])

    def related_to(self, relation: str, anchor: int) -> frozenset[int]:
        """Those in a relation to one thing."""
        raise NotImplementedError

    def most(self, kind: str, among: frozenset[int]) -> int:
        """The one that is furthest on, by a margin. Raises Unclear."""
        raise NotImplementedError

    def third(self, number: int) -> str:
        """Which third one thing lies in. Raises Unclear."""
        raise NotImplementedError

    def one(self, program: Program) -> int:
        """The only thing that a program means. Raises Unclear."""
        found = self.things(program)
        if len(found) != 1:
            raise Unclear
        return next(iter(found))

    def means(self, program: Program, number: int) -> bool:
        """Whether a program means this one thing."""
        try:
            return self.one(program) == number
        except Unclear:
            return False

    def answer(self, program: Program) -> str:
        """What a program that asks something is answered. Raises Unclear."""
        name = program[0]
        if name == "count":
            return str(len(self.things(program[1])))
        if name == "exist":
            return "yes" if self.things(program[1]) else "no"
        if name == "query":
            return str(getattr(self.items[self.one(program[2])], program[1]))
        if name == "third":
            return self.third(self.one(program[1]))
        assert name == "greater"
        return "yes" if len(self.things(program[1])) > len(self.things(program[2])) else "no"


class Scene(Known[Item]):
    """Things with the size of their picture."""

    def __init__(self, items: Sequence[Item], width: int, height: int) -> None:
        super().__init__(items)
        self.width, self.height = width, height

    def related_to(self, relation: str, anchor: int) -> frozenset[int]:
        """Those in a relation to one thing."""
        everything = (number for number in range(len(self.items)) if number != anchor)
        return frozenset(number for number in everything if related(self.items, relation, number, anchor, self.width, self.height))

    def third(self, number: int) -> str:
        """Which third of the picture one thing lies in. Raises Unclear."""
        x = self.items[number].center[0] / self.width
        if min(abs(x - 1 / 3), abs(x - 2 / 3)) < MARGIN / 2:
            raise Unclear
        return THIRDS[int(x * 3)]

    def most(self, kind: str, among: frozenset[int]) -> int:
        """The one that is furthest on, by a margin. Raises Unclear."""
        if len(among) < 2:
            raise Unclear
        sign = -1.0 if kind in ("leftmost", "topmost", "smallest") else 1.0
        if kind in ("largest", "smallest"):
            far, margin = {number: sign * self.items[number].radius for number in among}, None
        else:
            axis, side = (0, self.width) if kind in ("leftmost", "rightmost") else (1, self.height)
            far, margin = {number: sign * self.items[number].center[axis] for number in among}, MARGIN * side
        first, second = sorted(among, key=far.__getitem__, reverse=True)[:2]
        clear = far[first] - far[second] > margin if margin is not None else _ratio(far[first], far[second]) > LARGER
        if not clear:
            raise Unclear
        return first


def _ratio(one: float, other: float) -> float:
    return max(abs(one), abs(other)) / min(abs(one), abs(other))
