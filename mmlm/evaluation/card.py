"""The model card: README.md of a run folder."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmlm.base.files import write_text_whole
from mmlm.base.registry import components_in
from mmlm.evaluation.history import run_log, told
from mmlm.recipe import Recipe

CARD = "README.md"


def write_card(folder: Path, recipe: Recipe, metrics: dict[str, Any] | None, path: Path | None = None) -> Path:
    """Write the card of a run: what the model is, what it was trained on, what was measured, how it is used, what it cannot do, and whose
    its data are. metrics: of an evaluation, if any.   path: another file than README.md in the run folder."""
    path = folder / CARD if path is None else path
    write_text_whole(path, card(folder, recipe, metrics))
    return path


def card(folder: Path, recipe: Recipe, metrics: dict[str, Any] | None) -> str:
    """The text of a run's card."""
    parts = [
        _head(folder, recipe),
        _data(recipe),
        *(_use(alone) for alone in recipe.alone),
        _measured(recipe, metrics),
        _limits(recipe),
        LICENCE,
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


LICENCE = [
    "## Licence",
    "",
    "mmlm is licensed under Apache-2.0. What the weights may be used for, the licences of the data above also decide.",
    "",
]


def _head(folder: Path, recipe: Recipe) -> list[str]:
    """What the model is, and how it was made."""
    own = getattr(recipe.tasks[0], "has_own_network", False)
    types, log = ", ".join(f"`{task.type}`" for task in recipe.tasks), run_log(folder)
    objectives = "" if own else f" {_objectives(recipe)}"
    logged = next((line for line in reversed(log) if line.get("tokens")), None)
    return [
        f"# {recipe.name}",
        "",
        *(line for task in recipe.tasks for line in (f"{type(task).__doc__ or ''}".strip(), "")),
        f"- Trained {_begun(recipe)} by mmlm, with the recipe in `recipe.yaml` (seed {recipe.seed}).",
        *([f"- {logged['step']:,} steps, {logged['tokens']:,} tokens, {logged['seconds']:.0f} s."] if logged else []),
        f"- Task{'' if len(recipe.tasks) == 1 else 's'}: {types}.{objectives}",
        *([f"- {found}"] if (found := told(log, recipe)) else []),
        "",
    ]


def _begun(recipe: Recipe) -> str:
    """What the weights were before: those of a decoder, those that encoders read, or random ones."""
    read = [recipe.backbone.pretrained] if recipe.backbone.pretrained else []
    read += [_weights_of(each) for each in components_in([recipe.encoders, recipe.tasks]) if each.without_weights() != each]
    if not read:
        return "from random weights"
    rest = "" if recipe.backbone.pretrained else " and random ones"
    return f"from the weights of {', '.join(f'`{each}`' for each in read)}{rest}"


def _weights_of(config: Any) -> str:
    """The file of an encoder's weights, or what it takes from the hub."""
    if (path := getattr(config, "path", None)) is not None:
        return str(path)
    return " ".join(word for name in ("model", "pretrained") if isinstance(word := getattr(config, name, None), str)) or str(config.type)


def _data(recipe: Recipe) -> list[str]:
    """The sources, and where they come from."""
    lines = ["## Training data", ""]
    for source in recipe.data.train:
        about = " ".join((type(source).__doc__ or "").split())
        lines.append(f"- `{source.type}` (weight {source.weight:g}). {about} From: {type(source).source}.")
    return [*lines, ""]


def _measured(recipe: Recipe, metrics: dict[str, Any] | None) -> list[str]:
    """The figures of all tasks."""
    lines = ["## Measured", ""]
    if metrics is None:
        return [*lines, f"Nothing yet: `mmlm evaluate {recipe.output}` measures it beside its baselines.", ""]
    if "tasks" not in metrics:
        return [*lines, *figures(recipe, metrics), ""]
    for alone, some in zip(recipe.alone, metrics["tasks"].values(), strict=True):
        lines += [f"### {alone.tasks[0].called}", "", *figures(alone, some), ""]
    return lines


def _limits(recipe: Recipe) -> list[str]:
    """What models of these tasks cannot do."""
    told = list(dict.fromkeys(task.limits for task in recipe.tasks if task.limits))
    return ["## Limits", "", *(f"- {each}" for each in told), ""] if told else []


def _objectives(recipe: Recipe) -> str:
    """The objective, or those of the tasks where they differ."""
    by_task = {alone.tasks[0].called: alone.objective.type for alone in recipe.alone}
    if len(set(by_task.values())) == 1:
        return f"Objective: `{recipe.alone[0].objective.type}`."
    return f"Objectives: {', '.join(f'`{objective}` ({name})' for name, objective in by_task.items())}."


def figures(recipe: Recipe, metrics: dict[str, Any]) -> list[str]:
    """The figures of one task."""
    if "records" in metrics["data"]:
        return _of_records(metrics)
    about, shots = metrics["data"], list(metrics["data"]["tables"])
    several = any(count > 1 for count in about["tables"].values())
    where = "Held-out rows of the file" if about["split"] == "file" else f"Held-out tables, {about['split']} split"
    measure = "Mean accuracy" + (" with its 95 % interval over tables" if several else "")
    lines = [f"{where}; draws of each: {about['seeds']}. {measure}.", ""]
    lines += [f"| | {' | '.join(f'{count} examples' for count in shots)} |", f"|---{'|---' * len(shots)}|"]
    for name, row in {"model": metrics["metrics"], **metrics["baselines"]}.items():
        cells = [
            with_interval(row[f"accuracy_{count}"], row[f"accuracy_{count}_interval"] if about["tables"][count] > 1 else None)
            for count in shots
        ]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return [*lines, "", f"The expected calibration error over all held-out tables is {metrics['metrics']['calibration_error']:.3f}."]


COMMANDS = {
    "tts": '--text "Something to say." --output said.wav',
    "grounded": "--image picture.jpg",
    "sweeps": "--sweep sweep.bin",
    "regression_transformer": "--smiles CCO",
    "picture_classes": "--image picture.jpg",
    "image_codes": "--image picture.jpg",
    "codec": "--given audio=sound.wav --output coded",
    "robust_units": "--given audio=sound.wav",
    "image_text": '--given pictures=photos --given texts="a blue square" --output found',
}


def _use(recipe: Recipe) -> list[str]:
    """How the model is used, by what its task reads and makes."""
    task, run, text = recipe.tasks[0], shlex.quote(recipe.output), json.dumps(recipe.output)
    reads = getattr(task, "reads", "tables")
    found: list[str] = []
    if task.type in ("codec", "image_codes"):
        name, codec = next(iter(recipe.tokenizers.items()))
        found = ["As a tokenizer of another recipe:", "", f"    tokenizers: {{{name}: {{type: {codec.type}, path: {text}}}}}", ""]
    elif task.type == "image_text":
        found = [
            "    import mmlm",
            f"    towers = mmlm.encoder({text})",
            '    towers.encode(["picture.jpg"]), towers.encode_texts(["words"])',
            "",
        ]
    elif task.type == "picture_classes":
        found = ["    import mmlm", f'    mmlm.encoder({text}).encode(["picture.jpg"])', ""]
    elif reads == "tables":
        found = ["    from mmlm import TabularPredictor", f"    TabularPredictor({text}).fit(rows, targets).predict(new_rows)", ""]
    elif reads == "texts":
        found = ["    import mmlm", f'    mmlm.load({text}).generate("A text that begins", max_new_tokens=50)[0].text', ""]
    command = COMMANDS.get(task.type)
    if getattr(task, "mends_sound", False):
        command = "--audio noisy.wav --output clean.wav"
    elif reads == "tables":
        command = "--table new.csv --target column --shots known.csv --output filled.csv"
    elif reads == "texts":
        command = '--text "A text that begins" --temperature 0.8'
    if command is not None:
        found += [f"    mmlm generate {run} {command}", f"    mmlm demo {run}", f"    mmlm serve {run}", ""]
    return ["## Use", "", *found] if found else []


def _of_records(metrics: dict[str, Any]) -> list[str]:
    """The figures of a task that is measured on records."""
    records = ", ".join(f"{count} of {name}" for name, count in metrics["data"]["records"].items())
    rows = {"model": metrics["metrics"], **metrics["baselines"]}
    head = " | ".join(key.replace("|", "\\|") for key in metrics["metrics"])  # a name of a source may hold what parts cells
    lines = [f"Test samples: {records}.", "", f"| | {head} |", f"|---{'|---' * len(metrics['metrics'])}|"]
    for who, row in rows.items():
        lines.append(f"| {who} | {' | '.join(_number(row[key]) if key in row else '' for key in metrics['metrics'])} |")
    return lines


def _number(value: float | None) -> str:
    """A measure as text; null where it is no finite number, as in metrics.json."""
    return "none" if value is None or not math.isfinite(value) else f"{value:.4g}"


def with_interval(mean: float, interval: Sequence[float] | None) -> str:
    """A measure and its interval as text; None for one table alone, over which there is no interval."""
    return f"{mean:.3f}" if interval is None else f"{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
