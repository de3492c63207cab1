"""report.html: one file that opens without a network and says what a run reached, beside its baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmlm.base.files import write_text_whole
from mmlm.data.episodes import Episode
from mmlm.evaluation.card import with_interval
from mmlm.evaluation.charts import dots, lines
from mmlm.evaluation.history import run_log, sample_links, told, validation_charts
from mmlm.evaluation.protocol import Comparison
from mmlm.recipe import Recipe

PAGE = "report.html"
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 860px; margin: 2.5rem auto; padding: 0 1rem;
       overflow-wrap: break-word; }
h1 { font-size: 1.9rem; margin-bottom: .2rem }
h2 { font-size: 1.25rem; margin-top: 2.6rem } .lead { opacity: .75; margin-top: 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left }
tr.own { font-weight: 600; background: var(--soft) }
svg { width: 100%; height: auto; font-size: 12px } svg text { fill: currentColor }
svg text[fill] { fill: revert-layer } .grid { stroke: var(--line) }
.heard, .drawn { display: flex; flex-wrap: wrap; gap: 1rem } .drawn > * { max-width: 100% } .drawn svg { width: auto; background: #fff }
figure { margin: 0; width: 262px } figure img, figure svg, figure audio { display: block; width: 260px }
figure img { border: 1px solid var(--line) } figcaption { font-size: 14px; line-height: 1.4 }
summary { cursor: pointer; font-size: 1.25rem; font-weight: bold; margin-top: 2.6rem }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: 13px }
"""


def write_report(folder: Path, recipe: Recipe, found: Comparison, metrics: dict[str, Any], shown: Callable[[Episode], str]) -> Path:
    """Write report.html into a run folder that holds log.jsonl; returns its path. shown: a problem as the model reads it."""
    log = run_log(folder)
    shots = sorted({count for _, count, _ in found.values})
    about = metrics["data"]
    best = [f"{metrics['metrics'][f'accuracy_{count}']:.3f} at {count} examples" for count in shots]
    tables = ", ".join(f"{number} table{'' if number == 1 else 's'} at {count} examples" for count, number in about["tables"].items())
    over = " Intervals: 95 %, bootstrap over tables." if any(number > 1 for number in about["tables"].values()) else ""
    parts = [
        f"<h1>{escape(recipe.name)}</h1>",
        f'<p class="lead">Mean accuracy {" and ".join(best)}, on held-out tables ({escape(about["split"])} split: {tables}; '
        f"{about['seeds']} draws each, at most {about['max_queries']} rows a draw).</p>",
        "<h2>Beside the baselines</h2>",
        f"<p>The same example rows and the same rows to predict for all.{over}</p>",
        _headline(metrics, shots),
    ]
    for count in shots:
        rows = {"model": metrics["metrics"], **metrics["baselines"]}
        chart = [(name, row[f"accuracy_{count}"], *row[f"accuracy_{count}_interval"]) for name, row in rows.items()]
        parts += [f"<h3>{count} example rows</h3>", dots([(str(a), float(b), float(c), float(d)) for a, b, c, d in chart], "mean accuracy")]
    if len(shots) > 1:
        names = list(dict.fromkeys(name for _, _, name in found.values))
        rows = {"model": metrics["metrics"], **metrics["baselines"]}
        series = {name: [(float(count), rows[name][f"accuracy_{count}"]) for count in shots] for name in names}
        parts += ["<h3>More examples</h3>", lines(series, "example rows", "mean accuracy")]
    parts += ["<h2>Training</h2>", training(log)] if log else []  # a task among several has none of its own
    if charts := validation_charts(log):
        parts += ["<h2>Validation while training</h2>", f"<p>{escape(told(log, recipe))}</p>", charts]
    parts += [sample_links(folder), "<h2>Calibration</h2>", *plots(metrics)]
    parts += ["<h2>Predictions</h2>", _predictions(found, shots[0], shown)]
    parts += ["<h2>Where a baseline does better</h2>", _worst(found, shots[-1])]
    parts += ["<h2>Every table</h2>", _per_table(found, shots), recipe_part(recipe)]
    settings = "its default settings" if about["xgboost"] == "default" else "the best of a random search in each draw"
    parts += ["<h2>How it was measured</h2><p>Classes beyond the ten commonest of the examples count as misses. Numeric targets were cut "]
    parts += [f"into quantile bins whose edges come from the example rows. XGBoost ran with {settings}.</p>"]
    return write_page(folder, recipe.name, parts)


