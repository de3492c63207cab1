"""`mmlm convert`: decoders from and to the format of transformers."""

from __future__ import annotations

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("source", metavar="SOURCE", help="a run or model folder, or a folder or hub id of transformers")
    parser.add_argument("destination", metavar="FOLDER", help="the folder to write; must not exist or be empty")


def run(arguments: argparse.Namespace) -> int:
    """Write the other format and say which."""
    from mmlm.interop.load import convert

    kind = convert(arguments.source, Path(arguments.destination))
    print(f"{arguments.destination}: wrote a model of {kind}")
    return 0
