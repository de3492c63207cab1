"""Noisy speech written anew, in a browser: python demos/gense_codes.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "gense_codes", *sys.argv[1:]]))
