"""Texts that go on, token by token, in a browser: python demos/text.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "text", *sys.argv[1:]]))
