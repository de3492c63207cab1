"""Columns of tables, predicted from a few rows, in a browser: python demos/tabular.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "tabular", *sys.argv[1:]]))
