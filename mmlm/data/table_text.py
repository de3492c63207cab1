"""Delimited text files (CSV, TSV): encoding, separator, rows and cells.

The format is RFC 4180 with any of four separators; the separator is the one that cuts the first rows into equally many cells. A
quote that is never closed, a row with another number of cells than the header and bytes that are no text are errors with their
line, not guesses.
"""

from __future__ import annotations

import codecs
import csv
import logging
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.table_columns import Infinite, column_of_texts, encode_texts
from mmlm.data.table_marks import Notes
from mmlm.data.tables import Column

logger = logging.getLogger(__name__)

MISSING_TEXTS = frozenset({"", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-nan", "-NaN", "null", "NULL"})
SEPARATORS = (",", ";", "\t", "|")
MAX_LINE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS = 10_000
_SNIFFED_CHARACTERS, _SNIFFED_ROWS = 1 << 16, 50
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_NO_LATIN = bytes([*range(9), 11, 12, *range(14, 32), 127, *range(128, 160)])
_NO_WINDOWS = bytes([*range(9), 11, 12, *range(14, 32), 127, 0x81, 0x8D, 0x8F, 0x90, 0x9D])


def text_encoding(path: Path) -> str:
    """The encoding of a text file: by byte-order mark, else UTF-8, else Latin-1 or its Windows form, which is said in a log line.

    Raises DataError naming the line of bytes that are no text, or of a line longer than 64 MiB.
    """
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    if (undecodable := _first_undecodable(path, encoding)) is None:
        return encoding
    line, byte = undecodable
    if encoding != "utf-8":
        raise DataError(f"{path}, line {line}: is not {encoding}, which the mark at its start promises.")
    bad = (line, byte)
    for name, forbidden in (("latin-1", _NO_LATIN), ("cp1252", _NO_WINDOWS)):
        if (illegible := _first_of(path, forbidden)) is None:
            logger.warning("%s, line %d: byte 0x%02x is not UTF-8; the file is read as %s.", path, line, byte, name)
            return name
        bad = illegible
    raise DataError(f"{path}, line {bad[0]}: byte 0x{bad[1]:02x} is no text in UTF-8 or Latin-1. Save the file as UTF-8.")


def _first_undecodable(path: Path, encoding: str) -> tuple[int, int] | None:
    """Line and value of the first byte that is not of this encoding; DataError for a NUL character or an endless line."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, unbroken = 1, 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                return line + error.object[: error.start].count(b"\n"), error.object[error.start]
            if "\0" in text:
                at = line + text[: text.index("\0")].count("\n")
                raise DataError(f"{path}, line {at}: holds a NUL character. Is it a binary file, or UTF-16 without a byte-order mark?")
            last = max(text.rfind("\n"), text.rfind("\r"))
            unbroken = unbroken + len(text) if last < 0 else len(text) - last
            line += text.count("\n")
            if unbroken > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {line}: is longer than {MAX_LINE_BYTES} characters.")
            if not chunk:
                return None


def _first_of(path: Path, forbidden: bytes) -> tuple[int, int] | None:
    """Line and value of the first byte that is among `forbidden`."""
    line = 1
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            if len(chunk.translate(None, forbidden)) < len(chunk):
                at = next(at for at, byte in enumerate(chunk) if byte in forbidden)
                return line + chunk[:at].count(b"\n"), chunk[at]
            line += chunk.count(b"\n")
    return None


def sniff_separator(sample: str, whole: bool) -> str:
    """The separator that cuts the first rows of a text into equally many cells, at least two; the comma if none does.

    whole: the sample is the whole file; otherwise its last line may be cut off and is left out if there are others.
    """
    lines = sample.splitlines(keepends=True)
    if not whole and len(lines) > 1:
        lines.pop()
    best = (0.0, 1)
    found = ","
    for separator in SEPARATORS:
        try:
            rows = [row for row in islice(csv.reader(lines, delimiter=separator), _SNIFFED_ROWS) if row]
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 0
        score = (sum(len(row) == width for row in rows) / max(1, len(rows)), width)
        if width > 1 and score > best:
            best, found = score, separator
    return found


def _separator(file: TextIO) -> str:
    """The separator of an open text file, which stays at its start."""
    sample = file.read(_SNIFFED_CHARACTERS)
    file.seek(0)
    return sniff_separator(sample, len(sample) < _SNIFFED_CHARACTERS)


def delimited_rows(path: Path, separator: str | None) -> tuple[str, list[list[str]]]:
    """(separator, header and rows as they are written) of a file that `read_delimited` reads."""
    with path.open(encoding=text_encoding(path), newline="") as file:
        separator = separator or _separator(file)
        return separator, list(_rows(path, csv.reader(file, delimiter=separator, strict=True, skipinitialspace=separator != "\t")))


def lines_of_rows(path: Path, separator: str | None) -> list[int]:
    """The line on which each row of data ends."""
    with path.open(encoding=text_encoding(path), newline="") as file:
        separator = separator or _separator(file)
        reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
        return [reader.line_num for _ in _rows(path, reader)][1:]


def read_delimited(
    path: Path, separator: str | None, max_columns: int, limit_rows: int | None = None, infinite: Infinite = "error"
) -> list[Column]:
    """The columns of a delimited text file whose first line names them. separator: None finds it.

    Raises DataError naming file and line: no header, no text, too many columns, a name twice, a row with too few or too many
    cells, a quote that is never closed, an infinite number.
    """
    encoding = text_encoding(path)

    def place(row: int) -> str:
        return f"line {_line_of_row(path, encoding, separator or ',', row)}"

    with path.open(encoding=encoding, newline="") as file:
        separator = separator or _separator(file)
        reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
        header = next(_rows(path, reader), None)
        if header is None:
            raise DataError(f"{path}: is empty.")
        names = _header(path, header, reader.line_num, max_columns)
        known: list[defaultdict[str, int] | None] = [None] * len(names)
        codes: list[list[np.ndarray]] = [[] for _ in names]
        num_rows = 0
        while chunk := _chunk(path, reader, None if limit_rows is None else limit_rows - num_rows):
            for at, row in enumerate(chunk):
                if len(row) != len(names):
                    raise DataError(
                        f"{path}, {place(num_rows + at)}: has {len(row)} cells, "
                        f"{'more' if len(row) > len(names) else 'fewer'} than the {len(names)} columns that the header names."
                    )
            num_rows += len(chunk)
            for at, cells in enumerate(zip(*chunk)):
                chunk_codes, known[at] = encode_texts(cells, known[at])
                codes[at].append(chunk_codes.astype(np.int32))
    if num_rows == 0:
        raise DataError(f"{path}: has a header ({len(names)} columns), but no row.")

    notes = Notes()
    options: dict[str, Any] = {"missing": MISSING_TEXTS, "file": True, "infinite": infinite, "place": place, "notes": notes}
    try:
        found = [column_of_texts(name, np.concatenate(at), list(words or ()), **options) for name, at, words in zip(names, codes, known)]
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    notes.log(path)
    return found


def _rows(path: Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """Rows that are not blank, with the reader's faults told as DataError."""
    try:
        for row in reader:
            if row:
                yield row
    except csv.Error as error:
        hint = " Is there a quote that is never closed?" if "limit" in str(error) or "end of data" in str(error) else ""
        raise DataError(f"{path}, line {_line(reader)}: {error}.{hint}") from None


def _line(reader: Iterator[list[str]]) -> int:
    return reader.line_num  # type: ignore[attr-defined, no-any-return]


def _header(path: Path, cells: list[str], line: int, max_columns: int) -> list[str]:
    if len(cells) > max_columns:
        raise DataError(f"{path}, line {line}: has {len(cells)} columns, but at most {max_columns} can be read.")
    names = [cell.strip() or f"Unnamed: {at}" for at, cell in enumerate(cells)]
    first: dict[str, int] = {}
    for at, name in enumerate(names):
        if name in first:
            raise DataError(f"{path}, line {line}: columns {first[name] + 1} and {at + 1} have the same name {name!r}.")
        first[name] = at
    return names


def _chunk(path: Path, reader: Iterator[list[str]], limit_rows: int | None) -> list[list[str]]:
    return list(islice(_rows(path, reader), _CHUNK_ROWS if limit_rows is None else min(limit_rows, _CHUNK_ROWS)))


def _line_of_row(path: Path, encoding: str, separator: str, row: int) -> int:
    """The line on which a row of data ends."""
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
        next(islice(_rows(path, reader), row + 1, None), None)
        return reader.line_num
