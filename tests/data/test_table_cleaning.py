"""Cleaning, target choice, splits and copies of tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mmlm.base.errors import RecipeError
from mmlm.base.schema import check
from mmlm.data.config import TableCleaning
from mmlm.data.table_cleaning import (
    choose_target,
    clean,
    distinct_rows,
    drop_useless_columns,
    split_of,
    without_copies,
)
from mmlm.data.tables import Table


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made(rows: int = 80, **columns) -> Table:
    """A table that passes every filter, with columns changed or added."""
    base = {name: rng(at).standard_normal(rows) for at, name in enumerate(["height", "width", "weight", "age", "price"])}
    base["colour"] = rng(9).choice(["red", "green", "blue"], rows)
    return Table.from_frame(pd.DataFrame(base | columns), "made")


def test_a_good_table_passes_unchanged():
    table, drops = clean(made(), TableCleaning(), rng())
    assert table is not None and drops == [] and table.content_hash() == made().content_hash()


ROWS = range(80)
TABLES = [
    ({"rows": 63}, "63 rows, but 64 are needed"),
    ({f"{year}": np.arange(80.0) ** 2 for year in (1990, 1991)}, "25% of its column names are numbers"),
    ({f"Unnamed: {at}": rng(at).random(80) for at in range(8)}, "57% of its columns have no name"),
    ({"mail": [f"who{at % 9}@example.org" for at in ROWS]}, "100% of the cells of column 'mail' look like personal data"),
    ({"call": ["+47 221-555-0123" if at % 10 == 0 else "none" for at in ROWS]}, "10% of the cells of column 'call'"),
    ({"page": ["<div class='x'>" if at % 8 == 0 else "text" for at in ROWS]}, "12% of the cells of column 'page'"),
    ({"\u0446\u0432\u0435\u0442" * 40: rng(1).random(80)}, "of its letters are ASCII"),
]


@pytest.mark.parametrize(("columns", "reason"), TABLES, ids=range(len(TABLES)))
def test_tables_that_are_not_trained_on_are_dropped_with_the_reason(columns, reason):
    table, drops = clean(made(**columns), TableCleaning(), rng())
    assert table is None and len(drops) == 1 and drops[0].what == "table" and reason in drops[0].reason


COLUMNS = [
    ("rownames", ROWS, "numbers the rows"),
    ("Unnamed: 0", [f"r{at % 3}" for at in ROWS], "numbers the rows"),
    ("ID", rng(3).permutation(80), "numbers the rows"),
    ("X", ROWS, "numbers the rows"),
    ("title", [f"name {at}" for at in ROWS], "distinct in over 95%"),
    ("same", ["a"] * 80, "one value only"),
    ("gone", [None] * 80, "all its cells are missing"),
    ("thin", [1.5, 2.5, *[None] * 9, *rng(5).random(69)], "11% of its cells are missing"),
    ("marks", [*["?"] * 9, *rng(5).choice(["a", "b"], 71)], "11% of its cells are missing"),
    ("long " * 60, rng(5).random(80), "its name has 300 characters"),
]


@pytest.mark.parametrize(("name", "cells", "reason"), COLUMNS, ids=[name[:10] for name, _, _ in COLUMNS])
def test_columns_that_tell_nothing_are_dropped_with_the_reason(name, cells, reason):
    table, drops = clean(made(**{name: pd.Series(list(cells))}), TableCleaning(), rng())
    assert table is not None and name not in table.names and len(table.columns) == 6
    assert [drop for drop in drops if drop.what == "column"][0][:2] == ("column", str(name)) and reason in drops[0].reason


def test_columns_that_only_look_useless_stay():
    table = made(X=rng(7).random(80), few_ids=[f"name {at // 2}" for at in ROWS], day=pd.date_range("2020-01-01", periods=80))
    assert drop_useless_columns(table) == (table, []) or drop_useless_columns(table)[1] == []
    target = made(rownames=ROWS).with_target("rownames")
    assert drop_useless_columns(target)[0].names == target.names
    short = Table.from_frame(pd.DataFrame({"name": list("abcdefgh"), "y": [0, 1] * 4}), "short")
    assert drop_useless_columns(short)[1] == []


def test_rows_with_long_marked_private_or_copied_cells_are_dropped_and_many_are_sampled():
    notes = ["plain a", "plain b"] * 120
    notes[3], notes[5], notes[7] = "x" * 20_000, "an <|endinput|> inside", "write to me@example.org"
    table = made(240, note=notes)
    table = table.take([*range(240), 0, 1, 1])
    cleaned, drops = clean(table, TableCleaning(max_rows=100), rng())
    assert [drop.reason for drop in drops] == [
        "3 rows have a very long cell, a marker, personal data or code", "3 rows occur twice", "100 of 237 rows are drawn",
    ]  # fmt: skip
    assert cleaned.num_rows == 100 and len(distinct_rows(cleaned)) == 100
    assert not {*cleaned.texts("note")} - {"plain a", "plain b"}
    wide = made(**{f"extra {at} more": rng(at).random(80) for at in range(20)}).with_target("colour")
    narrow, drops = clean(wide, TableCleaning(max_columns=10), rng())
    assert len(narrow.columns) == 10 and narrow.target == "colour" and drops[-1].reason == "10 of 26 columns are drawn"


def test_every_key_of_the_filters_changes_something():
    strict = {
        "min_rows": 90, "max_rows": 70, "min_columns": 12, "max_columns": 7, "max_numeric_names": 0.0, "max_unnamed": 0.0,
        "min_ascii_letters": 1.0, "max_private_cells": 0.0, "max_name_characters": 5, "min_distinct": 4, "max_missing": 0.0,
        "max_cell_characters": 3, "markers": ["red"], "drop_index_columns": False, "drop_id_columns": False, "drop_duplicate_rows": False,
    }  # fmt: skip
    assert set(strict) == set(TableCleaning.model_fields)
    words = [*["caf\u00e9"] * 40, *["tea"] * 39, "me@example.org"]
    half = [None, None, *rng(3).random(78)]
    table = made(**{"1999": half, "V1": words, "rownames": ROWS, "title": [f"name {at}" for at in ROWS]}).take([*ROWS, 0])
    lenient = {"max_numeric_names": 0.5, "max_unnamed": 0.5}

    def outcome(**keys):
        cleaned, drops = clean(table, TableCleaning(**(lenient | keys)), rng())
        return (cleaned.content_hash() if cleaned else None), drops

    plain = outcome()
    assert plain[0] is not None
    for key, value in strict.items():
        assert outcome(**{key: value}) != plain, key
    with pytest.raises(RecipeError, match="min_row: unknown key. Did you mean 'min_rows'"):
        check(TableCleaning, {"min_row": 3}, "x.yaml")


def test_targets_are_drawn_with_the_probabilities_of_the_paper():
    table = made(kind=["a", "b"] * 40, day=[*pd.date_range("2020-01-01", periods=40)] * 2, title=[f"n{at}" for at in ROWS], flat=[1] * 80)
    table = table.with_column(made(long=["x" * 300, "y"] * 40).column("long"))
    table = table.with_column(made(**{"Unnamed: 3": ["u", "v"] * 40}).column("Unnamed: 3"))
    generator = rng()
    drawn = [choose_target(table, generator) for _ in range(4000)]
    counts = {name: drawn.count(name) / 4000 for name in set(drawn)}
    assert set(counts) == {"colour", "kind", "height", "width", "weight", "age", "price"}
    assert abs(counts["colour"] - 0.45) < 0.03 and abs(counts["kind"] - 0.45) < 0.03 and abs(counts["age"] - 0.02) < 0.01
    assert choose_target(table.select(["day", "title", "flat"]), rng()) is None
    assert choose_target(table.select(["day", "age"]), rng()) == "age"


def test_tables_that_share_header_and_shape_share_a_split_and_shares_are_as_asked():
    tables = [made(80, **{f"c{at}": np.arange(80.0)}) for at in range(400)]
    splits = [split_of(table) for table in tables]
    assert [split_of(Table("other", table.columns[::-1])) for table in tables] == splits
    assert 20 < splits.count("test") < 65 and 20 < splits.count("valid") < 65
    assert [split_of(table, seed=1) for table in tables] != splits


def test_copies_of_a_table_are_left_out():
    first, second = made(), made(81)
    renamed = Table("copy", first.columns[::-1])
    assert without_copies([first, renamed, second, first]) == [first, second]
