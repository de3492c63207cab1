"""Recipes x variants x seeds: every cell is a run of its own, and one table tells them all.

A comparison is a YAML file: which recipes, which keys each variant sets in them, which seeds. Cells that are finished are not run again,
one that was stopped goes on where it was, and one whose recipe has changed begins anew. What a variant cannot do is told in its cell.
Several processes may work on one comparison: each takes the cells that no other is running.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mmlm.base import yaml
from mmlm.base.errors import MmlmError, RecipeError, nearest
from mmlm.base.files import parse_json, without_nan, write_text_whole
from mmlm.base.schema import Strict, check, told_at_once
from mmlm.recipe import Recipe, apply_override, find, set_key, shipped
from mmlm.training.lock import RunLock

logger = logging.getLogger(__name__)

CELL, RUN, TABLE = "cell.json", "run", "table.json"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"


class ComparisonConfig(Strict):
    """What is compared on what."""

    schema_version: Literal[1] = Field(alias="schema", description="version of these options")
    name: str = Field(pattern=NAME, description="name of the comparison")
    output: str = Field("", description="folder of all its runs and its table; default runs/compare/<name>")
    recipes: list[str] = Field(min_length=1, description="recipe files, or names of shipped recipes")
    variants: dict[str, dict[str, Any]] = Field(min_length=1, description="keys of the recipes that a variant sets, by its name")
    seeds: list[int] = Field([0], min_length=1, description="each cell is run with each of these")
    keys: dict[str, Any] = Field({}, description="keys of the recipes that are set in all variants")

    @model_validator(mode="before")
    @classmethod
    def _folder(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and not raw.get("output") and isinstance(raw.get("name"), str):
            return {**raw, "output": f"runs/compare/{raw['name']}"}
        return raw

    @model_validator(mode="after")
    def _names(self) -> ComparisonConfig:
        for name in self.variants:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"variants: {name!r} is no name for a folder: letters, digits and . _ + - are")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: each must be another one")
        return self


@dataclass(frozen=True)
class Cell:
    """One run: name of the recipe, variant, seed, and the whole recipe with its folder."""

    name: str
    variant: str
    seed: int
    recipe: Recipe

    @property
    def folder(self) -> Path:
        """Where its cell.json lies, beside the folder of its run."""
        return Path(self.recipe.output).parent

    def __str__(self) -> str:
        return f"{self.name}/{self.variant}/{self.seed}"


def read_comparison(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ComparisonConfig:
    """The comparison in a file, or shipped under a name. overrides: `path.to.key=value` items. Raises RecipeError with every fault."""
    path = Path(source)
    if not path.is_file():
        known = shipped("comparisons")
        short = os.fspath(source).removeprefix("recipes/").removeprefix("comparisons/").removesuffix(".yaml")
        if short not in known:
            hint = nearest(short, known)
            raise RecipeError(f"{source}: no such file, and no shipped comparison has this name.{hint} Known: {', '.join(known)}.")
        path = known[short]
    try:
        raw = yaml.parse(path.read_text(encoding="utf-8-sig"), str(source))
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}.") from None
    if isinstance(raw, dict):
        for item in overrides:
            apply_override(raw, item)
    return check(ComparisonConfig, raw, str(source))


def cells(config: ComparisonConfig) -> list[Cell]:
    """Every cell, recipe by recipe. Raises RecipeError that lists the faults of all of them."""
    found, faults = [], []
    for source in config.recipes:
        text = find(source).read_text(encoding="utf-8-sig")
        name = Recipe.parse(text, source).name
        for variant, keys in config.variants.items():
            for seed in config.seeds:
                raw = yaml.parse(text, source)
                folder = Path(config.output) / name / variant / f"seed_{seed}" / RUN
                try:
                    for key, value in {**config.keys, **keys, "seed": seed, "output": str(folder)}.items():
                        set_key(raw, key, copy.deepcopy(value), f"variants.{variant}")  # later keys may be set within it
                    found.append(Cell(name, variant, seed, Recipe.read(raw)))
                except RecipeError as error:
                    lines = str(error).splitlines()
                    faults += [f"{source}, variant {variant}: {line.strip()}" for line in (lines[1:] if len(lines) > 1 else lines)]
    if faults:
        raise told_at_once("comparison", faults)
    names = [str(cell) for cell in found]
    if len(set(names)) < len(names):
        raise RecipeError(f"recipes: two have the name {next(cell.name for cell in found if names.count(str(cell)) > 1)!r}.")
    return found


def run_cell(cell: Cell, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Train and measure one cell, unless it is finished or another process is at it; returns what its cell.json holds then.

    progress(steps done, steps in all) is called while it is trained. Raises KeyboardInterrupt where a signal has stopped it.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(RunLock(cell.folder))
        except RecipeError as error:
            logger.warning("%s is left to the process that is at it: %s", cell, error)
            return _read(cell.folder)
        return _run(cell, progress)


def _run(cell: Cell, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    from mmlm.run import evaluate, train
    from mmlm.training import checkpoint
    from mmlm.training.log import read_log
    from mmlm.training.trainer import CHECKPOINTS, LOG

    known = _read(cell.folder)
    whole = cell.recipe.dump()
    if known.get("recipe") == whole and known.get("finished"):
        return known
    goes_on = known.get("recipe") == whole
    about: dict[str, Any] = known if goes_on else {"cell": str(cell), "recipe": whole, "finished": False}
    about["headline"] = _headline(cell.recipe.tasks[0])
    _write(cell.folder / CELL, about)
    run = Path(cell.recipe.output)
    clock: list[float] = []

    def stepped(step: int, line: dict[str, Any]) -> None:
        clock.append(time.process_time())
        if progress is not None:
            progress(step, cell.recipe.train.steps)

    try:
        result = train(cell.recipe, fresh=not goes_on, progress=stepped)
        if result.reason == "signal":
            raise KeyboardInterrupt
        log = [line for line in read_log(run / LOG) if "tokens" in line]
        if len(clock) > 1 and log:
            about |= {"tokens_a_step": log[-1]["tokens"] / log[-1]["step"], "seconds_a_step": (clock[-1] - clock[0]) / (len(clock) - 1)}
            _write(cell.folder / CELL, about)
        about |= {**evaluate(run), "steps": result.step, "parameters": _parameters(run), "finished": True}
        checkpoint.prune(run / CHECKPOINTS, set())
    except MmlmError as error:
        about |= {"finished": True, "error": str(error)}
    _write(cell.folder / CELL, about)
    return about


def compare(
    config: ComparisonConfig,
    only: str = "*",
    progress: Callable[[Cell, int, int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run the cells whose name recipe/variant/seed fits a pattern, then write table.json and report.html of all finished ones.

    progress(cell, its number, cells in all, steps done, steps in all) is called while cells are trained. Returns what table.json holds.
    """
    from mmlm.evaluation.comparison import table, write_comparison

    everything = cells(config)
    chosen = [cell for cell in everything if fnmatch.fnmatchcase(str(cell), only)]
    if not chosen:
        raise RecipeError(f"--only: no cell fits {only!r}; they are named recipe/variant/seed, such as {everything[0]}.")
    try:
        for number, cell in enumerate(chosen, 1):
            run_cell(cell, _told(progress, cell, number, len(chosen)))
    finally:
        found = table(_finished(everything), list(config.variants))
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / TABLE, without_nan(found))
        write_comparison(folder, config.name, found)
    return found


