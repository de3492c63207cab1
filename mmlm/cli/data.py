"""`mmlm data check`: reads tables as training would, and tells what is in them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mmlm.base.errors import DataError, RecipeError

if TYPE_CHECKING:
    from mmlm.data.tables import Table


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("action", choices=["check"], help="what to do")
    parser.add_argument("files", nargs="+", metavar="FILE", help="tables: .csv, .tsv, .parquet, .xlsx, .jsonl, or a data set's folder")
    parser.add_argument("--target", metavar="COLUMN", help="the column to predict")
    parser.add_argument("--rows", type=int, metavar="COUNT", help="read only so many rows")


def run(arguments: argparse.Namespace) -> int:
    """Read every file; the faults of one do not keep the others from being read."""
    if arguments.rows is not None and arguments.rows < 1:
        raise RecipeError(f"mmlm data: --rows must be at least 1, but is {arguments.rows}.")
    from mmlm.data.table_reader import read_table

    code = 0
    for file in arguments.files:
        try:
            table = read_table(file, target=arguments.target, limit_rows=arguments.rows)
        except DataError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        else:
            print(f"{file}: {table.num_rows:,} rows, {len(table.columns):,} columns")
            print("\n".join(_columns(table)))
    return code


def _columns(table: Table) -> list[str]:
    """A line for each column: kind, missing cells, distinct values, and what it is good for."""
    from mmlm.data.table_cleaning import target_candidates, useless_columns

    useless = {drop.name: f"tells nothing, better taken out: {drop.reason}" for drop in useless_columns(table)}
    targets = {name for group in target_candidates(table) for name in group}
    wide = min(40, max((len(column.name) for column in table.columns), default=0))
    lines = []
    for column in table.columns:
        note = "the target" if column.name == table.target else useless.get(column.name, "")
        note = note or ("can be a target" if column.name in targets else "")
        counts = f"{int(column.missing.sum()):>7,} missing  {column.num_distinct:>7,} distinct"
        lines.append(f"  {column.name:<{wide}}  {column.kind:<8}  {counts}  {note}".rstrip())
    return lines
