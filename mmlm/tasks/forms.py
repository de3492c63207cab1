"""What a finished model is asked with and answers with, as a task declares it: demos and servers are built from nothing else.

A task that people use has `inputs` and `outputs`, fields by name, and `answer(model, given)`, which yields values by the names of the
outputs, first those that are there already, last all of them, whole. Values by field:

    Text    str                                    Choice    str, one of its options
    Number  float                                  Audio     mmlm.sound.Sound
    Image   uint8 [y, x, 3]                        Points    float32 [n, 4]: x, y, z in metres, intensity
    Table   a row each, {column: text or number}   Shares    {name: probability}
    Chances {name: probability} of each row        Spans     {"span": [first, end], "boxes": [...]} of parts of a text
    Molecule  str, SMILES                          Part      [x0, y0, x1, y1] of a picture, in pixels
    Pictures  [Image, ...]                         Flag    bool
    Looks   what was looked at, and how much: {"names": [e], "weights": [e][t]}, over the time of what was written
    Data    anything that JSON can hold
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mmlm.base.errors import DataError, unknown_name
from mmlm.sound import Sound

MOST_TEXT = 20_000  # characters
MOST_SMILES = 1000  # characters
MOST_ROWS, MOST_COLUMNS = 10_000, 500
MOST_SECONDS = 60.0
MOST_PIXELS = 16_000_000
MOST_PICTURES = 32
LOOKS_DIGITS = 3


@dataclass(frozen=True)
class Field:
    """label: what a person reads beside it.   help: a sentence.   is_optional: may be left out.   usual: what it then is."""

    label: str
    help: str = ""
    is_optional: bool = False
    usual: Any = None

    def check(self, name: str, value: Any) -> Any:
        """The value. Raises DataError for one that is none of this field."""
        return value


@dataclass(frozen=True)
class Text(Field):
    """A text. num_lines: of its box."""

    num_lines: int = 1

    def check(self, name: str, value: Any) -> str:
        """Without NUL characters, not empty unless optional."""
        if not isinstance(value, str):
            raise DataError(f"{name}: must be a text, but is of type {type(value).__name__}.")
        if len(value) > MOST_TEXT:
            raise DataError(f"{name}: has {len(value):,} characters; {MOST_TEXT:,} are allowed.")
        if "\0" in value:
            raise DataError(f"{name}: holds a NUL character, which no text does.")
        if not value.strip() and not self.is_optional:
            raise DataError(f"{name}: is empty; write something.")
        return value


@dataclass(frozen=True)
class Molecule(Text):
    """A molecule as SMILES, which pages draw."""

    def check(self, name: str, value: Any) -> str:
        """Not too long either."""
        if len(text := super().check(name, value)) > MOST_SMILES:
            raise DataError(f"{name}: has {len(text):,} characters; {MOST_SMILES:,} are allowed.")
        return text


@dataclass(frozen=True)
class Number(Field):
    """A number from low to high."""

    low: float = 0.0
    high: float = 1.0
    step: float | None = None

    def check(self, name: str, value: Any) -> float:
        """Finite and within."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise DataError(f"{name}: must be a number, but is {str(value)[:40]!r}.")
        if not self.low <= value <= self.high:
            raise DataError(f"{name}: must be from {self.low:g} to {self.high:g}, but is {value:g}.")
        return float(value)


@dataclass(frozen=True)
class Choice(Field):
    """One of several names."""

    options: Sequence[str] = ()

    def check(self, name: str, value: Any) -> str:
        """One of them."""
        if value not in self.options:
            raise DataError(f"{name}: {unknown_name('choice', str(value)[:60], self.options)}")
        return str(value)


@dataclass(frozen=True)
class Flag(Field):
    """Yes or no."""

    def check(self, name: str, value: Any) -> bool:
        """One of both."""
        if not isinstance(value, bool):
            raise DataError(f"{name}: must be true or false, but is {str(value)[:40]!r}.")
        return value


@dataclass(frozen=True)
class Audio(Field):
    """A sound, of at most so many seconds. grows: as an output it is told while it is made, and heard at once."""

    most_seconds: float = MOST_SECONDS
    grows: bool = False

    def check(self, name: str, value: Any) -> Sound:
        """Not empty, finite, not too long."""
        if not isinstance(value, Sound) or not len(value.wave_n):
            raise DataError(f"{name}: holds no sound.")
        if value.seconds > self.most_seconds:
            raise DataError(f"{name}: lasts longer than the {self.most_seconds:g} s that are allowed.")
        if not np.isfinite(value.wave_n).all():
            raise DataError(f"{name}: holds samples that are no numbers.")
        return value


@dataclass(frozen=True)
class Image(Field):
    """A picture."""

    def check(self, name: str, value: Any) -> np.ndarray:
        """uint8 [y, x, 3], not too large."""
        if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise DataError(f"{name}: holds no picture.")
        if value.size > 3 * MOST_PIXELS:
            raise DataError(f"{name}: has {value.shape[1]} x {value.shape[0]} pixels; {MOST_PIXELS:,} in all are allowed.")
        return value


