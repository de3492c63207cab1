"""`mmlm validate`: every fault of a recipe at once; the JSON schema for editors."""

from __future__ import annotations

import argparse

from mmlm.base.errors import RecipeError


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="keys to set before the check")
    parser.add_argument("--resolved", action="store_true", help="print the recipe complete, with every default")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors, and stop")


def run(arguments: argparse.Namespace) -> int:
    """Check, and say what was found."""
    from mmlm.recipe import Recipe

    if arguments.schema:
        import json

        from mmlm.base.jsonschema import json_schema

        print(json.dumps(json_schema(Recipe, "mmlm recipe"), indent=2))
        return 0
    if arguments.recipe is None:
        raise RecipeError("mmlm validate: needs a RECIPE. See mmlm validate --help.")
    recipe = Recipe.read(arguments.recipe, arguments.overrides)
    print(recipe.dump() if arguments.resolved else f"{arguments.recipe}: valid; the run folder is {recipe.output}")
    return 0
