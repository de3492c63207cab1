"""Pictures described, asked about and pointed into, in a browser: python demos/grounded.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "grounded", *sys.argv[1:]]))
