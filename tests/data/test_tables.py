"""Tables: kinds of columns, how cells are written, hashes."""

from __future__ import annotations

import datetime
import logging
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from mmlm.base.errors import DataError
from mmlm.data.table_columns import column_of_cells
from mmlm.data.tables import Column, Table, number_texts


def table_of(**columns) -> Table:
    return Table.from_frame(pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()}), "made")


KINDS = [
    ([True, False, None], "category", ["True", "False", None]),
    (["1", "-2.50", None, " 3 "], "number", ["1", "-2.5", None, "3"]),
    (["1", "two", "3"], "category", ["1", "two", "3"]),
    (["+1", "2"], "category", ["+1", "2"]),
    (["1e5", "2"], "category", ["1e5", "2"]),
    ([1, "two", 2.5, True], "category", ["1", "two", "2.5", "True"]),
    ([1, 2.0, np.float32(0.5), Decimal("1.5")], "number", ["1", "2", "0.5", "1.5"]),
    ([2**53 + 1, 5], "category", ["9007199254740993", "5"]),
    (["12345678901234567890", "1"], "category", ["12345678901234567890", "1"]),
    (["9" * 5000, "1"], "category", ["9" * 5000, "1"]),
    ([2**70, 5], "number", ["1.1805916207174113e+21", "5"]),
    (["2024-02-29", "1969-12-31", ""], "date", ["2024-02-29", "1969-12-31", None]),
    (["2024-02-29 12:30", "2024-03-01T01:02:03.25Z"], "date", ["2024-02-29T12:30:00", "2024-03-01T01:02:03.250000"]),
    (["2024-02-29T01:00+02:00"], "date", ["2024-02-28T23:00:00"]),
    (["2024-02-30"], "category", ["2024-02-30"]),
    ([datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3)], "date", ["2020-01-02", "2020-01-02T03:00:00"]),
    ([b"caf\xc3\xa9", b"caf\xe9", "x"], "category", ["caf\u00e9", "caf\u00e9", "x"]),
    ([[1, 2], {"a": 1}, 3 + 1j], "category", ["[1, 2]", "{'a': 1}", "(3+1j)"]),
    ([None, math.nan, pd.NA, pd.NaT, "", "  "], "category", [None] * 6),
    (["None", "NA"], "category", ["None", "NA"]),
]


@pytest.mark.parametrize(("cells", "kind", "texts"), KINDS, ids=range(len(KINDS)))
def test_cells_become_the_kind_and_text_they_should(cells, kind, texts):
    table = table_of(x=cells)
    assert table.column("x").kind == kind
    assert table.texts("x") == texts
    assert [table.text("x", row) for row in range(len(cells))] == texts
    assert table.column("x").missing.tolist() == [text is None for text in texts]


@pytest.mark.parametrize(
    ("series", "kind", "texts"),
    [
        (pd.Series([1, None, 3], dtype="Int64"), "number", ["1", None, "3"]),
        (pd.Series([True, None], dtype="boolean"), "category", ["True", None]),
        (pd.Series([0.5, None], dtype="Float32"), "number", ["0.5", None]),
        (pd.Series(pd.Categorical(["b", None, "a"], categories=["b", "a", "c"])), "category", ["b", None, "a"]),
        (pd.Series(pd.Categorical([2, 1, None])), "number", ["2", "1", None]),
        (pd.Series(pd.Categorical([True, False, None])), "category", ["True", "False", None]),
        (pd.Series(pd.to_datetime(["2020-01-02 00:00", None])), "date", ["2020-01-02", None]),
        (pd.Series(pd.to_datetime(["2020-01-02 00:00+02:00"])), "date", ["2020-01-01T22:00:00"]),
        (pd.Series(pd.to_timedelta(["1h", None])), "number", ["3600", None]),
        (pd.Series(pd.period_range("2020Q1", periods=2, freq="Q")), "category", ["2020Q1", "2020Q2"]),
        (pd.Series(["a", None, "b"], dtype="str"), "category", ["a", None, "b"]),
        (pd.Series([], dtype="float64"), "number", []),
    ],
)
def test_pandas_types_become_the_kind_they_should(series, kind, texts):
    table = Table.from_frame(pd.DataFrame({"x": series}), "made")
    assert (table.column("x").kind, table.texts("x")) == (kind, texts)


