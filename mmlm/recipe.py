"""The recipe: one YAML file that names everything a run needs, checked whole before anything starts."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from mmlm.backbone.config import BackboneConfig
from mmlm.base import yaml
from mmlm.base.errors import RecipeError, nearest
from mmlm.base.schema import Strict, problems, told_at_once
from mmlm.data.config import DataConfig
from mmlm.encoders.config import ENCODERS, Projector
from mmlm.evaluation.config import EvaluateConfig
from mmlm.heads.config import HEADS, LanguageModelHeadConfig
from mmlm.objectives.config import OBJECTIVES, CausalConfig
from mmlm.tasks.config import TASKS
from mmlm.tokenizers.config import TOKENIZERS
from mmlm.training.config import AdaptConfig, TrainConfig

MAX_BYTES = 1 << 18


class Recipe(Strict):
    """What a run trains, on what, how and where to."""

    shorthand: ClassVar[dict[str, str]] = {"tasks": "task"}

    schema_version: Literal[1] = Field(alias="schema", description="version of these options")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the run")
    output: str = Field("", description="the run folder; default runs/<name>")
    seed: int = Field(0, ge=0, lt=1 << 63, description="decides weights, order of data and sampling")
    tasks: list[TASKS.choice] = Field([], description="what is learned, all by one decoder; written `task` for one alone")
    data: DataConfig = Field(DataConfig(), description="what is trained and validated on")
    tokenizers: dict[str, TOKENIZERS.choice] = Field({}, description="tokenizers by the name that the task uses")
    encoders: dict[str, ENCODERS.choice] = Field({}, description="encoders by the name that segments use")
    projectors: dict[str, Projector] = Field({}, description="by encoder: linear, or mlp with two layers; linear where nothing is said")
    backbone: BackboneConfig = Field(BackboneConfig(), description="the decoder")
    heads: dict[str, HEADS.choice] = Field({"language_model": LanguageModelHeadConfig()}, description="heads by name")
    adapt: AdaptConfig = Field(AdaptConfig(), description="which parts are trained, how fast, through which adapters")
    objective: OBJECTIVES.choice = Field(CausalConfig(), description="what is hidden, shifted or compared")
    train: TrainConfig = Field(TrainConfig(), description="how long, how fast and what is kept")
    evaluate: EvaluateConfig = Field(EvaluateConfig(), description="how the trained model is measured")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "task" in raw:
            if "tasks" in raw:
                raise ValueError("write task or tasks, not both")
            raw = {("tasks" if key == "task" else key): ([value] if key == "task" else value) for key, value in raw.items()}
        if isinstance(raw, dict) and not raw.get("output") and isinstance(raw.get("name"), str):
            return {**raw, "output": f"runs/{raw['name']}"}
        return raw

    @model_validator(mode="after")
    def _can_validate(self) -> Recipe:
        for key in ("validate_every", "sample_every"):
            if getattr(self.train, key) and not self.data.has_validation:
                raise ValueError(
                    f"train.{key} needs data to validate on. Write data.validate, a list of sources as in data.train, such as "
                    "[{type: real_tables, split: valid}]; or keep rows of a file back with validate_share: 0.1 in its source"
                )
        return self

    @model_validator(mode="after")
    def _tasks_are_apart(self) -> Recipe:
        names = [task.called for task in self.tasks]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"tasks: several are called {repeated[0]}; give each a name of its own")
        if len(names) > 1 and (own := [task.called for task in self.tasks if getattr(task, "has_own_network", False)]):
            raise ValueError(f"tasks: {own[0]} trains a network of its own, not the decoder; give it a recipe of its own")
        return self

    @model_validator(mode="after")
    def _objectives_fit_the_tasks(self) -> Recipe:
        for task in self.tasks:
            given = (self.objective if task.objective is None else task.objective).type
            if task.learns_by and given != task.learns_by:
                told = f"objective: the task {task.called} learns by {task.learns_by} alone, but this is {given}"
                raise ValueError(f"{told}; write objective: {{type: {task.learns_by}}} in the recipe or the task")
        return self

    @model_validator(mode="after")
    def _data_fit_the_tasks(self) -> Recipe:
        if self.tasks and (faults := self.data.faults({task.called: _reads(task) for task in self.tasks})):
            raise ValueError("; ".join(faults))
        if unknown := self.projectors.keys() - self.encoders.keys():
            raise ValueError(f"projectors.{min(unknown)}: there is no encoder of that name; encoders: {', '.join(self.encoders) or 'none'}")
        return self

    @property
    def alone(self) -> list[Recipe]:
        """For each task a recipe of it alone, with the data that it uses and its objective."""
        found = list[Recipe]()
        for task in self.tasks:
            own = {"objective": self.objective if task.objective is None else task.objective}
            if len(self.tasks) > 1:
                own |= {"tasks": [task], "data": self.data.of(task.called, _reads(task))}
            found.append(self if own == {"objective": self.objective} else self.model_copy(update=own))
        return found

    def without_effect(self) -> dict[str, str]:
        """Of the section `evaluate`, what is not about what the tasks make; a task with a network of its own has no decoder."""
        each = [_without_effect(task) for task in self.tasks]
        found = {key: why for some in each for key, why in some.items()}
        return {key: why for key, why in found.items() if all({key, key.partition(".")[0]} & some.keys() for some in each)}

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
        """The recipe in a file, in a YAML text of more than one line, in a mapping, or shipped under a name.

        overrides: `path.to.key=value` items, set before the whole is checked.
        Raises RecipeError that lists every fault with its path and the nearest known name.
        """
        if isinstance(source, Mapping):
            return cls._checked(copy.deepcopy(dict(source)), "recipe", overrides, [])
        if isinstance(source, str) and "\n" in source:
            return cls.parse(source, "recipe", overrides)
        path = find(os.fspath(source))
        return cls.parse(_text(path), str(source), overrides)

    @classmethod
    def parse(cls, text: str, where: str, overrides: Iterable[str] = ()) -> Recipe:
        """The recipe in a YAML text. where: its name in messages."""
        if len(text) > MAX_BYTES:
            raise RecipeError(f"{where}: is {len(text):,} characters long; a recipe has at most {MAX_BYTES:,}.")
        repeated: list[str] = []
        return cls._checked(yaml.parse(text, where, repeated), where, overrides, repeated)

    @classmethod
    def _checked(cls, raw: Any, where: str, overrides: Iterable[str], faults: list[str]) -> Recipe:
        if isinstance(raw, dict):
            for item in overrides:
                try:
                    apply_override(raw, item)
                except RecipeError as error:
                    faults.append(str(error))
        try:
            recipe = cls.model_validate(raw)
        except ValidationError as error:
            raise told_at_once(where, [*faults, *problems(error, cls, raw)]) from None
        if faults:
            raise told_at_once(where, faults)
        return recipe

    def dump(self) -> str:
        """Complete YAML text, every default written out; it reads back as an equal recipe."""
        return yaml.dump(self.model_dump(mode="json", by_alias=True))


def _reads(task: Any) -> str:
    """The kind of its records."""
    return str(getattr(task, "reads", "tables"))


def _without_effect(task: Any) -> dict[str, str]:
    """What of a recipe does nothing for a task, and why."""
    found: dict[str, str] = {}
    if _reads(task) == "tables":
        found = _keys_of_evaluate(EvaluateConfig.of_sounds, f"the task {task.type!r} makes no sound")
    elif getattr(task, "makes_sound", False):
        found = _keys_of_evaluate(EvaluateConfig.of_tables, f"the task {task.type!r} is measured on data.test")
    else:
        found["evaluate"] = f"the task {task.type!r} is measured on data.test"
    if task.objective is not None:
        found["objective"] = "each task has an objective of its own"
    parts = ("encoders", "projectors", "backbone", "heads", "adapt", "objective") if getattr(task, "has_own_network", False) else ()
    return found | dict.fromkeys(parts, f"the task {task.type!r} trains a network of its own")


def _keys_of_evaluate(names: Iterable[str], why: str) -> dict[str, str]:
    return {f"evaluate.{name}": why for name in names}


def apply_override(raw: dict[str, Any], item: str) -> None:
    """Set one key of a loaded recipe from `path.to.key=value`; list items by number. Checked later by the schema."""
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise RecipeError(f"override {yaml.shorten(item)} must look like path.to.key=value.")
    set_key(raw, path, yaml.parse(text, f"override {yaml.shorten(item)}"), f"override {yaml.shorten(item)}")


def set_key(raw: dict[str, Any], path: str, value: Any, who: str) -> None:
    """Set the key at a dotted path of a loaded recipe; list items by number. who: what sets it, for messages.

    A component written by its name alone becomes a section, so that its keys can be set.
    """
    parts = path.split(".")
    if parts[0] == "task" and "task" not in raw and isinstance(raw.get("tasks"), list):  # as a complete recipe has it
        parts = ["tasks", "0", *parts[1:]]
    node: Any = raw
    for at, key in enumerate(parts):
        where = f"{who}: {'.'.join(parts[:at]) or 'the recipe'}"
        if isinstance(node, list):
            if not (key.isdecimal() and len(key) < 10 and int(key) < len(node)):
                raise RecipeError(f"{where} is a list of {len(node)}; {key!r} is no place in it.")
        elif not isinstance(node, dict):
            raise RecipeError(f"{where} is {yaml.shorten(node)} and has no keys.")
        place: Any = int(key) if isinstance(node, list) else key
        if at == len(parts) - 1:
            node[place] = value
            return
        below = node[place] if isinstance(node, list) else node.get(place)
        if below is None or isinstance(below, str):
            node[place] = {} if below is None else {"type": below}
        node = node[place]


def shipped(kind: str = "recipes") -> dict[str, Path]:
    """The recipes, or the comparisons among them, that come with mmlm: file by name, such as tabular/quickstart."""
    import mmlm

    found: dict[str, Path] = {}
    for folder in mmlm.__path__:
        root = Path(folder) / "recipes" if kind == "recipes" else Path(folder) / "recipes" / kind
        for path in sorted(root.rglob("*.yaml")):
            name = path.relative_to(root).with_suffix("").as_posix()
            if kind != "recipes" or not name.startswith("comparisons/"):
                found.setdefault(name, path)
    return found


def find(name: str) -> Path:
    """The file at a path, or the shipped recipe of that name. Raises RecipeError with the nearest shipped name."""
    if "\0" in name:
        raise RecipeError("the path of a recipe must not hold the character U+0000.")
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{name}: is a folder; a recipe is a YAML file.")
    known = shipped()
    short = name.removeprefix("recipes/").removesuffix(".yaml").removesuffix(".yml")
    if short in known:
        return known[short]
    hint = nearest(short, known)
    raise RecipeError(f"{name[:200]}: no such file, and no shipped recipe has this name.{hint} See mmlm list recipes.")


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise RecipeError(f"{path}: is {size:,} bytes long; a recipe has at most {MAX_BYTES:,}.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from None
