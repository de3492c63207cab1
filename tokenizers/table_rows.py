"""Rows of tables as text, and back.

A prompt asks for one cell of a row and lists the possible answers; its completion is that cell:

    Predict the species ||cat||dog|| The weight is 4.5. The sound is meow. What is the value of species? ||cat||dog||<|endinput|>
    cat<|endcompletion|>

Source: TabuLa-8B's serializer (Gardner et al. 2024, arXiv:2406.12031). Ours: missing cells are left out, long cells lose their
middle, markers inside cells are broken up so that no cell can end a prompt, and the forms beside the sentences. Rank and scale of
a number come from the example rows alone.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

import numpy as np

from mmlm.base.errors import DataError
from mmlm.base.files import parse_json
from mmlm.tokenizers.config import RowText
from mmlm.tokenizers.table_cells import standard_scores

END_INPUT = "<|endinput|>"
END_COMPLETION = "<|endcompletion|>"
SEPARATOR = "||"
KEY, VALUE, CHOICES = ("<|key|>", "<|/key|>"), ("<|value|>", "<|/value|>"), ("<|choices|>", "<|/choices|>")
ELLIPSIS = "\u2026"
MISSING_WORD, MISSING_NAN = "missing", "nan"
_MARKER = re.compile(r"<\|(/?\w+)\|>")
_METAFEATURES = r" \(quantile:[-+.e0-9]+, scale:[-+.e0-9]+\)"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class ColumnLike(Protocol):
    """What is asked of a column: name, kind ("number", "category", "date") and float64 cells [rows], NaN = missing."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def kind(self) -> Any: ...  # noqa: D102

    @property
    def values(self) -> np.ndarray: ...  # noqa: D102


class TableLike(Protocol):
    """What is asked of a table: its columns, some of its rows, and its cells as text (None = missing)."""

    @property
    def columns(self) -> Sequence[ColumnLike]: ...  # noqa: D102

    @property
    def num_rows(self) -> int: ...  # noqa: D102

    def take(self, rows: Any) -> Any: ...  # noqa: D102

    def texts(self, column: str, max_precision: int | None = None) -> list[str | None]: ...  # noqa: D102


def special_tokens(config: RowText) -> list[str]:
    """The markers that a vocabulary needs as single tokens."""
    pairs = (KEY, VALUE, CHOICES) if config.form == "structured" else ()
    return [END_INPUT, END_COMPLETION, *(marker for pair in pairs for marker in pair)]


@dataclass(frozen=True)
class ShotStatistics:
    """What the example rows say of their columns: sorted values of numbers, first moment of dates (seconds)."""

    ordered: Mapping[str, np.ndarray]
    first: Mapping[str, float]

    @staticmethod
    def of(shots: TableLike) -> ShotStatistics:
        """The statistics of some example rows; nothing of a row to predict may be among them."""
        present = {column.name: column.values[~np.isnan(column.values)] for column in shots.columns}
        kinds = {column.name: column.kind for column in shots.columns}
        return ShotStatistics(
            {name: np.sort(values) for name, values in present.items() if kinds[name] == "number" and len(values)},
            {name: float(values.min()) for name, values in present.items() if kinds[name] == "date" and len(values)},
        )

    def described(self, column: ColumnLike) -> list[str]:
        """Name, rank and scale for each cell of a number column: "age (quantile:0.93, scale:1.4)"; of a missing one the name alone.

        Rank is the share of examples below (half of those equal), scale the distance from their mean in standard deviations.
        """
        ordered, values = self.ordered[column.name], np.nan_to_num(column.values)
        ranks = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))
        scores, name = standard_scores(values, ordered), written_name(column.name)
        told = [f"{name} (quantile:{rank:.2g}, scale:{score:.2g})" for rank, score in zip(ranks.tolist(), scores.tolist())]
        return [name if gone else each for each, gone in zip(told, np.isnan(column.values).tolist())]


def clean_text(text: str, max_characters: int | None = None) -> str:
    """A cell as it is written: stripped, without one full stop at its end, markers broken up, its middle left out if it is too
    long."""
    text = text.strip()
    text = text.removesuffix(".").rstrip() or text
    text = _MARKER.sub(r"< |\1| >", text)
    if max_characters is not None and len(text) > max_characters:
        tail = (max_characters - 1) // 2
        text = text[: max_characters - 1 - tail] + ELLIPSIS + text[len(text) - tail :]
    return text


