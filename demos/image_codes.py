"""Pictures as codes and back, in a browser: python demos/image_codes.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "image_codes", *sys.argv[1:]]))
