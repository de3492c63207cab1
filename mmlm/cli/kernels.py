"""`mmlm kernels`: which back end serves each operation on this machine, and why the others do not."""

from __future__ import annotations

import argparse


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.description = f"""{parser.description}

A call takes the first that serves its shapes, dtypes and device; one that is asked for by name and cannot serve says why.
MMLM_KERNEL=torch in the environment asks for another, MMLM_KERNEL=ssd=reference,torch for one operation and for the rest."""
    parser.add_argument("operation", nargs="?", metavar="OPERATION", help="one operation; left out: all")


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each back end, in the order in which they are asked."""
    from mmlm.base.errors import RecipeError, unknown_name
    from mmlm.kernels.dispatch import OPS, report

    if arguments.operation is not None and arguments.operation not in OPS:
        raise RecipeError(f"mmlm kernels: {unknown_name('operation', arguments.operation, OPS)}")
    lines = [line for line in report() if arguments.operation in (None, line.op)]
    chosen: set[str] = set()
    wide, broad = max(len(line.op) for line in lines), max(len(line.backend) for line in lines)
    for line in lines:
        state = f"no: {line.reason}"
        if line.serves:
            state = "serves where those above do not" if line.op in chosen else f"in use {line.reason}".rstrip()
            chosen.add(line.op)
        print(f"{line.op:<{wide}}  {line.backend:<{broad}}  {state}")
    return 0
