"""Sounds through a codec and back, in a browser: python demos/codec.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "codec", *sys.argv[1:]]))
