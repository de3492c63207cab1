"""`mmlm demo`: try finished runs in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of finished runs; default: all below runs/")
    parser.add_argument("--task", metavar="TYPE", help="show tasks of this type alone, such as tts; default: all")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen at; default 127.0.0.1, this machine alone"
    )
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on; 0: any that is free")
    parser.add_argument("--token", metavar="PASSWORD", help="asked of the user mmlm; off this machine one is made unless given")


def run(arguments: argparse.Namespace) -> int:
    """Serve a page until it is stopped. Runs found below runs/ that cannot be loaded are told and left out."""
    import logging

    from mmlm.base.errors import MmlmError, RecipeError, unknown_name
    from mmlm.recipe import Recipe
    from mmlm.run import RECIPE
    from mmlm.serving.demo import launch
    from mmlm.serving.guard import check_token, port_to_listen
    from mmlm.serving.uses import runs_below, uses_of
    from mmlm.tasks.config import TASKS

    check_token("demo", arguments.token)
    port = None if arguments.port is None else port_to_listen(arguments.host, arguments.port)
    kind = arguments.task
    if kind is not None and kind not in TASKS.entries:
        raise RecipeError(f"mmlm demo --task: {unknown_name('task', kind, TASKS.entries)}")
    uses = []
    for folder in map(Path, arguments.runs or runs_below("runs")):
        try:
            recipe = folder / RECIPE
            if kind is None or not recipe.is_file() or any(task.type == kind for task in Recipe.read(recipe).tasks):
                uses += [use for use in uses_of(folder) if kind in (None, use.type)]
        except MmlmError as error:
            if arguments.runs:
                raise
            logging.getLogger(__name__).warning("left out: %s", error)
    if kind is not None and not uses:
        raise RecipeError(f"mmlm demo: none of the runs has a task of the type {kind}; mmlm list recipes shows what trains one.")
    launch(uses, host=arguments.host, port=port, token=arguments.token)
    return 0
