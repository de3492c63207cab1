"""`mmlm card`: the model card of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--output", metavar="FILE", help="file to write; default: README.md in the run folder")


def run(arguments: argparse.Namespace) -> int:
    """Write the card from the recipe, the log and the figures that the run folder holds, and print it."""
    from mmlm.evaluation.card import write_card
    from mmlm.run import read_run

    folder = Path(arguments.folder)
    recipe, metrics = read_run(folder)
    output = Path(arguments.output) if arguments.output else None
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    path = write_card(folder, recipe, metrics, output)
    print(path.read_text(encoding="utf-8"))
    print(f"{path}: written")
    return 0
