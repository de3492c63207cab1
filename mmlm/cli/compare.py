"""`mmlm compare`: recipes x variants x seeds as one table."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("comparison", metavar="COMPARISON", help="a YAML file, or the name of a shipped comparison")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys of the comparison to set, such as seeds=[0]")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="run only cells recipe/variant/seed that fit, such as 'parity/*'")


def run(arguments: argparse.Namespace) -> int:
    """Run what is not finished, print the table, and say what was written."""
    from mmlm.compare import Cell, compare, read_comparison
    from mmlm.evaluation.comparison import text_table

    config = read_comparison(arguments.comparison, arguments.overrides)
    bar: Any = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(unit="step")

    def progress(cell: Cell, number: int, total: int, step: int, steps: int) -> None:
        if bar is not None:
            bar.set_description(f"{number}/{total} {cell}", refresh=False)
            bar.total, bar.n = steps, step
            bar.refresh()

    found = compare(config, arguments.only, progress)
    if bar is not None:
        bar.close()
    print(text_table(found))
    print(f"{config.output}: wrote table.json and report.html; open {config.output}/report.html")
    return 0