def clean_label(text: str) -> str:
    """An answer as it is written in the list of choices and in the completion."""
    return clean_text(text).replace(SEPARATOR, "| |")


def completion(label: str) -> str:
    """The text after a prompt: the answer and the end of the completion."""
    return clean_label(label) + END_COMPLETION


def _mapped(texts: Sequence[str | None], change: Callable[[str], str]) -> list[str | None]:
    """Each text changed, once per distinct text; None stays."""
    changed: dict[str | None, str | None] = {text: change(text) for text in set(texts) if text is not None}
    changed[None] = None
    return [changed[text] for text in texts]


@dataclass(frozen=True)
class _Form:
    """How names and cells become a row: start + separator.join(before(name) + cell + after) + end, set between questions by
    `glue`."""

    before: Callable[[str], str]
    after: str
    separator: str
    escape: Callable[[str], str] = str
    start: str = ""
    end: str = ""
    glue: str = " "


def _escaped(letters: str) -> Callable[[str], str]:
    names = {"\n": "n", "\r": "r"}
    return lambda text: re.sub(f"[{re.escape(letters)}]", lambda found: "\\" + names.get(found[0], found[0]), text)


def _unescaped(text: str) -> str:
    letters = {"n": "\n", "r": "\r"}
    return re.sub(r"\\(.)", lambda found: letters.get(found[1], found[1]), text)


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _csv_cell(text: str) -> str:
    return _csv_line([text, ""])[:-1]


def _json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_line, _bar = _escaped("\\\n\r"), _escaped("\\\n\r|")
_FORMS = {
    "template": _Form(lambda name: f"The {name} is ", ".", " "),
    "list": _Form(lambda name: f"- {_line(name)}: ", "", "\n", _line, glue="\n"),
    "json": _Form(lambda name: f"{_json_text(name)}: ", "", ", ", _json_text, "{", "}"),
    "markdown": _Form(lambda name: f"| {_bar(name)} | ", " |", "\n", _bar, "| column | value |\n|---|---|\n", glue="\n"),
    "csv": _Form(lambda name: "", "", ",", _csv_cell),
    "structured": _Form(lambda name: f"{KEY[0]}{name}{KEY[1]}{VALUE[0]}", VALUE[1], ""),
}


def written_name(name: str) -> str:
    """A column name as it is written: on one line, markers broken up."""
    return _MARKER.sub(r"< |\1| >", " ".join(name.split()))


def row_sentences(row: Mapping[Any, Any]) -> str:
    """One row, whatever its cells are, in the sentences of a prompt: "The weight is 4.5. The sound is meow." Missing cells are left out."""
    shown = {str(name): cell for name, cell in row.items() if cell is not None and cell == cell}
    return " ".join(f"The {written_name(name)} is {clean_text(str(cell))}." for name, cell in shown.items())


class _Cells(NamedTuple):
    """One written column: its name, or one name per row; its cells; whether they are numbers."""

    name: str | list[str]
    texts: list[str | None]
    is_number: bool


def _cells(table: TableLike, target: str, config: RowText, statistics: ShotStatistics | None) -> list[_Cells]:
    found = []
    for column in table.columns:
        if column.name == target:
            continue
        texts = table.texts(column.name, config.max_precision)
        if (meanings := config.dictionary.get(column.name)) or column.kind == "category":
            known = meanings or {}
            texts = _mapped(texts, lambda text, known=known: clean_text(known.get(text, text), config.max_cell_characters))  # type: ignore[misc]
        is_number = column.kind == "number" and not meanings
        described = config.metafeatures and statistics is not None and column.name in statistics.ordered
        names = statistics.described(column) if described and statistics else written_name(column.name)
        found.append(_Cells(names, texts, is_number))
        if config.expand_dates and column.kind == "date":
            found += _date_parts(column, statistics)
    return found


def _date_parts(column: ColumnLike, statistics: ShotStatistics | None) -> list[_Cells]:
    moments = [None if np.isnan(seconds) else _EPOCH + timedelta(seconds=seconds) for seconds in column.values.tolist()]
    parts: dict[str, Callable[[datetime], str]] = {
        "year": lambda moment: str(moment.year),
        "month": lambda moment: str(moment.month),
        "weekday": lambda moment: _WEEKDAYS[moment.weekday()],
    }
    if statistics is not None and column.name in statistics.first:
        first = _EPOCH + timedelta(seconds=statistics.first[column.name])
        parts["days since the first"] = lambda moment: f"{(moment - first) / timedelta(days=1):.6g}"
    name = written_name(column.name)
    return [
        _Cells(f"{name} {part}", [None if moment is None else write(moment) for moment in moments], part != "weekday")
        for part, write in parts.items()
    ]


