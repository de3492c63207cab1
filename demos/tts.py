"""Texts spoken, heard while they are written, in a browser: python demos/tts.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "tts", *sys.argv[1:]]))
