"""What pictures show, in a browser: python demos/picture_classes.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "picture_classes", *sys.argv[1:]]))
