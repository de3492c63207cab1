"""What of a table is worth training on, which column to predict, and how to keep tables of the test apart.

Filters and target choice are those of TabuLa's training set (Gardner et al. 2024, arXiv:2406.12031). Two differences: the
language of a table is judged by its share of ASCII letters, since no language classifier is at hand, and every drop is told with
its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from mmlm.data.config import TableCleaning
from mmlm.data.tables import Column, Table

_INDEX_NAMES = frozenset(
    {
        *("id", "ids", "index", "idx", "obs", "obsnumber", "row", "rows", "level_0", "__index_level_0__", "uuid", "guid"),
        *(word + mark + end for word in ("row", "rec", "record", "case") for mark in ("", ".", "_") for end in ("id", "num", "number")),
        *("row" + mark + end for mark in ("", ".", "_") for end in ("name", "names")),
    }
)
_UNNAMED = re.compile(r"(unnamed(:\s*\d+)?|v\d+|column\s*\d+|\.\.\.\d+)?", re.IGNORECASE)
_BLANK_NAME = re.compile(r"(unnamed(:\s*\d+.*)?)?", re.IGNORECASE)
_NUMERIC_NAME = re.compile(r"x?-?\d+([.,]\d+)?", re.IGNORECASE)
_PII = re.compile(
    r"[\w.+-]+@[\w-]+\.[a-z]{2,}|(\+\d{1,3}[ .-]?)?\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b|\b\d{3}-\d{2}-\d{4}\b|\b(\d{1,3}\.){3}\d{1,3}\b",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"</?[a-z][^<>]*>|\bfunction\s*\w*\(|\bdef \w+\(|#include\b|\bselect\b.+\bfrom\b|\b(var|let|const) \w+ =|[{};]\s*\n|\(\) *\{|</|/>",
    re.IGNORECASE,
)
_NULL_LIKE = frozenset({"", "-", "--", "?", ".", "na", "n/a", "nan", "null", "none", "nil", "missing", "unknown", "#n/a", "<na>"})
ID_LIKE_RATIO = 0.95
MIN_ROWS_TO_CALL_IDS = 20


class Drop(NamedTuple):
    """What was left out of a table, and why. what: "table", "column", "columns" or "rows"; name: the table or the column."""

    what: Literal["table", "column", "columns", "rows"]
    name: str
    reason: str


def index_like(column: Column) -> bool:
    """Whether a column only numbers the rows: by its name, or by counting up by one under a name that says nothing."""
    name = column.name.strip().lower()
    if name in _INDEX_NAMES or _BLANK_NAME.fullmatch(name):
        return True
    counts = column.kind == "number" and len(column) > 2 and bool((np.diff(column.values) == 1).all())
    return counts and (name in ("x", "no", "no.", "nr", "num", "number", "case", "n", "obs.", "#") or bool(_UNNAMED.fullmatch(name)))


def id_like(column: Column) -> bool:
    """Whether a column is text that names nearly every row differently: over 95 % distinct, in 20 rows or more."""
    present = int((~column.missing).sum())
    return column.kind == "category" and present >= MIN_ROWS_TO_CALL_IDS and column.num_distinct > ID_LIKE_RATIO * present


def useless_columns(table: Table, *, index: bool = True, ids: bool = True) -> list[Drop]:
    """Columns that tell nothing about a row: all missing, constant, index-like, id-like. The target is never among
    them."""
    drops = []
    for column in table.columns:
        if column.name == table.target:
            continue
        reason = ""
        if column.missing.all():
            reason = "all its cells are missing"
        elif index and index_like(column):
            reason = "it numbers the rows"
        elif column.num_distinct < 2:
            reason = "it has one value only"
        elif ids and id_like(column):
            reason = f"its texts are distinct in over {ID_LIKE_RATIO:.0%} of the rows"
        if reason:
            drops.append(Drop("column", column.name, reason))
    return drops


def drop_useless_columns(table: Table) -> tuple[Table, list[Drop]]:
    """The table without its useless columns, and which they were."""
    drops = useless_columns(table)
    return table.drop([drop.name for drop in drops]), drops


def clean(table: Table, config: TableCleaning, rng: np.random.Generator) -> tuple[Table | None, list[Drop]]:
    """The table after all filters, or None if it is not to be trained on, and everything that was dropped with its reason.

    rng: draws the rows and columns kept of a table that has too many.
    """
    drops: list[Drop] = []
    if reason := _table_fault(table, config):
        return None, [Drop("table", table.name, reason)]
    for column in table.columns:
        if column.kind == "category" and (share := _private_share(column)) > config.max_private_cells:
            reason = f"{share:.0%} of the cells of column {column.name!r} look like personal data or code"
            return None, [Drop("table", table.name, reason)]
    drops += useless_columns(table, index=config.drop_index_columns, ids=config.drop_id_columns)
    gone = {drop.name for drop in drops}
    for column in table.columns:
        if column.name not in gone and column.name != table.target and (reason := _column_fault(column, config)):
            drops.append(Drop("column", column.name, reason))
    table = table.drop([drop.name for drop in drops])
    table, row_drops = _clean_rows(table, config)
    drops += row_drops
    for count, least, what in ((table.num_rows, config.min_rows, "rows"), (len(table.columns), config.min_columns, "columns")):
        if count < least:
            return None, [*drops, Drop("table", table.name, f"{count} {what} are left, but {least} are needed")]
    return _sampled(table, config, rng, drops), drops


def _table_fault(table: Table, config: TableCleaning) -> str:
    names = table.names
    for count, least, what in ((table.num_rows, config.min_rows, "rows"), (len(names), config.min_columns, "columns")):
        if count < least:
            return f"it has {count} {what}, but {least} are needed"
    numeric = sum(bool(_NUMERIC_NAME.fullmatch(name.strip())) for name in names) / len(names)
    if numeric > config.max_numeric_names:
        return f"{numeric:.0%} of its column names are numbers"
    unnamed = sum(bool(_UNNAMED.fullmatch(name.strip())) for name in names) / len(names)
    if unnamed > config.max_unnamed:
        return f"{unnamed:.0%} of its columns have no name"
    letters = ascii_letters([*names, *(word for column in table.columns for word in column.words[:100])])
    return f"{letters:.0%} of its letters are ASCII" if letters < config.min_ascii_letters else ""


def ascii_letters(texts: Iterable[str]) -> float:
    """Share of ASCII among the letters of some texts; 1 if there are none."""
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) / len(letters) if letters else 1.0


def _per_cell(column: Column, words: Sequence[bool]) -> np.ndarray:
    """What holds for each word of a category, as bool [rows]; false where missing and in other columns."""
    if column.kind != "category":
        return np.zeros(len(column), dtype=bool)
    return np.array([*words, False])[column.codes()]


def _private(text: str) -> bool:
    return bool(_PII.search(text) or _CODE.search(text))


def _private_share(column: Column) -> float:
    present = int((~column.missing).sum())
    return float(_per_cell(column, [_private(word) for word in column.words]).sum() / present) if present else 0.0


def _column_fault(column: Column, config: TableCleaning) -> str:
    if len(column.name) > config.max_name_characters:
        return f"its name has {len(column.name)} characters"
    if column.num_distinct < config.min_distinct:
        return f"it has {column.num_distinct} distinct values"
    empty = column.missing | _per_cell(column, [word.strip().lower() in _NULL_LIKE for word in column.words])
    return f"{empty.mean():.0%} of its cells are missing" if empty.mean() > config.max_missing else ""


def _clean_rows(table: Table, config: TableCleaning) -> tuple[Table, list[Drop]]:
    drops, bad = [], np.zeros(table.num_rows, dtype=bool)
    for column in table.columns:
        if column.kind == "category":
            long = [len(word) > config.max_cell_characters for word in column.words]
            marked = [any(marker in word for marker in config.markers) for word in column.words]
            bad |= _per_cell(column, [x or y or _private(word) for x, y, word in zip(long, marked, column.words)])
    if bad.any():
        drops.append(Drop("rows", table.name, f"{int(bad.sum())} rows have a very long cell, a marker, personal data or code"))
        table = table.take(~bad)
    if config.drop_duplicate_rows and table.columns:
        first = distinct_rows(table)
        if len(first) < table.num_rows:
            drops.append(Drop("rows", table.name, f"{table.num_rows - len(first)} rows occur twice"))
            table = table.take(first)
    return table, drops


def distinct_rows(table: Table) -> np.ndarray:
    """Indices, in order, of the rows that equal no earlier one; missing cells equal one another."""
    cells_ro = np.stack([np.where(column.missing, np.nan, column.values + 0.0) for column in table.columns], axis=1)
    rows = np.ascontiguousarray(cells_ro).view(np.dtype((np.void, cells_ro.shape[1] * 8))).ravel()
    return np.sort(np.unique(rows, return_index=True)[1])


def _sampled(table: Table, config: TableCleaning, rng: np.random.Generator, drops: list[Drop]) -> Table:
    if (count := table.num_rows) > config.max_rows:
        drops.append(Drop("rows", table.name, f"{config.max_rows} of {count} rows are drawn"))
        table = sample_rows(table, config.max_rows, rng)
    if (count := len(table.columns)) > config.max_columns:
        drops.append(Drop("columns", table.name, f"{config.max_columns} of {count} columns are drawn"))
        kept = set(rng.choice(table.features, config.max_columns - (table.target is not None), replace=False))
        table = table.select([name for name in table.names if name in kept or name == table.target])
    return table


def sample_rows(table: Table, num_rows: int, rng: np.random.Generator) -> Table:
    """At most `num_rows` rows, drawn without replacement, in their old order."""
    if table.num_rows <= num_rows:
        return table
    return table.take(np.sort(rng.choice(table.num_rows, num_rows, replace=False)))


def target_candidates(table: Table) -> tuple[list[str], list[str]]:
    """Names of the columns that could be a target: numbers, and categories.

    A candidate has a name and two distinct values or more; a category is not distinct in every row and has no text over 256
    characters. Dates are never targets.
    """
    numbers, others = [], []
    for column in table.columns:
        if column.kind == "date" or _BLANK_NAME.fullmatch(column.name.strip()) or column.num_distinct < 2:
            continue
        if column.kind == "number":
            numbers.append(column.name)
        elif column.num_distinct < (~column.missing).sum() and max(map(len, column.used_words())) <= 256:
            others.append(column.name)
    return numbers, others


def choose_target(table: Table, rng: np.random.Generator, number_share: float = 0.1) -> str | None:
    """A target drawn for training: a number with probability `number_share`, else a category; uniform inside each group.

    None if no column can be one; where a group is empty, the other is drawn from.
    """
    numbers, others = target_candidates(table)
    group = numbers if not others or (numbers and rng.random() < number_share) else others
    return group[int(rng.integers(len(group)))] if group else None


Split = Literal["train", "valid", "test"]


def split_of(table: Table, *, valid: float = 0.1, test: float = 0.1, seed: int = 0) -> Split:
    """The split a table belongs to, by the hash of its header and shape: tables that share them never cross splits."""
    digest = hashlib.blake2b(f"{seed}:{table.header_hash()}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "little") / 2**64
    return "test" if place < test else "valid" if place < test + valid else "train"


def without_copies(tables: Iterable[Table]) -> list[Table]:
    """The tables without those whose content equals an earlier one's."""
    first: dict[str, Table] = {}
    for table in tables:
        first.setdefault(table.content_hash(), table)
    return list(first.values())