@dataclass(frozen=True)
class Pictures(Field):
    """Several pictures."""

    def check(self, name: str, value: Any) -> list[np.ndarray]:
        """Each a picture, not too many, not too large together."""
        if not isinstance(value, list) or not value:
            raise DataError(f"{name}: holds no pictures.")
        if len(value) > MOST_PICTURES:
            raise DataError(f"{name}: holds {len(value)} pictures; {MOST_PICTURES} are allowed.")
        found = [Image(self.label).check(f"{name}, picture {number}", one) for number, one in enumerate(value, 1)]
        if sum(one.size for one in found) > 3 * MOST_PIXELS:
            raise DataError(f"{name}: have more than the {MOST_PIXELS:,} pixels that are allowed in all.")
        return found


@dataclass(frozen=True)
class Part(Field):
    """A box in a picture. of: the input that holds the picture."""

    of: str = "image"

    def check(self, name: str, value: Any) -> list[float]:
        """Left, top, right and bottom in pixels, not empty."""
        numbers = isinstance(value, list | tuple) and len(value) == 4 and all(isinstance(each, int | float) for each in value)
        if not numbers or not all(map(_is_finite, value)) or not 0 <= value[0] < value[2] or not 0 <= value[1] < value[3]:
            raise DataError(f"{name}: must be [left, top, right, bottom] in pixels, but is {str(value)[:60]}.")
        return [float(each) for each in value]


@dataclass(frozen=True)
class Points(Field):
    """A sweep of LiDAR."""

    def check(self, name: str, value: Any) -> np.ndarray:
        """float32 [n, 4]."""
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] != 4 or not len(value):
            raise DataError(f"{name}: holds no points of x, y, z and intensity.")
        return value.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Table(Field):
    """Rows of a table."""

    def check(self, name: str, value: Any) -> list[dict[str, Any]]:
        """Rows with texts, numbers or nothing in them."""
        if not isinstance(value, list) or not value or not all(isinstance(row, dict) for row in value):
            raise DataError(f"{name}: must be a list of rows, each {{column: value}}.")
        if len(value) > MOST_ROWS:
            raise DataError(f"{name}: has {len(value):,} rows; {MOST_ROWS:,} are allowed.")
        columns: set[Any] = set()
        for number, row in enumerate(value, 1):
            columns.update(row)
            if len(columns) > MOST_COLUMNS:  # of all rows together: each row gets a cell in each
                raise DataError(f"{name}, row {number}: is where the columns become more than the {MOST_COLUMNS} that are allowed.")
            if bad := [key for key, cell in row.items() if not _is_cell(cell)]:
                raise DataError(f"{name}, row {number}, column {str(bad[0])[:60]!r}: must be a text or a number.")
        return value


@dataclass(frozen=True)
class Shares(Field):
    """Names with their probabilities."""


@dataclass(frozen=True)
class Chances(Field):
    """Names with their probabilities, for each row."""


@dataclass(frozen=True)
class Data(Field):
    """What JSON can hold."""


@dataclass(frozen=True)
class Looks(Data):
    """What a model looked at while it wrote."""


@dataclass(frozen=True)
class Spans(Data):
    """Parts of a text with the boxes that they mean, in the order of their colours. of: the output that holds the text."""

    of: str = "text"


def _is_finite(value: int | float) -> bool:
    """Whether it is a number that a float holds."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _is_cell(value: Any) -> bool:
    """Whether it is nothing, a text or a number that a float holds; NaN and infinity stand for nothing."""
    return value is None or isinstance(value, str | float) or (isinstance(value, int) and _is_finite(value))


Values = Mapping[str, Any]
TEMPERATURE = Number("Temperature", "0: always the likeliest token", True, 0.0, 0.0, 2.0)
SEED = Number("Seed", "decides the draws at a temperature above 0", True, 0, 0, 1_000_000, 1)
ATTENTION = Flag("Attention", "also show what the model looked at while it wrote", True, False)


def looks(names: Sequence[str], weights_et: Any) -> dict[str, Any]:
    """A value of `Looks`, of weights [e, t] from 0 to 1."""
    return {"names": list(names), "weights": np.round(np.asarray(weights_et, dtype=np.float64), LOOKS_DIGITS).tolist()}


@runtime_checkable
class Usable(Protocol):
    """A task whose finished model people use by hand, in a demo or through a server."""

    @property
    def inputs(self) -> Mapping[str, Field]:
        """What it is asked with."""

    @property
    def outputs(self) -> Mapping[str, Field]:
        """What it answers with."""

    def answer(self, model: Any, given: Values) -> Iterator[Values]:
        """Values of outputs for checked values of all inputs; None where an optional one was left out. Raises DataError, RecipeError."""


@runtime_checkable
class AskedOfOne(Protocol):
    """A usable task with an example for each record."""

    def given_by(self, record: Any) -> Values:
        """Inputs by which a person would ask for a record; optional ones may be left out."""


@runtime_checkable
class AskedOfSeveral(Protocol):
    """A usable task whose examples are each made of several records."""

    def given_by_several(self, records: Sequence[Any]) -> Sequence[Values]:
        """Inputs by which a person would ask for records; optional ones may be left out."""


def checked(inputs: Mapping[str, Field], given: Values) -> dict[str, Any]:
    """A value for each input. Raises DataError for one that is missing, unknown or not of its field."""
    if unknown := [name for name in given if name not in inputs]:
        raise DataError(unknown_name("input", unknown[0], inputs))
    found: dict[str, Any] = {}
    for name, field in inputs.items():
        value = given.get(name)
        if value is None or (isinstance(value, str) and not value.strip() and field.is_optional):
            if not field.is_optional:
                raise DataError(f"{name}: is missing.")
            found[name] = field.usual
        else:
            found[name] = field.check(name, value)
    return found
