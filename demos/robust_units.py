"""Sounds as units, in a browser: python demos/robust_units.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "robust_units", *sys.argv[1:]]))
