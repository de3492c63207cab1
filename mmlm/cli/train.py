"""`mmlm train`: from a recipe to a run folder."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys to set before the start")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on from the last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="two real steps in a folder of their own")


def run(arguments: argparse.Namespace) -> int:
    """Train; a bar on a terminal, one line at the end. Of several processes the first one alone tells."""
    from mmlm.recipe import Recipe

    recipe = Recipe.read(arguments.recipe, arguments.overrides)
    from mmlm.run import dry, train

    if arguments.dry_run:
        recipe = dry(recipe)
    bar: Any = None
    tells = os.environ.get("RANK", "0") == "0"  # as accelerate and torchrun number them
    if tells and sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=recipe.train.steps, unit="step", desc=recipe.name)

    def progress(step: int, line: dict[str, Any]) -> None:
        if bar is not None:
            bar.update(step - bar.n)
            bar.set_postfix({"loss": f"{line['loss']:.4f}"} if line.get("loss") is not None else {})

    with contextlib.nullcontext() if tells else _warns_of_nothing():
        result = train(recipe, fresh=arguments.fresh or arguments.dry_run, progress=progress)
    if bar is not None:
        bar.close()
    if tells:
        print(f"{recipe.output}: {result.step} steps in {result.seconds:.0f} s, ended by {result.reason}")
    return result.exit_code


@contextlib.contextmanager
def _warns_of_nothing() -> Iterator[None]:
    """What the first process warns of is not said again by the others."""
    logger = logging.getLogger("mmlm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
