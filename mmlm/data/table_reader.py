"""Tables from files: CSV, TSV, Parquet, Excel, JSON lines and Hugging Face data sets on disk.

Every fault of a file is one DataError that names the file and, where there is one, the line. Sizes are checked before anything of
that size is allocated, and nothing in a file is ever run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmlm.base.errors import DataError, MmlmError, nearest, require, unknown_name
from mmlm.base.files import parse_json
from mmlm.data.listed import check_unpacked
from mmlm.data.table_columns import Infinite, cell_text, column_of_cells, columns_of_frame
from mmlm.data.table_marks import Notes
from mmlm.data.table_media import CellKind, with_media
from mmlm.data.table_text import MISSING_TEXTS, delimited_rows, lines_of_rows, read_delimited, text_encoding
from mmlm.data.tables import Column, Table

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".csv", ".tsv", ".parquet", ".xlsx", ".jsonl")  # of files that are tables wherever they lie
MAX_COLUMNS = 20_000
_MAX_SHEET_ROWS, _MAX_SHEET_COLUMNS = 1_048_576, 16_384
_SHEET_ERRORS = frozenset({"#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!", "#N/A"})


class Options(NamedTuple):
    """What a reader of one format is asked for."""

    sheet: str | int | None
    limit_rows: int | None
    infinite: Infinite


def read_table(
    path: str | Path,
    *,
    target: str | None = None,
    sheet: str | int | None = None,
    limit_rows: int | None = None,
    infinite: Infinite = "error",
    kinds: Mapping[str, CellKind] | None = None,
    media: bool = True,
) -> Table:
    """A table from a file (.csv, .tsv, .parquet, .xlsx, .jsonl) or from the folder of a Hugging Face data set saved on disk.

    target: the column to predict. sheet: sheet of a workbook by name or number (default the first), or split of a data set.
    limit_rows: read only so many rows. infinite: whether an infinite number is an error or a missing cell. In text files and
    sheets the cells "", NA, N/A, NaN, null and their like are missing, and numbers and dates may be written as people write them
    (`table_marks`), which is said in a log line; a text file is UTF-8, UTF-16 with a byte-order mark, or
    else read as Latin-1 with a log line. kinds: what the cells of some columns are, in place of what is guessed (`table_media`); media:
    False leaves them all as texts and numbers.
    Raises DataError naming file and line for whatever is wrong with the file, a cell or the target.
    """
    path = Path(path)
    options = Options(sheet, limit_rows, infinite)
    if limit_rows is not None and limit_rows < 1:
        raise DataError(f"{path}: limit_rows must be at least 1, but is {limit_rows}.")
    try:
        columns = _reader(path)(path, options)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if not columns:
        raise DataError(f"{path}: no column is left to read.")
    table = Table(path.stem, columns)
    table = with_media(table, kinds or {}, path, partial(places_of_rows, path)) if media else table
    if table.num_rows == 0:
        raise DataError(f"{path}: has a header ({len(columns)} columns), but no row.")
    return table if target is None else checked_target(table, target, str(path))


def places_of_rows(path: Path) -> list[str]:
    """Where each row of a file stands, for messages: its line where the file has lines."""
    reader = _READERS.get(path.suffix.lower())
    if reader is _read_csv:
        return [f"{path}, line {line}" for line in lines_of_rows(path, _separator_of(path))]
    if reader is _read_json_lines:
        with path.open(encoding=text_encoding(path), newline="\n") as file:
            return [f"{path}, line {number}" for number, line in enumerate(file, start=1) if line.strip()]
    return []


def read_raw(path: Path) -> tuple[str, list[list[str]]] | None:
    """(separator, header and rows) of a delimited text file as they are written; None for a file of another kind.

    Raises DataError for a file without a header.
    """
    if not path.is_file() or _READERS.get(path.suffix.lower()) is not _read_csv:
        return None
    separator, rows = delimited_rows(path, _separator_of(path))
    if not rows:
        raise DataError(f"{path}: is empty.")
    return separator, rows


def checked_target(table: Table, target: str, where: str) -> Table:
    """The table with `target` set; DataError if it is no column, has no value, or the same value in every row."""
    if target not in table.names:
        raise DataError(f"{where}: target: {unknown_name('column', target, table.names)}")
    column = table.column(target)
    if column.missing.all():
        raise DataError(f"{where}: target {target!r} has no value: all {table.num_rows} cells are missing.")
    if column.num_distinct == 1:
        value = next(text for text in table.texts(target) if text is not None)
        raise DataError(f"{where}: target {target!r} has one class only, {value!r}; there is nothing to predict.")
    return table.with_target(target)


def _reader(path: Path) -> Callable[[Path, Options], list[Column]]:
    if path.is_dir():
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return _read_dataset
        raise DataError(f"{path}: is a folder, but not a Hugging Face data set saved on disk (it has no dataset_info.json).")
    if not path.exists():
        beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file.{nearest(path.name, beside)}")
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file.")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"{path}: {unknown_name('kind of table file', suffix, _READERS)}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty.")
    return _READERS[suffix]


def _checked_width(path: Path, width: int) -> None:
    if width > MAX_COLUMNS:
        raise DataError(f"{path}: has {width} columns, but at most {MAX_COLUMNS} can be read.")


def _separator_of(path: Path) -> str | None:
    return "\t" if path.suffix.lower() in (".tsv", ".tab") else None


def _read_csv(path: Path, options: Options) -> list[Column]:
    return read_delimited(path, _separator_of(path), MAX_COLUMNS, options.limit_rows, options.infinite)


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for at, key in enumerate(keys) if key in keys[:at])!r} occurs twice")
    return record


def _read_json_lines(path: Path, options: Options) -> list[Column]:
    names: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    with path.open(encoding=text_encoding(path), newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if len(records) == options.limit_rows:
                break
            try:
                record = parse_json(line, object_pairs_hook=_record)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: is not a JSON record: {error}.") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}, line {number}: must be a JSON object, but is a {type(record).__name__}.")
            if len(record) != len(names) or not names.keys() >= record.keys():
                names.update(dict.fromkeys(record))
                _checked_width(path, len(names))
            records.append(record)
            lines.append(number)
    if not records:
        raise DataError(f"{path}: holds no record.")
    return _cell_columns(path, list(names), lambda name: [record.get(name) for record in records], lines, options.infinite)


def _cell_columns(path: Path, names: list[str], cells_of: Callable[[str], list[Any]], lines: list[int], infinite: Infinite) -> list[Column]:
    notes = Notes()
    try:
        found = [column_of_cells(name, cells_of(name), infinite, lambda row: f"line {lines[row]}", notes) for name in names]
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: holds a cell that cannot be read: {error}.") from None
    notes.log(path)
    return [column for column in found if column is not None]


def _read_parquet(path: Path, options: Options) -> list[Column]:
    parquet = require("pyarrow.parquet", "tabular")
    arrow = require("pyarrow", "tabular")
    try:
        with parquet.ParquetFile(path) as file:
            _checked_width(path, max(file.metadata.num_columns, len(file.schema_arrow)))
            if options.limit_rows is None:
                frame = _frame_of(file.read())
            else:
                batches = list(islice(file.iter_batches(batch_size=options.limit_rows), 2))
                frame = _frame_of(arrow.Table.from_batches(batches, schema=file.schema_arrow).slice(0, options.limit_rows))
        return columns_of_frame(frame, str(path), options.infinite)
    except MmlmError:
        raise
    except Exception as error:  # a damaged file can fail in every layer of the decoder, each with errors of its own
        raise DataError(f"{path}: is not a readable Parquet file: {_first_line(error)}") from None


def _frame_of(table: Any) -> pd.DataFrame:
    table.validate(full=True)  # offsets of a damaged file could point anywhere in memory
    return table.to_pandas(ignore_metadata=True, integer_object_nulls=True, date_as_object=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def _read_dataset(path: Path, options: Options) -> list[Column]:
    datasets = require("datasets", "data")
    try:
        found = datasets.load_from_disk(str(path))
        if isinstance(found, dict):
            split = options.sheet if options.sheet is not None else "train" if "train" in found else next(iter(found))
            if split not in found:
                raise DataError(f"{path}: {unknown_name('split', str(split), found)}")
            found = found[split]
        _checked_width(path, found.num_columns)
        if options.limit_rows is not None:
            found = found.select(range(min(options.limit_rows, found.num_rows)))
        frame = _frame_of(found.with_format("arrow")[:])
        columns = columns_of_frame(frame, str(path), options.infinite)
        return [_named_classes(column, found.features.get(column.name)) for column in columns]
    except MmlmError:
        raise
    except Exception as error:
        raise DataError(f"{path}: is not a readable Hugging Face data set: {_first_line(error)}") from None


def _named_classes(column: Column, feature: Any) -> Column:
    """A column of class numbers with the names that the data set gives them."""
    words = getattr(feature, "names", None)
    if not words or column.kind != "number":
        return column
    return Column(column.name, "category", np.where(column.values < 0, np.nan, column.values), list(words))


def _read_workbook(path: Path, options: Options) -> list[Column]:
    openpyxl = require("openpyxl", "tabular")
    try:
        _check_unpacked_size(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            sheet = _sheet_of(path, book, options.sheet)
            sheet.reset_dimensions()
            return _sheet_columns(path, sheet, options)
        finally:
            book.close()
    except MmlmError:
        raise
    except Exception as error:
        raise DataError(f"{path}: is not a readable Excel workbook: {_first_line(error)}") from None


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        check_unpacked(path, sum(member.file_size for member in archive.infolist()))


def _sheet_of(path: Path, book: Any, sheet: str | int | None) -> Any:
    sheets = {found.title: found for found in book.worksheets}
    if isinstance(sheet, str):
        if sheet not in sheets:
            raise DataError(f"{path}: {unknown_name('sheet', sheet, sheets)}")
        return sheets[sheet]
    if not 0 <= (sheet or 0) < len(sheets):
        raise DataError(f"{path}: has no sheet number {sheet}; it has {len(sheets)}: {', '.join(sheets) or 'none'}.")
    return list(sheets.values())[sheet or 0]


def _sheet_columns(path: Path, sheet: Any, options: Options) -> list[Column]:
    header = next(sheet.iter_rows(max_row=1, max_col=_MAX_SHEET_COLUMNS, values_only=True), ())
    names = _sheet_header(path, header)
    rows: list[tuple[Any, ...]] = []
    lines: list[int] = []
    for line, row in _sheet_rows(path, sheet, len(names)):
        if len(rows) == options.limit_rows:
            break
        rows.append(row)
        lines.append(line)
    cells = dict(zip(names, zip(*rows))) if rows else dict.fromkeys(names, ())
    return _cell_columns(path, names, lambda name: [_sheet_cell(cell) for cell in cells[name]], lines, options.infinite)


def _sheet_header(path: Path, header: tuple[Any, ...]) -> list[str]:
    width = max((at for at, cell in enumerate(header, start=1) if cell is not None), default=0)
    if width == 0:
        raise DataError(f"{path}, line 1: the sheet has no header.")
    names = ["" if cell is None else cell_text(cell).strip() for cell in header[:width]]
    names = [name or f"Unnamed: {at}" for at, name in enumerate(names)]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise DataError(f"{path}, line 1: columns {names.index(name) + 1} and {at + 1} have the same name {name!r}.")
    return names


def _sheet_rows(path: Path, sheet: Any, width: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Line number and cells of each row that is not empty."""
    for line, row in enumerate(sheet.iter_rows(min_row=2, max_col=2 * width + 16, values_only=True), start=2):
        if line > _MAX_SHEET_ROWS:
            raise DataError(f"{path}, line {line}: a sheet has at most {_MAX_SHEET_ROWS} rows.")
        filled = max((at for at, cell in enumerate(row, start=1) if cell is not None), default=0)
        if filled > width:
            raise DataError(f"{path}, line {line}: has {filled} cells, but the header names {width} columns.")
        if filled:
            yield line, (*row[:width], *[None] * (width - len(row)))


def _sheet_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        return None if cell.strip() in MISSING_TEXTS or cell in _SHEET_ERRORS else cell
    return cell if isinstance(cell, bool | int | float | date) or cell is None else str(cell)


def _read_old_workbook(path: Path, options: Options) -> list[Column]:
    raise DataError(f"{path}: is a workbook of the old binary kind. Save it as .xlsx or .csv.")


_READERS: dict[str, Callable[[Path, Options], list[Column]]] = {
    ".csv": _read_csv,
    ".txt": _read_csv,
    ".tsv": _read_csv,
    ".tab": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".xlsx": _read_workbook,
    ".xlsm": _read_workbook,
    ".xls": _read_old_workbook,
}