def _pieces(cells: _Cells, config: RowText) -> list[str | None]:
    """Name and cell of each row as text, None where nothing is written."""
    form = _FORMS[config.form]
    texts = cells.texts if cells.is_number or form.escape is str else _mapped(cells.texts, form.escape)
    if config.missing != "omit" and None in texts:
        word = form.escape(MISSING_WORD if config.missing == "word" else MISSING_NAN)
        texts = [word if text is None else text for text in texts]
    if isinstance(cells.name, str):
        before, after = form.before(cells.name), form.after
        return [None if text is None else f"{before}{text}{after}" for text in texts]
    names = zip(cells.name, texts)
    return [None if text is None else f"{form.before(name)}{text}{form.after}" for name, text in names]


def write_bodies(
    table: TableLike,
    target: str,
    config: RowText,
    *,
    statistics: ShotStatistics | None = None,
    rng: np.random.Generator | None = None,
) -> list[str]:
    """The cells of every row as text, without the question; column by column, so that many rows are quick.

    statistics: of the example rows, needed for metafeatures. rng: draws the column orders and the cells that are dropped.
    """
    if config.metafeatures and statistics is None:
        raise DataError("metafeatures need the statistics of some example rows.")
    if rng is None and (config.shuffle_columns or config.feature_dropout):
        raise DataError("shuffle_columns and feature_dropout need a random generator.")
    pieces = [_pieces(cells, config) for cells in _cells(table, target, config, statistics)]
    form = _FORMS[config.form]
    if not pieces:
        return [form.start + form.end] * table.num_rows
    if rng is not None and config.feature_dropout:
        kept_or = rng.random((len(pieces), table.num_rows)) >= config.feature_dropout
        kept_or[rng.integers(len(pieces), size=table.num_rows), np.arange(table.num_rows)] = True
        pieces = [[p if k else None for p, k in zip(piece, kept)] for piece, kept in zip(pieces, kept_or.tolist())]
    rows: Iterable[Sequence[str | None]] = zip(*pieces)
    if rng is not None and config.shuffle_columns:
        orders_ro = rng.permuted(np.tile(np.arange(len(pieces)), (table.num_rows, 1)), axis=1)
        rows = ([row[at] for at in order] for row, order in zip(rows, orders_ro.tolist()))
    if any(None in piece for piece in pieces):
        if config.form == "csv":
            rows = ([cell or "" for cell in row] for row in rows)
        else:
            rows = (filter(None, row) for row in rows)  # type: ignore[misc]
    joined = map(form.separator.join, rows)  # type: ignore[arg-type]
    return [f"{form.start}{row}{form.end}" for row in joined] if form.start or form.end else list(joined)


def header(table: TableLike, target: str, config: RowText) -> str:
    """The line before the first row that names the columns, for cells under one header; else nothing."""
    if config.form != "csv":
        return ""
    names = [str(cells.name) for cells in _cells(table.take([]), target, config, None)]
    return f"Columns: {_csv_line(names)}\n" if names else ""


def question(target: str, options: Sequence[str], config: RowText) -> tuple[str, str]:
    """The texts before and after the cells: what is to be predicted, and the possible answers (none: a free answer)."""
    block = ""
    if options:
        block = SEPARATOR.join(["", *map(clean_label, options), ""])
        block = f"{CHOICES[0]}{block}{CHOICES[1]}" if config.form == "structured" else block
    name = written_name(target)
    before = f"Predict the {name}" + (f" {block}" if block and config.choices != "back" else "")
    after = f"What is the value of {name}?" + (f" {block}" if block and config.choices != "front" else "")
    return before, after + END_INPUT


def _framed(before: str, body: str, after: str, glue: str) -> str:
    return f"{before}{glue}{body}{glue}{after}" if body else f"{before}{glue}{after}"


