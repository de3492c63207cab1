"""Pictures found by texts, and texts for pictures, in a browser: python demos/image_text.py [RUN ...]."""

import sys

from mmlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", "--task", "image_text", *sys.argv[1:]]))
