"""Sweeps of LiDAR described and asked about, seen from above, in a browser: python demos/sweeps.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "sweeps", *sys.argv[1:]]))
