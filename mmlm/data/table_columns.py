"""What kind of column some cells make.

- Booleans are a category of "False" and "True". Numbers are numbers; whole numbers beyond 2**53, which a float64 cannot hold,
  stay texts.
- Texts are numbers if every one is an optional minus, digits and an optional fraction (from files also an exponent), dates if
  every one is an ISO-8601 date or date-time, else a category. Texts are stripped; an empty one is missing.
- From files, columns are also read as people write them: see `table_marks`.
- Cells of several types stay texts, each written as it would be in a column of its own.
- Bytes are decoded as UTF-8, else Latin-1; a column of bytes that is no text in either is left out with a log line. Lists,
  complex numbers and other objects are written with `str`.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmlm.base.errors import DataError, require
from mmlm.data.table_marks import FILE_NUMBER, Notes, without_marks
from mmlm.data.tables import EPOCH, LARGEST_EXACT_INTEGER, Column, date_text, number_texts

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Infinite = Literal["error", "missing"]
Place = Callable[[int], str]  # the words for a row in a message, such as "line 17"
PLAIN_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_INFINITE_TEXT = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?")


def encode_texts(texts: Iterable[str], known: defaultdict[str, int] | None = None) -> tuple[np.ndarray, defaultdict[str, int]]:
    """Codes int64 [rows] of texts in order of first appearance, and the growing text -> code map (pass it to the next chunk)."""
    known = defaultdict(count().__next__) if known is None else known
    return np.fromiter(map(known.__getitem__, texts), dtype=np.int64), known


def column_of_texts(
    name: str,
    codes: np.ndarray,
    words: Sequence[str],
    *,
    missing: frozenset[str] = frozenset(),
    file: bool = False,
    infinite: Infinite = "error",
    place: Place | None = None,
    notes: Notes | None = None,
) -> Column:
    """A column from texts given as codes int64 [rows] (-1 = missing) into distinct words.

    missing: texts that mean a missing cell, beside the empty one. file: the texts are cells of a text file, where numbers may
    have an exponent or a leading plus or point, and infinite ones are spelt out. notes: where to put down what was guessed about
    the marks in the cells of a file; None guesses nothing. Raises DataError naming column and row for an infinite number.
    """
    stripped = [word.strip() for word in words]
    absent = [not word or word in missing for word in stripped]
    if notes is not None:
        stripped, absent = without_marks(name, stripped, absent, notes)
    present = [word for word, gone in zip(stripped, absent) if not gone]
    pattern = FILE_NUMBER if file or notes is not None else PLAIN_NUMBER
    shown = [word for word in present if not (file and _INFINITE_TEXT.fullmatch(word))]
    values: np.ndarray | None = None
    kind: Literal["number", "date"] = "number"
    if shown and all(map(pattern.fullmatch, shown)):
        values = _numbers([math.nan if gone else word for word, gone in zip(stripped, absent)])
    elif len(shown) == len(present) and present and all(map(_DATE.fullmatch, present)):
        kind, values = "date", _dates(stripped, absent)
    if values is not None:
        return Column(name, kind, finite(np.append(values, np.nan)[codes], name, infinite, place))
    order: dict[str, int] = {}
    lookup = [math.nan if gone else float(order.setdefault(word, len(order))) for word, gone in zip(stripped, absent)]
    return Column(name, "category", np.array([*lookup, math.nan])[codes], list(order))


def _numbers(cells: Sequence[str | float]) -> np.ndarray | None:
    """Texts as numbers; None if a whole one is too large for a float64 to hold (an identifier, which must stay as it is)."""
    values = np.array([float(cell) for cell in cells], dtype=np.float64)
    for at in np.flatnonzero(np.abs(values) >= LARGEST_EXACT_INTEGER).tolist():
        digits = str(cells[at]).lstrip("+-")
        if digits.isdecimal() and (len(digits) > 300 or int(digits) != int(abs(values[at]))):
            return None
    return values


def _dates(words: Sequence[str], absent: Sequence[bool]) -> np.ndarray | None:
    """Texts as seconds since 1970; None if one is no day of the calendar."""
    try:
        return np.array([math.nan if gone else seconds_of(datetime.fromisoformat(word)) for word, gone in zip(words, absent)])
    except ValueError:
        return None


def seconds_of(moment: date) -> float:
    """Seconds since 1970-01-01 of a date or date-time; one without a time zone is taken as UTC."""
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return (moment - EPOCH) / timedelta(seconds=1)


def finite(values: np.ndarray, name: str, infinite: Infinite, place: Place | None = None) -> np.ndarray:
    """The values, infinite ones made missing or refused with a DataError naming column and row (counted from 0)."""
    bad = np.isinf(values)
    if bad.any() and infinite == "error":
        row = int(bad.argmax())
        at = place(row) if place else f"row {row}"
        raise DataError(f"column {name!r}, {at}: the value is infinite; a number must be finite or missing.")
    return np.where(bad, np.nan, values)


def is_missing(cell: Any) -> bool:
    """None, NaN in any number type, NaT and pandas' NA."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(cell, Decimal):
        return cell.is_nan()
    if isinstance(cell, np.datetime64 | np.timedelta64):
        return bool(np.isnat(cell))
    return isinstance(cell, Real) and not isinstance(cell, Integral) and math.isnan(cell)