def _told(
    progress: Callable[[Cell, int, int, int, int], None] | None, cell: Cell, number: int, total: int
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda step, steps: progress(cell, number, total, step, steps)


def _finished(everything: Sequence[Cell]) -> Iterator[dict[str, Any]]:
    """What is known of every cell that was run with its present recipe; of one with several tasks, of each by its name."""
    for cell in everything:
        known = _read(cell.folder)
        if not known.get("finished") or known.get("recipe") != cell.recipe.dump():
            continue
        found = {"name": cell.name, "variant": cell.variant, "seed": cell.seed, **known}
        if "tasks" not in known:
            yield found
            continue
        for task in cell.recipe.tasks:
            yield {**found, **known["tasks"][task.called], "name": f"{cell.name} {task.called}", "headline": _headline(task)}


def _headline(task: Any) -> dict[str, str]:
    """Which metrics of a task a table shows, and whether more or less of each is better."""
    found: dict[str, str] = getattr(task, "headline", {"accuracy": "max"})
    return found


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = parse_json((folder / CELL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text_whole(path, json.dumps(content, indent=1) + "\n")


def _parameters(folder: Path) -> int:
    """Weights of a run: of its model, or where it has none of the tokenizers that it trained."""
    from mmlm.run import TOKENIZERS
    from mmlm.weights import read_tensors

    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob(f"{TOKENIZERS}/*/*.safetensors"))
    return sum(tensor.numel() for path in paths for tensor in read_tensors(path).values())
