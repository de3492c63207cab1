"""A table as the models see it: named columns of numbers, categories or dates, with missing cells.

Every cell is one float64, whatever its kind, so a table is a few numpy arrays: a number is its value, a category the code of its
text, a date the seconds since 1970-01-01 (UTC), and NaN is missing. How a cell is written as text is decided here and nowhere
else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mmlm.base.errors import DataError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["number", "category", "date"]
MediumKind = Literal["picture", "sound", "molecule"]
Texts = list[str | None]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LARGEST_EXACT_INTEGER = 2.0**53  # integers beyond this are not all float64 values
_WHOLE_TEXT_BELOW = 1e16  # Python writes larger floats with an exponent


@dataclass(frozen=True)
class Medium:
    """What the words of a category stand for: files of pictures or sounds by their paths, or molecules as SMILES.

    places: where each word, by code, stands first, for messages. Words beyond these are texts.
    """

    kind: MediumKind
    places: list[str]


@dataclass(frozen=True, eq=False)
class Column:
    """One column: `values` float64 [rows], NaN = missing; `words` are the texts of a category by code, else empty.

    medium: what the words stand for; None: for themselves. Raises DataError for an unknown kind, an infinite value or a code without a
    word.
    """

    name: str
    kind: Kind
    values: np.ndarray
    words: list[str] = field(default_factory=list)
    medium: Medium | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise DataError(f"column {self.name!r}: {unknown_name('kind', self.kind, get_args(Kind))}")
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1:
            raise DataError(f"column {self.name!r}: values must have one axis, but have shape {values.shape}.")
        if (infinite := np.isinf(values)).any():
            row = int(infinite.argmax())
            raise DataError(f"column {self.name!r}, row {row}: the value is infinite; a number must be finite or missing.")
        if self.kind == "category" and values.size:
            codes = values[~np.isnan(values)]
            if codes.size and (codes.min() < 0 or codes.max() >= len(self.words) or (codes != np.floor(codes)).any()):
                count = len(self.words)
                raise DataError(f"column {self.name!r}: category codes must be whole numbers below {count}, its number of words.")
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> np.ndarray:
        """Which cells are missing: bool [rows]."""
        return np.isnan(self.values)

    @property
    def num_distinct(self) -> int:
        """Number of distinct values, missing cells left out."""
        return len(np.unique(self.values[~self.missing]))

    def take(self, rows: Any) -> Column:
        """The same column with these rows (indices or a bool mask)."""
        rows = np.asarray(rows)
        return replace(self, values=self.values[rows if rows.size else rows.astype(np.int64)])

    def codes(self) -> np.ndarray:
        """Category codes as int64 [rows], -1 where missing."""
        return np.where(self.missing, -1.0, self.values).astype(np.int64)

    def used_words(self) -> list[str]:
        """The category texts that occur in some row, in code order."""
        return [self.words[int(code)] for code in np.unique(self.values[~self.missing])]

    def as_category(self) -> Column:
        """The column with each distinct value as a category (its text); words ordered by value. A category is returned as it
        is."""
        if self.kind == "category":
            return self
        present = ~self.missing
        distinct, inverse = np.unique(self.values[present], return_inverse=True)
        texts = [text or "" for text in cell_texts(replace(self, values=distinct))]
        words = list(dict.fromkeys(texts))
        code_of = {word: code for code, word in enumerate(words)}
        values = np.full(len(self.values), np.nan)
        values[present] = np.array([code_of[text] for text in texts], dtype=np.float64)[inverse]
        return Column(self.name, "category", values, words)


def number_texts(values: np.ndarray, max_precision: int | None = None) -> Texts:
    """Each number as its shortest text that reads back as the same number; whole numbers without a fraction, missing as None.

    max_precision: round to this many digits after the point first.
    """
    values = np.asarray(values, dtype=np.float64)
    if max_precision is not None:
        values = np.round(values, max_precision)
    missing = np.isnan(values)
    whole = (values == np.floor(values)) & (np.abs(values) < _WHOLE_TEXT_BELOW)
    if (whole | missing).all():
        texts: Texts = list(map(str, np.where(missing, 0.0, values).astype(np.int64).tolist()))
    else:
        texts = [str(int(v)) if w else repr(v) for v, w in zip(values.tolist(), whole.tolist())]
    if missing.any():
        texts = [None if m else text for text, m in zip(texts, missing.tolist())]
    return texts


def date_text(seconds: float) -> str:
    """ISO-8601: the day alone at midnight, else day and time, with microseconds where there are any."""
    moment = EPOCH + timedelta(microseconds=round(seconds * 1e6))
    if not (moment.hour or moment.minute or moment.second or moment.microsecond):
        return moment.date().isoformat()
    return moment.replace(tzinfo=None).isoformat()


def cell_texts(column: Column, max_precision: int | None = None) -> Texts:
    """How every cell of a column is written, None where missing."""
    match column.kind:
        case "number":
            return number_texts(column.values, max_precision)
        case "category":
            lookup: Texts = [*column.words, None]
            return [lookup[code] for code in column.codes().tolist()]
        case _:
            distinct, inverse = np.unique(column.values, return_inverse=True)
            lookup = [None if math.isnan(seconds) else date_text(seconds) for seconds in distinct.tolist()]
            return [lookup[at] for at in inverse.tolist()]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of equal length with distinct names; `target` names the column to predict.

    Raises DataError for unequal lengths, a name that occurs twice, or a target that is not a column.
    """

    name: str
    columns: list[Column]
    target: str | None = None

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for at, column in enumerate(self.columns):
            if column.name in seen:
                raise DataError(f"{self.name}: columns {seen[column.name] + 1} and {at + 1} have the same name {column.name!r}.")
            seen[column.name] = at
            if len(column) != len(self.columns[0]):
                first = self.columns[0]
                raise DataError(f"{self.name}: column {column.name!r} has {len(column)} rows, but {first.name!r} has {len(first)}.")
        if self.target is not None and self.target not in seen:
            raise DataError(f"{self.name}: target: {unknown_name('column', self.target, seen)}")

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.columns[0]) if self.columns else 0

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    @property
    def features(self) -> list[str]:
        """Names of all columns but the target."""
        return [name for name in self.names if name != self.target]

    def column(self, name: str) -> Column:
        """The column of this name; DataError with the nearest name if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise DataError(f"{self.name}: {unknown_name('column', name, self.names)}")

    def take(self, rows: Any) -> Table:
        """The table with these rows (indices or a bool mask), in the order given."""
        rows = np.asarray(rows)
        return replace(self, columns=[column.take(rows) for column in self.columns])

    def select(self, names: Sequence[str]) -> Table:
        """The table with these columns, in the order given; the target is forgotten if it is not among them."""
        return replace(self, columns=[self.column(name) for name in names], target=self.target if self.target in names else None)

    def drop(self, names: Sequence[str]) -> Table:
        """The table without these columns."""
        gone = {self.column(name).name for name in names}
        return self.select([name for name in self.names if name not in gone])

    def with_target(self, target: str | None) -> Table:
        """The table with another target; DataError if it is not a column."""
        return replace(self, target=target)

    def with_column(self, column: Column) -> Table:
        """The table with `column` in place of the one of its name, or added at the end."""
        if column.name not in self.names:
            return replace(self, columns=[*self.columns, column])
        return replace(self, columns=[column if old.name == column.name else old for old in self.columns])

    def text(self, column: str, row: int) -> str | None:
        """How one cell is written; None if it is missing."""
        return cell_texts(self.column(column).take([row]))[0]

    def texts(self, column: str, max_precision: int | None = None) -> Texts:
        """How every cell of a column is written, None where missing.

        Numbers are the shortest text that reads back as the same float64 (whole ones without ".0"; max_precision rounds to so
        many digits after the point), dates ISO-8601.
        """
        return cell_texts(self.column(column), max_precision)

    def content_hash(self) -> str:
        """32 hex digits of names, kinds and cells; the same for any order of columns or of category codes."""
        digest = hashlib.blake2b(digest_size=16)
        for column in sorted(self.columns, key=lambda column: column.name):
            values, words = column.values, column.used_words() if column.kind == "category" else []
            if words:
                code_of = {word: code for code, word in enumerate(sorted(words))}
                ranks = np.array([*(float(code_of.get(word, -1)) for word in column.words), np.nan])
                values = ranks[column.codes()]
            digest.update(json.dumps([column.name, column.kind, sorted(words)]).encode())
            digest.update(np.where(np.isnan(values), np.nan, values + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    def header_hash(self) -> str:
        """32 hex digits of the sorted column names and the numbers of rows and columns: tables are split by it."""
        header = json.dumps([sorted(self.names), self.num_rows, len(self.columns)])
        return hashlib.blake2b(header.encode(), digest_size=16).hexdigest()

    @staticmethod
    def from_frame(frame: pd.DataFrame, name: str, *, infinite: Literal["error", "missing"] = "error") -> Table:
        """A table from a pandas frame, types inferred as `table_columns` describes; the index is left out.

        infinite: what an infinite number is. Raises DataError naming column and row for it, and for a column name that occurs
        twice.
        """
        from mmlm.data.table_columns import columns_of_frame

        return Table(name, columns_of_frame(frame, name, infinite))


def join_rows(tables: Sequence[Table]) -> Table:
    """The rows of several tables of the same columns, one after the other; categories are matched by their texts.

    Where one table has numbers in a column and another has texts or dates, the joined column is a category of the texts of both.
    """
    columns = []
    for name in tables[0].names:
        parts = [table.column(name) for table in tables]
        kinds = {part.kind for part in parts if not part.missing.all()} or {parts[0].kind}
        kind: Kind = kinds.pop() if len(kinds) == 1 else "category"
        parts = [part.as_category() if kind == "category" else part for part in parts]
        words = list(dict.fromkeys(word for part in parts for word in part.words)) if kind == "category" else []
        medium = _common_medium(parts, words)
        place = {word: code for code, word in enumerate(words)}
        values = []
        for part in parts:
            mapping = np.array([*(place.get(word, 0) for word in part.words), np.nan], dtype=np.float64)
            values.append(mapping[part.codes()] if kind == "category" else part.values)
        columns.append(Column(name, kind, np.concatenate(values), words, medium))
    return Table(tables[0].name, columns)


def _common_medium(parts: Sequence[Column], words: Sequence[str]) -> Medium | None:
    """What the joined words of columns stand for: nothing but themselves where the columns differ in that."""
    media = [part.medium for part in parts if part.words]
    kinds = {None if medium is None else medium.kind for medium in media}
    if len(kinds) != 1 or (kind := kinds.pop()) is None:
        return None
    place = {word: at for part in parts if part.medium for word, at in zip(part.words, part.medium.places, strict=False)}
    return Medium(kind, [place.get(word, "") for word in words])
