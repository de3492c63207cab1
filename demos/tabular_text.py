"""Columns of tables, predicted by a language model, in a browser: python demos/tabular_text.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "tabular_text", *sys.argv[1:]]))