def test_bytes_that_are_no_text_are_left_out_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        table = Table.from_frame(pd.DataFrame({"good": [1, 2], "bad": [b"\x00\xff\x81", b"ok"]}), "made")
    assert table.names == ["good"] and "'bad' is left out" in caplog.text


@pytest.mark.parametrize("cells", [[1.0, math.inf], [1, 2, -math.inf], [np.float32("inf"), None]])
def test_an_infinite_number_is_refused_with_column_and_row_or_made_missing(cells):
    frame = pd.DataFrame({"a": [1.0] * len(cells), "b": pd.Series(cells, dtype=object)})
    row = next(at for at, cell in enumerate(cells) if cell is not None and math.isinf(cell))
    with pytest.raises(DataError, match=f"made: column 'b', row {row}: the value is infinite"):
        Table.from_frame(frame, "made")
    assert Table.from_frame(frame, "made", infinite="missing").text("b", row) is None
    with pytest.raises(DataError, match="infinite"):
        Column("x", "number", np.array([1.0, math.inf]))


def test_numbers_are_written_shortest_and_read_back_the_same():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.standard_normal(3000) * 10.0 ** rng.integers(-20, 20, 3000), rng.integers(-999, 999, 500), [0.1, 1e16, -0.0]]
    )
    texts = number_texts(values)
    assert [float(text) for text in texts] == values.tolist()
    assert texts[-3:] == ["0.1", "1e+16", "0"] and not any(text.endswith(".0") for text in texts)
    assert number_texts(np.array([1.23456, 2.0, math.nan]), max_precision=2) == ["1.23", "2", None]


def test_hashes_change_with_content_and_not_with_order_of_columns_or_codes():
    first = Table("a", [Column("x", "category", np.array([0.0, 1, np.nan]), ["u", "v"]), Column("y", "number", np.array([1.0, 2, 3]))])
    same = Table("b", [first.columns[1], Column("x", "category", np.array([2.0, 0, np.nan]), ["v", "unused", "u"])])
    other = first.with_column(Column("y", "number", np.array([1.0, 2, 4])))
    renamed = Table("a", [Column("z", "number", first.columns[1].values), first.columns[0]])
    assert first.content_hash() == same.content_hash() and first.header_hash() == same.header_hash()
    assert other.content_hash() != first.content_hash() and other.header_hash() == first.header_hash()
    assert renamed.header_hash() != first.header_hash() != first.take([0, 1]).header_hash()


def test_rows_and_columns_are_chosen_and_faults_are_named():
    table = table_of(price=[1, 2, 3], city=["a", "b", "a"]).with_target("price")
    assert table.take([2, 0]).texts("price") == ["3", "1"] and table.take(np.array([True, False, True])).num_rows == 2
    assert table.take([]).num_rows == 0 == table.take(np.zeros(3, dtype=bool)).num_rows
    assert table.select(["city"]).target is None and table.drop(["city"]).names == ["price"] and table.features == ["city"]
    for call in (lambda: table.column("pryce"), lambda: table.with_target("pryce"), lambda: table.drop(["pryce"])):
        with pytest.raises(DataError, match="made: .*'pryce'. Did you mean 'price'"):
            call()
    with pytest.raises(DataError, match="columns 1 and 3 have the same name 'a'"):
        Table.from_frame(pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"]), "made")
    with pytest.raises(DataError, match="has 2 rows, but 'a' has 1"):
        Table("made", [Column("a", "number", np.zeros(1)), Column("b", "number", np.zeros(2))])
    with pytest.raises(DataError, match="codes must be whole numbers below 1"):
        Column("c", "category", np.array([0.0, 1.0]), ["only"])


def test_a_number_column_as_category_keeps_its_texts():
    column = Column("x", "number", np.array([2.5, np.nan, 1.0, 2.5]))
    category = column.as_category()
    assert (category.kind, category.words) == ("category", ["1", "2.5"])
    assert Table("t", [category]).texts("x") == Table("t", [column]).texts("x") and category.as_category() is category
    assert Column("d", "date", np.array([0.0, 86400.0])).as_category().words == ["1970-01-01", "1970-01-02"]
    assert category.take([0]).used_words() == ["2.5"] and category.num_distinct == 2


def test_a_column_of_no_cells_is_a_column():
    assert len(column_of_cells("x", [])) == 0
