"""The table of a comparison: means and spreads over seeds, costs, and how it is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmlm.evaluation.charts import COLOURS, lines
from mmlm.evaluation.measure import mean_and_spread
from mmlm.evaluation.report import write_page
from mmlm.tasks.base import CEILINGS

MOST_LINES = 6


def table(cells: Iterable[dict[str, Any]], variants: Sequence[str]) -> dict[str, Any]:
    """What table.json holds.

    cells: name (of the recipe), variant, seed, and either an error or metrics, baselines, headline, curves, parameters, tokens_a_step and
    seconds_a_step. Returns variants; columns: {label: {better: max or min, chance: value of the first baseline that can be beaten, or
    None}}; values: {label: {variant: [a value a seed]}}; curves: {label: {variant: points of the first seed}}; cost: {recipe: {variant:
    {parameters, runs, microseconds: a token, mean over the runs whose time is known, or None}}}; errors.
    """
    columns: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, dict[str, list[list[float]]]] = {}
    cost: dict[str, dict[str, dict[str, Any]]] = {}
    errors: dict[str, str] = {}
    for cell in cells:
        variant = cell["variant"]
        if "error" in cell:
            errors[f"{cell['name']}, {variant}"] = cell["error"]
            continue
        for key, value in cell["metrics"].items():
            whole = key.partition(": ")[0]
            metric = whole if whole in cell["headline"] else re.split(r"_\d", whole)[0]
            better = cell["headline"].get(metric)
            if better is None or not isinstance(value, int | float):
                continue
            label = column_label(cell["name"], "" if key == metric else key)
            label += f", {metric}" if metric != next(iter(cell["headline"])) else ""
            chance = next((row[key] for who, row in cell["baselines"].items() if key in row and who not in CEILINGS), None)
            columns.setdefault(label, {"better": better, "chance": chance})
            values.setdefault(label, {}).setdefault(variant, []).append(float(value))
        for source, found in cell.get("curves", {}).items():
            for title, points in found.items():
                label = f"{column_label(cell['name'], f'{title}: {source}')}: {title} over {cell['over']}"
                curves.setdefault(label, {}).setdefault(variant, points)
        own = cost.setdefault(cell["name"], {}).setdefault(variant, {"parameters": cell["parameters"], "runs": 0, "microseconds": 0.0})
        if cell.get("tokens_a_step"):
            own["microseconds"] += 1e6 * cell["seconds_a_step"] / cell["tokens_a_step"]
            own["runs"] += 1
    for rows in cost.values():
        for own in rows.values():
            own["microseconds"] = own["microseconds"] / own["runs"] if own["runs"] else None
    shown = [variant for variant in variants if any(variant in rows for rows in cost.values())]
    return {"variants": shown, "columns": columns, "values": values, "cost": cost, "errors": errors, "curves": curves}


def column_label(name: str, key: str) -> str:
    """The recipe, and in which way the test source differs from others of it: "parity, length 256" of "accuracy: counting, length 256"."""
    _, colon, source = key.partition(": ")
    _, comma, details = source.partition(", ")
    if colon:
        return f"{name}, {details}" if comma else name
    return f"{name}, {key}" if re.search(r"_\d", key) else name


def text_table(found: dict[str, Any]) -> str:
    """For a terminal: a line a column of the table, then cost, then what could not be run."""
    variants = found["variants"]
    wide = max((len(label) for label in [*found["columns"], *(f"{name}: us/token" for name in found["cost"])]), default=0)
    cell = max([13, *(len(variant) + 2 for variant in variants)])
    head = f"{'':<{wide}}" + "".join(f"{variant:>{cell}}" for variant in variants)
    rows = [head]
    for label, row in found["values"].items():
        rows.append(f"{label:<{wide}}" + "".join(f"{with_spread(row.get(variant, [])):>{cell}}" for variant in variants))
    rows.append("")
    for name, costs in found["cost"].items():
        for what, figure_of in (("us/token", _time), ("weights", _weights)):
            figures = [figure_of(costs[variant]) if variant in costs else "" for variant in variants]
            rows.append(f"{f'{name}: {what}':<{wide}}" + "".join(f"{figure:>{cell}}" for figure in figures))
    return "\n".join([*rows, *(f"{which}: {told}" for which, told in found["errors"].items())])


def _time(cost: dict[str, Any]) -> str:
    """Microseconds a token; nobody knows them of runs that counted no tokens, or took fewer than two steps since they were begun."""
    return "unknown" if cost["microseconds"] is None else f"{cost['microseconds']:.1f}"


def _weights(cost: dict[str, Any]) -> str:
    return f"{cost['parameters']:,}"


def with_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; the value alone of one seed."""
    if not values:
        return ""
    mean, spread = mean_and_spread(values)
    return f"{mean:.3f}" if len(values) == 1 else f"{mean:.3f} ±{spread:.3f}"


