"""Molecules and proteins: their numbers, and designs to wanted ones, in a browser: python demos/regression_transformer.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "regression_transformer", *sys.argv[1:]]))