def _sort_of(cell: Any) -> str:
    match cell:
        case str():
            return "text"
        case bool() | np.bool_():
            return "truth"
        case Real() | Decimal():
            return "number"
        case datetime() | date() | np.datetime64():
            return "date"
        case bytes() | bytearray():
            return "bytes"
        case _:
            return "other"


def cell_text(cell: Any) -> str:
    """One Python value as text, as it would be written in a column of its own sort; bytes raise UnicodeDecodeError if they are no
    text."""
    match _sort_of(cell):
        case "number" if not isinstance(cell, Integral):
            return number_texts(np.array([float(cell)]))[0] or ""
        case "date":
            moment = cell.astype("datetime64[us]").item() if isinstance(cell, np.datetime64) else cell
            return date_text(seconds_of(moment))
        case "bytes":
            return _decoded(bytes(cell))
        case _ if isinstance(cell, np.ndarray):
            return str(cell.tolist())
        case _:
            return str(cell)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
        if any(ord(letter) < 32 and letter not in "\t\r\n" or 127 <= ord(letter) < 160 for letter in text):
            raise
        return text


def column_of_cells(
    name: str, cells: Sequence[Any], infinite: Infinite = "error", place: Place | None = None, notes: Notes | None = None
) -> Column | None:
    """A column from Python values; None (with a log line) if it holds bytes that are no text.

    notes: where to put down what was guessed about the marks in texts; None guesses nothing. Raises DataError naming column and row
    for an infinite number.
    """
    absent = [is_missing(cell) for cell in cells]
    sorts = {_sort_of(cell) for cell, gone in zip(cells, absent) if not gone}
    if sorts == {"number"}:
        values = _number_cells(cells, absent)
        if values is not None:
            return Column(name, "number", finite(values, name, infinite, place))
    try:
        texts = ["" if gone else cell if isinstance(cell, str) else cell_text(cell) for cell, gone in zip(cells, absent)]
    except UnicodeDecodeError as error:
        logger.warning("column %r is left out: its bytes are neither UTF-8 nor Latin-1 text (%s)", name, error.reason)
        return None
    codes, known = encode_texts(texts)
    if sorts == {"truth"}:
        return truth_column(name, np.array([math.nan if gone else float(bool(cell)) for cell, gone in zip(cells, absent)]))
    return column_of_texts(name, codes, list(known), infinite=infinite, place=place, notes=notes)


def _number_cells(cells: Sequence[Any], absent: Sequence[bool]) -> np.ndarray | None:
    try:
        values = np.array([math.nan if gone else float(cell) for cell, gone in zip(cells, absent)], dtype=np.float64)
    except OverflowError:
        return None
    for at in np.flatnonzero(np.abs(values) >= LARGEST_EXACT_INTEGER).tolist():
        if isinstance(cells[at], Integral) and int(values[at]) != int(cells[at]):
            return None
    return values


def truth_column(name: str, values: np.ndarray) -> Column:
    """A column of booleans (0, 1, NaN): the category "False", "True"."""
    return Column(name, "category", values, ["False", "True"])


def columns_of_frame(frame: pd.DataFrame, table: str, infinite: Infinite = "error") -> list[Column]:
    """The columns of a pandas frame; names of several levels are joined by "_", those left out are logged."""
    names = ["_".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise DataError(f"{table}: columns {names.index(name) + 1} and {at + 1} have the same name {name!r}.")
    try:
        columns = [_column_of_series(name, frame.iloc[:, at], infinite) for at, name in enumerate(names)]
    except DataError as error:
        raise DataError(f"{table}: {error}") from None
    return [column for column in columns if column is not None]


def _column_of_series(name: str, series: pd.Series, infinite: Infinite) -> Column | None:
    dtype: Any = series.dtype
    kind = getattr(dtype, "kind", "O")
    if hasattr(dtype, "categories"):
        words = [cell_text(cell) for cell in dtype.categories.tolist()]
        codes = series.cat.codes.to_numpy(dtype=np.int64)
        if dtype.categories.inferred_type == "boolean":
            return truth_column(name, np.array([*(float(word == "True") for word in words), math.nan])[codes])
        return column_of_texts(name, codes, words, infinite=infinite)
    if kind == "b":
        return truth_column(name, series.to_numpy(dtype=np.float64, na_value=np.nan))
    if kind in "iuf":
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        if kind == "f" or not (np.abs(values) >= LARGEST_EXACT_INTEGER).any():
            return Column(name, "number", finite(values, name, infinite))
    if kind == "M":
        naive = series.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(dtype, "tz", None) else series
        moments = naive.to_numpy(dtype="datetime64[us]")
        return Column(name, "date", np.where(np.isnat(moments), np.nan, moments.astype(np.int64) / 1e6))
    if kind == "m":
        spans = series.to_numpy(dtype="timedelta64[us]")
        return Column(name, "number", np.where(np.isnat(spans), np.nan, spans.astype(np.int64) / 1e6))
    pandas = require("pandas", "tabular")
    if pandas.api.types.infer_dtype(series, skipna=True) == "string":
        codes, words = pandas.factorize(series)
        return column_of_texts(name, codes.astype(np.int64), [str(word) for word in words], infinite=infinite)
    return column_of_cells(name, series.to_numpy(dtype=object).tolist(), infinite)
