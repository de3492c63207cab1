"""`mmlm generate`: use a finished run on new data."""

from __future__ import annotations

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--table", required=True, help="table to fill: CSV, TSV, Parquet, Excel, JSON lines or a data set's folder")
    parser.add_argument("--target", required=True, help="the column to fill; rows that have a value keep it")
    parser.add_argument("--shots", required=True, help="table with example rows, the target among its columns")
    parser.add_argument("--output", help="CSV file to write; default: TABLE with .filled before its ending")


def run(arguments: argparse.Namespace) -> int:
    """Fill the column, write the table."""
    from mmlm.predictor import fill_column

    given = Path(arguments.table)
    output = Path(arguments.output) if arguments.output else given.with_name(f"{given.stem}.filled.csv")
    count = fill_column(arguments.folder, given, arguments.target, Path(arguments.shots), output)
    column = f"in column {arguments.target!r}"
    print(f"{output}: {count} rows filled {column}" if count else f"{output}: every row has a value {column} already")
    return 0
