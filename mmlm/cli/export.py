"""`mmlm export`: an encoder or decoder as ONNX or torch.export, compared with itself."""

from __future__ import annotations

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("source", metavar="ENCODER|RUN", help="an encoder of pictures, its name or run, or the folder of a text decoder")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the folder to write; must not exist or be empty")
    parser.add_argument("--format", default="onnx", metavar="NAME", help="onnx (default) or torch_export")
    parser.add_argument("--items", nargs="+", default=[], metavar="ITEM", help="pictures or texts to compare on; default some made ones")


def run(arguments: argparse.Namespace) -> int:
    """Write, compare, and print how near each file comes."""
    from mmlm.exporting import ENDINGS, export

    found = export(arguments.source, arguments.format, arguments.output, arguments.items)
    for name, parity in found.items():
        path = Path(arguments.output) / f"{name}{ENDINGS[arguments.format]}"
        print(f"{path}: largest difference {parity.difference:.1e} of the largest number, least cosine {parity.cosine:.7f}")
    return 0
