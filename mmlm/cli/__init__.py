"""The command line: one module per verb, imported when the verb is called.

A verb's module has `options(parser)`, which adds its arguments, and `run(arguments)`, which returns the exit code. It imports heavy
packages inside `run`, so that help and mistakes in flags are answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from mmlm.base.errors import MmlmError, RecipeError, nearest, unknown_name


class Verb(NamedTuple):
    """A verb's module below mmlm.cli, what it does, and one line that shows its use."""

    module: str
    does: str
    example: str


VERBS = {
    "train": Verb("train", "train a recipe, or go on where it was stopped", "mmlm train tabular/quickstart train.max_seconds=60"),
    "evaluate": Verb(
        "evaluate", "measure a finished run beside baselines, write metrics.json and report.html", "mmlm evaluate runs/quickstart"
    ),
    "card": Verb(
        "card", "write and print a run's model card: what it is, data, figures, use, limits, licence", "mmlm card runs/quickstart"
    ),
    "compare": Verb(
        "compare", "run recipes with variants and seeds, such as mixers on probes, and print one table", "mmlm compare probes 'seeds=[0]'"
    ),
    "generate": Verb(
        "generate",
        "use a finished run: continue or say a text, clean speech, describe pictures, fill a table, read molecules, ...",
        "mmlm generate runs/quickstart --table new.csv --target price --shots known.csv --output filled.csv",
    ),
    "encode": Verb("encode", "turn files into vectors", "mmlm encode '{type: whisper, layer: 3}' one.wav two.wav --output vectors.npy"),
    "search": Verb("search", "find what lies nearest in an index of `mmlm encode`", "mmlm search pets.index 'two dogs' new.jpg --top 3"),
    "serve": Verb("serve", "answer other programs over HTTP, as OpenAI's clients ask", "mmlm serve runs/quickstart --port 8000"),
    "validate": Verb(
        "validate", "check a recipe: every fault at once, nothing is loaded", "mmlm validate my_recipe.yaml backbone.width=128"
    ),
    "preview": Verb("preview", "show samples as the model will read them", "mmlm preview tabular/tabula --samples 1"),
    "demo": Verb("demo", "try finished runs in a browser", "mmlm demo runs/quickstart"),
    "convert": Verb("convert", "turn a decoder of transformers into one of ours, or back", "mmlm convert runs/tabula exported"),
    "export": Verb(
        "export",
        "write an encoder or decoder as ONNX or torch.export, and compare",
        "mmlm export runs/clip --format onnx --output exported",
    ),
    "list": Verb("listing", "list recipes, mixers, tokenizers, heads, ... by name", "mmlm list mixers 'mamba*'"),
    "data": Verb("data", "check tables: what is in each column, and what is wrong", "mmlm data check houses.csv --target price"),
    "kernels": Verb("kernels", "tell which back end serves each operation here, and why the others do not", "mmlm kernels ssd"),
    "recipe": Verb("recipe", "copy a shipped recipe, to edit it", "mmlm recipe copy tabular/quickstart my_recipe.yaml"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises RecipeError, with the nearest known flag."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        known = [flag for action in self._actions for flag in action.option_strings]
        words = message.split() if message.startswith("unrecognized") else []
        wrong = next((word for word in words if word.startswith("-") and word not in known), "")
        hint = nearest(wrong.partition("=")[0], known) if wrong else ""
        if "=" in wrong and any(action.dest == "overrides" for action in self._actions):
            hint = f" If it is meant for the recipe: a key of the recipe is written without dashes: {wrong.lstrip('-')}."
        raise RecipeError(f"{self.prog}: {message}.{hint} See {self.prog} --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, 1 for a failure, 2 for a user's mistake.

    Threads that wait for one another sleep, unless the environment says otherwise: by default they spin, and while another program holds a
    core that keeps the last of them from moving to a free one, which made training steps up to ten times as long.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in words
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = [word for word in words if word != "--traceback"]
    if hasattr(sys.stdout, "reconfigure"):  # as Python does for stderr: a name that cannot be shown as it is ends nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(words)
    except MmlmError as error:
        if traceback:
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if traceback:
            raise
        print(f"mmlm: {type(error).__name__}: {error} (--traceback shows where)", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        from mmlm import __version__

        print(f"mmlm {__version__}")
        return 0
    name, *rest = words
    if name not in VERBS:
        raise RecipeError(f"mmlm: {unknown_name('verb', name, VERBS)} See mmlm --help.")
    verb = VERBS[name]
    parser = Parser(
        prog=f"mmlm {name}",
        description=f"{verb.does[0].upper()}{verb.does[1:]}.",
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module = importlib.import_module(f"mmlm.cli.{verb.module}")
    module.options(parser)
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    try:
        parsed = parser.parse_intermixed_args(rest)  # overrides may stand before and after the flags
    except SystemExit as done:
        return int(done.code or 0)
    code: int = module.run(parsed)
    return code


def _help() -> str:
    lines = ["usage: mmlm VERB ...", "", "One decoder backbone that reads and writes every modality, trained from one recipe file.", ""]
    lines += [f"  {name:<10} {verb.does}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "mmlm VERB --help shows the options of a verb and an example; --version the version."])