def write_comparison(folder: Path, name: str, found: dict[str, Any]) -> Path:
    """Write report.html: the table as a heat map, costs, curves of all variants, and what could not be run."""
    seeds = max((len(values) for row in found["values"].values() for values in row.values()), default=0)
    best = "The darker a cell, the better; the lightest is what the baseline beside it reaches, or the worst of its row."
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="lead">Mean over up to {seeds} seeds, with the standard deviation over them. {best}</p>',
        heat_table(found),
        "<h2>Cost</h2><p>CPU microseconds a token in training, on the machine that ran it, and the number of weights.</p>",
        _costs(found),
    ]
    if found["errors"]:
        told = "".join(f"<li>{escape(which)}: {escape(text)}</li>" for which, text in found["errors"].items())
        parts += ["<h2>Not run</h2>", f"<ul>{told}</ul>"]
    parts += ["<h2>Curves</h2>"] if found["curves"] else []
    for label, rows in found["curves"].items():
        title, _, rest = label.rpartition(": ")
        y_name, _, x_name = rest.partition(" over ")
        order = sorted(rows, key=found["variants"].index)
        for start in range(0, len(order), MOST_LINES):
            series = {variant: [(x, y) for x, y in rows[variant]] for variant in order[start : start + MOST_LINES]}
            parts += [f"<h3>{escape(title)}</h3>", lines(series, x_name, y_name)]
    return write_page(folder, name, parts)


def heat_table(found: dict[str, Any]) -> str:
    """A row a column of the table, a cell a variant; shade: 0 at the baseline (else the row's worst) to 1 at the best possible or best."""
    variants = found["variants"]
    head = "".join(f"<th>{escape(variant)}</th>" for variant in variants)
    rows = []
    for label, row in found["values"].items():
        about = found["columns"][label]
        means = {variant: mean_and_spread(values)[0] for variant, values in row.items()}
        shades = {variant: round(70 * shade(mean, list(means.values()), about)) for variant, mean in means.items()}
        cells = "".join(
            f'<td style="background: color-mix(in srgb, {COLOURS[0]} {shades[variant]}%, transparent)">{with_spread(row[variant])}</td>'
            if variant in row
            else "<td></td>"
            for variant in variants
        )
        chance = "" if about["chance"] is None else f"{about['chance']:.3f}"
        rows.append(f"<tr><td>{escape(label)}</td><td>{chance}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr><th></th><th>baseline</th>{head}</tr>{"".join(rows)}</table></div>'


def shade(value: float, row: Sequence[float], about: dict[str, Any]) -> float:
    """0 to 1: how good a value is between the baseline and 1, or the best of its row where that is more (of what is better high), or
    between worst and best of its row."""
    if not math.isfinite(value):
        return 0.0
    finite = [each for each in row if math.isfinite(each)]
    low, high = min(finite), max(finite)
    if about["better"] == "max" and about["chance"] is not None:
        low, high = about["chance"], max(1.0, high)
    share = (value - low) / (high - low) if high > low else 1.0
    return min(1.0, max(0.0, share if about["better"] == "max" else 1 - share))


def _costs(found: dict[str, Any]) -> str:
    head = "".join(f"<th>{escape(variant)}</th>" for variant in found["variants"])
    rows = []
    for name, costs in found["cost"].items():
        cells = "".join(
            f"<td>{_time(costs[variant])}<br>{_weights(costs[variant])}</td>" if variant in costs else "<td></td>"
            for variant in found["variants"]
        )
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