def write_page(folder: Path, title: str, parts: Sequence[str]) -> Path:
    """Write report.html: one page from parts of HTML, whole or not at all; returns its path."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}"
    path = folder / PAGE
    write_text_whole(path, f"{head}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n")
    return path


def recipe_part(recipe: Recipe) -> str:
    """The whole recipe, folded."""
    return f"<details><summary>Recipe</summary><pre>{escape(recipe.dump())}</pre></details>"


def _headline(metrics: dict[str, Any], shots: Sequence[int]) -> str:
    """A row for the model and each baseline, with intervals where there are several tables, over which they are."""
    head = "".join(f"<th>accuracy, {count} ex.</th><th>model minus this</th><th>log-loss</th>" for count in shots)
    body = []
    for name, row in {"model": metrics["metrics"], **metrics["baselines"]}.items():
        cells = []
        for count in shots:
            several, gap = metrics["data"]["tables"][count] > 1, row.get(f"model_minus_this_{count}")
            told = "" if gap is None else f"{gap:+.3f}"
            if gap is not None and several:
                told += " ({:+.3f} to {:+.3f})".format(*row[f"model_minus_this_{count}_interval"])
            mean = with_interval(row[f"accuracy_{count}"], row[f"accuracy_{count}_interval"] if several else None)
            cells.append(f"<td>{mean}</td><td>{told}</td><td>{row[f'nll_{count}']:.2f}</td>")
        own = ' class="own"' if name == "model" else ""
        body.append(f"<tr{own}><td>{escape(name.replace('_', ' '))}</td>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(body)}</table></div>'


def training(log: Sequence[dict[str, Any]]) -> str:
    """Cost of a run, and its loss, rate and gradient over steps."""
    logged = [line for line in log if line.get("loss") is not None]
    if not logged:
        return "<p>No log was kept.</p>"
    last = next(line for line in reversed(log) if "tokens" in line)  # the steps since the last finite loss count too
    charts = lines({"loss": [(line["step"], line["loss"]) for line in logged]}, "step", "loss")
    charts += lines({"lr": [(line["step"], line["lr"]) for line in logged]}, "step", "learning rate")
    charts += lines({"norm": [(line["step"], line.get("grad_norm")) for line in logged]}, "step", "gradient norm")
    cost = f"{last['step']} steps, {last['tokens']:,} tokens, {last['seconds']:.0f} s, peak memory {last['peak_gib']:.1f} GiB"
    return f"<p>{cost}; {last['skipped']} steps skipped as not finite.</p>{charts}"


def plots(metrics: dict[str, Any]) -> list[str]:
    """What metrics.json has to draw, as parts of HTML: how far probabilities can be believed, and curves over a quantity."""
    parts = []
    if bins := metrics.get("reliability"):
        error = f"Expected calibration error {metrics['metrics']['calibration_error']:.3f} (15 bins of equal mass)."
        points = [(confidence, right) for confidence, right, _ in bins]
        parts = [f"<p>{error}</p>{lines({'share right': points}, 'confidence', 'share right', diagonal=True)}"]
    curves: dict[str, dict[str, Any]] = metrics.get("curves", {})
    for title in dict.fromkeys(title for found in curves.values() for title in found):
        series = {name: found[title] for name, found in curves.items() if title in found}
        parts.append(f"<h3>{escape(title)} over {escape(metrics['over'])}</h3>{lines(series, metrics['over'], title)}")
    return parts


def _predictions(found: Comparison, count: int, shown: Callable[[Episode], str]) -> str:
    """Three problems, spread over the tables, as the model reads them, and what it says of the first rows to predict."""
    kept = sorted(((table, *both) for (shots, table), both in found.problems.items() if shots == count), key=lambda one: one[0])
    parts = []
    for table, problem, chance in kept[:: max(1, len(kept) // 3)][:3]:
        truth = problem.labels[problem.num_shots :]
        rows = "".join(
            f"<tr><td>row {row + 1}</td><td>{escape(problem.classes[int(chance[row].argmax())])}</td><td>{chance[row].max():.2f}</td>"
            f"<td>{escape(problem.classes[truth[row]]) if truth[row] >= 0 else 'another class'}</td></tr>"
            for row in range(min(5, len(truth)))
        )
        parts.append(
            f"<h3>{escape(table)}: {escape(problem.target)}</h3><p>What the model reads: {problem.num_shots} examples and the first row to "
            f'predict.</p><pre>{escape(shown(problem))}</pre><div class="wide"><table><tr><th></th><th>predicted</th><th>chance</th>'
            f"<th>true</th></tr>{rows}</table></div>"
        )
    return "".join(parts)


def _worst(found: Comparison, count: int) -> str:
    """The tables on which the best baseline is furthest above the model."""
    model = found.values.get(("accuracy", count, "model"), {})
    others = {name: values for (measure, shots, name), values in found.values.items() if measure == "accuracy" and shots == count}
    gaps = []
    for table, own in model.items():
        best = max((values[table], name) for name, values in others.items() if name != "model") if len(others) > 1 else (own, "")
        gaps.append((best[0] - own, table, own, best))
    rows = "".join(
        f"<tr><td>{escape(table)}</td><td>{own:.3f}</td><td>{best[0]:.3f}</td><td>{escape(best[1].replace('_', ' '))}</td></tr>"
        for gap, table, own, best in sorted(gaps, reverse=True)[:8]
        if gap > 0
    )
    if not rows:
        return f"<p>On no table, with {count} examples.</p>"
    head = "<tr><th>table</th><th>model</th><th>best baseline</th><th>which</th></tr>"
    return f'<p>Accuracy with {count} examples.</p><div class="wide"><table>{head}{rows}</table></div>'


def _per_table(found: Comparison, shots: Sequence[int]) -> str:
    names = list(dict.fromkeys(name for _, _, name in found.values))
    count = shots[-1]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    model = found.values.get(("accuracy", count, "model"), {})
    rows = []
    for table in sorted(model, key=lambda name: model[name]):
        cells = "".join(f"<td>{found.values['accuracy', count, name].get(table, float('nan')):.3f}</td>" for name in names)
        rows.append(f"<tr><td>{escape(table)}</td>{cells}</tr>")
    title = f"<p>Accuracy with {count} examples, hardest first.</p>"
    return f'{title}<div class="wide"><table><tr><th>table</th>{head}</tr>{"".join(rows)}</table></div>'
