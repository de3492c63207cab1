"""Numbers and dates as people write them are read where one reading alone fits, and every guess is told."""

import logging

import numpy as np
import pandas as pd
import pytest

from mmlm.data.table_reader import read_table

READ = [
    (["3,14", "-2,5", "7"], [3.14, -2.5, 7], "decimal commas are read as points"),
    (["1.234,5", "12", "0,25"], [1234.5, 12, 0.25], "decimal commas are read as points"),
    (["1 234,50", "1\u00a0234\u00a0567,5", "2"], [1234.5, 1234567.5, 2], "decimal commas are read as points"),
    (["0,500", "1,234"], [0.5, 1.234], "decimal commas are read as points"),
    (["1,5e3", "2,5"], [1500, 2.5], "decimal commas are read as points"),
    (["1,234.50", "12", "0.5"], [1234.5, 12, 0.5], "commas between thousands are left out"),
    (["1,234,567", "-1,234"], [1234567, -1234], "commas between thousands are left out"),
    (["12 %", "3.5%"], [12, 3.5], "the sign '%' is left out"),
    (["$1,234.00", "-$5", "$0.5"], [1234, -5, 0.5], "commas between thousands are left out, the sign '$' is left out"),
    (["1.234,5 \u20ac", "12 \u20ac"], [1234.5, 12], "decimal commas are read as points, the sign '\u20ac' is left out"),
    (["(7)", "3", "(1.5)"], [-7, 3, -1.5], "numbers in parentheses are negative"),
    (["1", "?", "2.5"], [1, None, 2.5], "'?' is read as a missing cell"),
    (["1,5", "-", "2"], [1.5, None, 2], "'-' is read as a missing cell"),
]
TEXT = [
    ["5%", "7"],
    ["$5", "\u20ac5"],
    ["1.5", "2,5"],
    ["1,23,4", "2"],
    ["192.168.100.200", "10.0.0.1"],
    ["123 456 789", "1"],
    ["a,5", "1,5"],
    ["?", "-"],
    ["?", "x", "1"],
    ["1", "unknown"],
    ["(7", "3"],
    ["%", "1"],
    ["32.01.2024", "01.01.2024"],
    ["13/13/2024", "01/01/2024"],
    ["13/01/2024", "01/13/2024"],
]


def column(tmp_path, cells, kind="csv"):
    path = tmp_path / f"own.{kind}"
    frame = pd.DataFrame({"c": cells, "other": 1})
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_excel(path, index=False)
    return read_table(path).column("c")


@pytest.mark.parametrize(("cells", "values", "guess"), READ, ids=[cells[0] for cells, _, _ in READ])
@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_one_reading_makes_numbers_and_is_told_with_the_file(tmp_path, caplog, cells, values, guess, kind):
    with caplog.at_level(logging.WARNING):
        found = column(tmp_path, cells, kind)
    assert found.kind == "number"
    np.testing.assert_array_equal(found.values, np.array(values, dtype=float))
    assert caplog.messages[-1].startswith(f"{tmp_path}/own.{kind}: column 'c': ") and guess in caplog.text


@pytest.mark.parametrize("cells", TEXT, ids=[cells[0] for cells in TEXT])
def test_cells_without_one_reading_stay_texts(tmp_path, caplog, cells):
    found = column(tmp_path, cells)
    assert found.kind == "category" and found.words == cells and not caplog.messages


@pytest.mark.parametrize("cells", [["1,234", "5,678"], ["03/04/2024", "05/06/2024"]])
def test_cells_with_two_readings_stay_texts_and_this_is_told(tmp_path, caplog, cells):
    found = column(tmp_path, cells)
    assert found.words == cells and "column 'c': stays text" in caplog.text


@pytest.mark.parametrize(
    "cells",
    [
        ["31.01.2024", "1.2.2024"],
        ["31/01/2024", "01/02/2024 00:00"],
        ["01/31/2024", "02/01/2024"],
        ["2024/01/31", "2024/2/1"],
    ],
)
def test_dates_are_read_where_day_and_month_can_be_told_apart(tmp_path, caplog, cells):
    path = tmp_path / "own.csv"
    path.write_text("c\n" + "\n".join(cells) + "\n")
    table = read_table(path)
    assert table.texts("c") == ["2024-01-31", "2024-02-01"] and "dates are read as" in caplog.text


def test_plain_numbers_and_dates_are_not_remarked_on(tmp_path, caplog):
    path = tmp_path / "own.csv"
    path.write_text("a,b,c\n1,2024-01-31,x\n-2.5e3,2024-02-01,y\n")
    assert [each.kind for each in read_table(path).columns] == ["number", "date", "category"] and not caplog.messages
