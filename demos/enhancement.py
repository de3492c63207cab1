"""Noisy speech mended by a mask, in a browser: python demos/enhancement.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "enhancement", *sys.argv[1:]]))
