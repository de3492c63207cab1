"""`mmlm evaluate`: a finished run beside its baselines."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys of the recipe to set, such as evaluate.seeds=1")


def run(arguments: argparse.Namespace) -> int:
    """Measure, with a bar on a terminal, print the table, and say what was written."""
    from mmlm.run import evaluate

    bar: Any = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(desc=arguments.folder)

    def progress(done: int, tables: int) -> None:
        if bar is not None:
            bar.total = tables
            bar.update(done - bar.n)

    found = evaluate(arguments.folder, arguments.overrides, progress)
    if bar is not None:
        bar.close()
    for name, some in found.get("tasks", {"": found}).items():
        if name:
            print(f"\n{name}")
        _show(some)
    print(f"{arguments.folder}: wrote metrics.json and report.html; open {arguments.folder}/report.html")
    return 0


def _show(found: dict[str, Any]) -> None:
    """The table of one task."""
    rows = {"model": found["metrics"], **found["baselines"]}
    if "records" in found["data"]:
        wide = max(map(len, found["metrics"]))
        print(f"{'':<{wide}}" + "".join(f"{name:>{_wide(name)}}" for name in rows))
        for key in found["metrics"]:
            print(f"{key:<{wide}}" + "".join(f"{f'{row[key]:.4g}' if key in row else '':>{_wide(name)}}" for name, row in rows.items()))
    else:
        _tables(found, rows)


def _wide(name: str) -> int:
    """Characters of a column."""
    return max(20, len(name) + 2)


def _tables(found: dict[str, Any], rows: dict[str, Any]) -> None:
    """Accuracy by the number of examples."""
    from mmlm.evaluation.card import with_interval

    tables = found["data"]["tables"]
    shots, several = list(tables), any(number > 1 for number in tables.values())
    title = "accuracy (95 % interval over tables)" if several else f"accuracy, mean of {found['data']['seeds']} draws"
    print(f"{title:<38}" + "".join(f"{f'{count} examples':>24}" for count in shots))
    for name, row in rows.items():
        cells = [(row[f"accuracy_{count}"], row[f"accuracy_{count}_interval"] if tables[count] > 1 else None) for count in shots]
        print(f"{name:<38}" + "".join(f"{with_interval(*cell):>24}" for cell in cells))
