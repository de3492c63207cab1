"""report.html of a run of several tasks: the figures of each, and the way to its own report in the folder of its name."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmlm.evaluation.history import run_log, sample_links, told, validation_charts
from mmlm.evaluation.report import PAGE, recipe_part, training, write_page
from mmlm.recipe import Recipe


def write_joint_report(folder: Path, recipe: Recipe, found: dict[str, dict[str, Any]]) -> Path:
    """Write report.html into a run folder that holds log.jsonl; returns its path. found: {task: what metrics.json holds of it}."""
    log = run_log(folder)
    parts = [f"<h1>{escape(recipe.name)}</h1>", f'<p class="lead">One model for {len(found)} tasks.</p>', "<h2>Measured</h2>"]
    for name, metrics in found.items():
        parts += [f'<h3>{escape(name)}</h3><p><a href="{quote(name)}/{PAGE}">The whole report</a></p>', _table(metrics)]
    parts += ["<h2>Training</h2>", training(log)]
    if charts := validation_charts(log):
        parts += ["<h2>Validation while training</h2>", f"<p>{escape(told(log, recipe))}</p>", charts]
    parts += [sample_links(folder), recipe_part(recipe)]
    return write_page(folder, recipe.name, parts)


def _table(metrics: dict[str, Any]) -> str:
    """A row for the model and each baseline, a column for each figure that is a number."""
    rows = {"model": metrics["metrics"], **metrics["baselines"]}
    keys = [key for key, value in metrics["metrics"].items() if isinstance(value, int | float)]
    head = "".join(f"<th>{escape(key.replace('_', ' '))}</th>" for key in keys)
    body = []
    for who, row in rows.items():
        cells = "".join(f"<td>{f'{row[key]:.4g}' if isinstance(row.get(key), int | float) else ''}</td>" for key in keys)
        own = ' class="own"' if who == "model" else ""
        body.append(f"<tr{own}><td>{escape(who.replace('_', ' '))}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
