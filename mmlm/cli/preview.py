"""`mmlm preview`: samples as the model will read them, before anything is trained."""

from __future__ import annotations

import argparse


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys of the recipe to set")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="how many samples to show (default 2)")


def run(arguments: argparse.Namespace) -> int:
    """Print the samples and the size of a batch."""
    from mmlm.base.errors import RecipeError
    from mmlm.recipe import Recipe

    if arguments.samples < 1:
        raise RecipeError(f"mmlm preview: --samples must be at least 1, but is {arguments.samples}.")
    from mmlm.run import preview

    print(preview(Recipe.read(arguments.recipe, arguments.overrides), arguments.samples))
    return 0
