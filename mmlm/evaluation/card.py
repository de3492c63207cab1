"""The model card: README.md of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmlm.evaluation.history import run_log, told
from mmlm.recipe import Recipe

CARD = "README.md"


def write_card(folder: Path, recipe: Recipe, metrics: dict[str, Any] | None) -> Path:
    """Write README.md: what the model is, what it was trained on, what was measured, how it is used. metrics: of an evaluation, if any."""
    sources = ", ".join(f"{source.type} (weight {source.weight:g})" for source in recipe.data.train)
    begun = f"from the weights of `{recipe.backbone.pretrained}`" if recipe.backbone.pretrained else "from random weights"
    own = getattr(recipe.tasks[0], "has_own_network", False)
    types = ", ".join(f"`{task.type}`" for task in recipe.tasks)
    objectives = "" if own else f" {_objectives(recipe)}"
    lines = [
        f"# {recipe.name}",
        "",
        *(line for task in recipe.tasks for line in (f"{type(task).__doc__ or ''}".strip(), "")),
        f"- Trained {begun} by mmlm, with the recipe in `recipe.yaml` (seed {recipe.seed}).",
        f"- Training data: {sources}. Its licences are those of the packages and files it comes from.",
        f"- Task{'' if len(recipe.tasks) == 1 else 's'}: {types}.{objectives}",
        *([f"- {found}"] if (found := told(run_log(folder), recipe)) else []),
        "",
        *(line for alone in recipe.alone for line in _use(alone)),
        "## Measured",
        "",
    ]
    if metrics is None:
        return _write(folder, [*lines, f"Nothing yet: `mmlm evaluate {recipe.output}` measures it beside its baselines."])
    if "tasks" not in metrics:
        return _write(folder, [*lines, *figures(recipe, metrics)])
    for alone, some in zip(recipe.alone, metrics["tasks"].values(), strict=True):
        lines += [f"### {alone.tasks[0].called}", "", *figures(alone, some), ""]
    return _write(folder, lines)


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
        cells = [with_interval(row[f"accuracy_{count}"], row[f"accuracy_{count}_interval"] if several else None) for count in shots]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    limits = "At most ten classes a column. " if recipe.tasks[0].type == "tabular" else ""
    limits += "Numbers are predicted through bins. Probabilities may be off on unfamiliar tables; "
    limits += f"the expected calibration error over all held-out tables is {metrics['metrics']['calibration_error']:.3f}."
    return [*lines, "", "## Limits", "", limits]


COMMANDS = {
    "tts": '--text "Something to say." --output said.wav',
    "grounded": "--image picture.jpg",
    "sweeps": "--sweep sweep.bin",
    "regression_transformer": "--smiles CCO",
    "picture_classes": "--image picture.jpg",
    "image_codes": "--image picture.jpg",
}


def _use(recipe: Recipe) -> list[str]:
    """How the model is used, by what its task reads and makes."""
    task, run = recipe.tasks[0], recipe.output
    reads = getattr(task, "reads", "tables")
    found: list[str] = []
    if task.type in ("codec", "image_codes"):
        name, codec = next(iter(recipe.tokenizers.items()))
        found = ["As a tokenizer of another recipe:", "", f"    tokenizers: {{{name}: {{type: {codec.type}, path: {run}}}}}", ""]
    elif task.type == "picture_classes":
        found = ["    import mmlm", f'    mmlm.encoder("{run}").encode(["picture.jpg"])', ""]
    elif reads == "tables":
        found = ["    from mmlm import TabularPredictor", f'    TabularPredictor("{run}").fit(rows, targets).predict(new_rows)', ""]
    elif reads == "texts":
        found = ["    import mmlm", f'    mmlm.load("{run}").generate("A text that begins", max_new_tokens=50)[0].text', ""]
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
    lines = [f"Test samples: {records}.", "", f"| | {' | '.join(metrics['metrics'])} |", f"|---{'|---' * len(metrics['metrics'])}|"]
    for who, row in rows.items():
        lines.append(f"| {who} | {' | '.join(f'{row[key]:.4g}' if key in row else '' for key in metrics['metrics'])} |")
    return lines


def with_interval(mean: float, interval: Sequence[float] | None) -> str:
    """A measure and its interval as text; None for one table alone, over which there is no interval."""
    return f"{mean:.3f}" if interval is None else f"{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _write(folder: Path, lines: list[str]) -> Path:
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / CARD
