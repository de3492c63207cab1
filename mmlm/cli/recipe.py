"""`mmlm recipe copy`: a shipped recipe as a file of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlm.base.errors import RecipeError


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("action", choices=["copy"], help="what to do with it")
    parser.add_argument("name", metavar="NAME", help="name of a shipped recipe (mmlm list recipes)")
    parser.add_argument("target", nargs="?", metavar="FILE", help="file or folder to write; default: the recipe's own name here")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")


def run(arguments: argparse.Namespace) -> int:
    """Copy, and say where to."""
    from mmlm.recipe import find

    source = find(arguments.name)
    target = Path(arguments.target or source.name)
    if target.is_dir():
        target = target / source.name
    if not target.parent.is_dir():
        raise RecipeError(f"mmlm recipe copy: the folder {target.parent} does not exist.")
    if target.exists() and not arguments.overwrite:
        raise RecipeError(f"mmlm recipe copy: {target} exists already; name another file, or say --overwrite.")
    target.write_bytes(source.read_bytes())
    print(f"wrote {target}. Try it: mmlm validate {target}")
    return 0