def write_rows(
    table: TableLike,
    target: str,
    options: Sequence[str] | Sequence[Sequence[str]],
    config: RowText,
    *,
    statistics: ShotStatistics | None = None,
    rng: np.random.Generator | None = None,
) -> list[str]:
    """The prompt of every row. options: the possible answers, the same for all rows or a list for each."""
    bodies = write_bodies(table, target, config, statistics=statistics, rng=rng)
    glue = _FORMS[config.form].glue
    if options and not isinstance(options[0], str):
        frames = [question(target, list(own), config) for own in options]
        return [_framed(before, body, after, glue) for body, (before, after) in zip(bodies, frames, strict=True)]
    before, after = question(target, [str(option) for option in options], config)
    return [_framed(before, body, after, glue) for body in bodies]


def serialize(
    table: TableLike,
    row: int,
    target: str,
    choices: Sequence[str],
    config: RowText | None = None,
    *,
    statistics: ShotStatistics | None = None,
    rng: np.random.Generator | None = None,
) -> str:
    """The prompt of one row, ending with the mark after which the answer is written. choices: the possible answers, may be
    empty."""
    config = config or RowText()
    only = table.take([row])
    return header(only, target, config) + write_rows(only, target, choices, config, statistics=statistics, rng=rng)[0]


def parse(prompt: str, target: str, names: Sequence[str], choices: Sequence[str], config: RowText | None = None) -> dict[str, str]:
    """The cells of a prompt by column name, as they were written; cells that were left out are not among them.

    names: of all columns that may have been written (for cells under a header: those written, in order). Exact unless a cell
    holds the beginning of another cell, such as "The age is ". Raises DataError if the text is no prompt of this kind.
    """
    config = config or RowText()
    before, after = question(target, choices, config)
    glue = _FORMS[config.form].glue
    text = prompt.partition("\n")[2] if config.form == "csv" and prompt.startswith("Columns: ") else prompt
    start, end = len(before) + len(glue), text.rfind(glue + after)
    if not text.startswith(before + glue) or end < 0:
        raise DataError(f"no prompt for {target!r} in form {config.form} with these choices: {prompt[:80]!r}.")
    return parse_body(text[start:end], names, config) if end >= start else {}


def parse_body(body: str, names: Sequence[str], config: RowText) -> dict[str, str]:
    """The cells of a row written by `write_bodies`; also reads rows that a model wrote. Raises DataError if it cannot be read."""
    known = {written_name(name): name for name in names}
    form = _FORMS[config.form]
    if not (body.startswith(form.start) and body.endswith(form.end)):
        raise DataError(f"no row in form {config.form}: {body[:80]!r}.")
    if config.form == "csv":
        try:
            cells = next(csv.reader([body], strict=True), [])
        except csv.Error as error:
            raise DataError(f"no row of cells: {error}: {body[:80]!r}.") from None
        if len(cells) != len(names):
            raise DataError(f"the row has {len(cells)} cells, but there are {len(names)} columns: {body[:80]!r}.")
        return {name: cell for name, cell in zip(names, cells) if cell}
    if config.form == "json":
        try:
            found = parse_json(body, parse_int=str, parse_float=str)
        except ValueError:
            raise DataError(f"no JSON object: {body[:80]!r}.") from None
        found = {re.sub(f"{_METAFEATURES}$", "", name): value for name, value in found.items()}
        return {known[name]: value for name, value in found.items() if name in known and isinstance(value, str)}
    return _parse_pieces(body[len(form.start) :], known, form)


def _parse_pieces(text: str, known: Mapping[str, str], form: _Form) -> dict[str, str]:
    """Cells that begin with a known name, at the start or after the end of the cell before."""
    beginnings = {}
    for name in known:
        opening, closing = form.before(f"{name}\0").split("\0")
        beginnings[opening] = (known[name], closing)
    names = "|".join(re.escape(opening) for opening in sorted(beginnings, key=len, reverse=True))
    closing = re.escape(form.before("\0").split("\0")[1])
    border = re.escape(form.after + form.separator)
    found: list[tuple[str, int, int]] = []
    for match in re.finditer(f"(?:^|(?<={border}))({names})(?:{_METAFEATURES})?{closing}", text):
        name = beginnings[match[1]][0]
        if all(name != earlier for earlier, _, _ in found):
            found.append((name, match.start(), match.end()))
    cells = {}
    for at, (name, _, start) in enumerate(found):
        end = found[at + 1][1] - len(form.separator) if at + 1 < len(found) else len(text)
        cell = text[start:end].removesuffix(form.after)
        cells[name] = cell if form.escape is str else _unescaped(cell)
    return cells
