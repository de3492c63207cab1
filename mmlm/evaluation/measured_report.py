"""report.html of a run whose task is measured on the records of test sources."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmlm.data.audio_files import write_sound
from mmlm.evaluation.history import run_log, sample_links, told, validation_charts
from mmlm.evaluation.judges import MODEL, Verdict
from mmlm.evaluation.measure import Measurement, metric_names
from mmlm.evaluation.report import plots, recipe_part, training, write_page
from mmlm.evaluation.spectrogram import attention_image, extent, spectrogram_image
from mmlm.recipe import Recipe

HEARD = "heard"


def write_measured_report(folder: Path, recipe: Recipe, found: Measurement, metrics: dict[str, Any], shown: Callable[[Any], str]) -> Path:
    """Write report.html into a run folder that holds log.jsonl; returns its path. metrics: what metrics.json holds."""
    shutil.rmtree(folder / HEARD, ignore_errors=True)  # of an evaluation before
    log = run_log(folder)
    told_records = ", ".join(f"{count} of {name}" for name, count in found.records.items())
    is_apart = not any("trained_on" in values for values in found.values.values())
    parts = [
        f"<h1>{escape(recipe.name)}</h1>",
        f'<p class="lead">{escape(type(recipe.tasks[0]).__doc__ or "")}</p>',
        f"<h2>Measured</h2><p>Test samples: {escape(told_records)}."
        f"{' None of them was trained or validated on.' if is_apart else ' trained_on is the share of them that was trained on too.'}</p>",
        measured_table(found),
        *(part for number, (name, verdict) in enumerate(found.verdicts.items(), 1) for part in _verdict(folder, number, name, verdict)),
    ]
    for name, drawn in found.pictures.items():
        parts += [f"<h3>Made: {escape(name)}</h3>", f'<div class="drawn">{"".join(drawn)}</div>'] if drawn else []
    parts += plots(metrics)
    parts += ["<h2>Training</h2>", training(log)] if log else []  # a task among several has none of its own
    if charts := validation_charts(log):
        parts += ["<h2>Validation while training</h2>", f"<p>{escape(told(log, recipe))}</p>", charts]
    parts += [sample_links(folder), "<h2>What the model reads</h2>"]
    parts += [f"<h3>{escape(name)}</h3><pre>{escape(shown(record)[:4000])}</pre>" for name, record in found.first.items()]
    parts.append(recipe_part(recipe))
    return write_page(folder, recipe.name, parts)


def measured_table(found: Measurement) -> str:
    """A row for the model and for each baseline, a column for each metric of each test source."""
    keys = metric_names(found)
    head = "".join(f"<th>{escape(key)}</th>" for key in keys.values())
    names = list(dict.fromkeys(name for rows in found.baselines.values() for name in rows))
    rows = []
    for who in ("model", *names):
        values = [found.values[name] if who == "model" else found.baselines[name].get(who, {}) for name, _ in keys]
        cells = "".join(f"<td>{f'{value[metric]:.4g}' if metric in value else ''}</td>" for (_, metric), value in zip(keys, values))
        own = ' class="own"' if who == "model" else ""
        rows.append(f"<tr{own}><td>{escape(who)}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _verdict(folder: Path, place: int, name: str, verdict: Verdict) -> list[str]:
    """What was judged, and the first sounds with players and pictures; the sounds are files of the run folder. place: of the test source
    among all, as long names may begin alike."""
    about = verdict.about
    of = ", ".join(f"{judge} of {count}" for judge, count in about["measured"].items() if count)
    told = f"{name}: {about['sounds']} sounds were judged ({of or 'by nobody'})."
    told += f" Words were counted by {about['recognizer']}." if "recognizer" in about else ""
    parts = [f"<p>{escape(told)}</p>"]
    if verdict.players:
        parts.append(f"<h3>To be heard: {escape(name)}</h3>")
    for number, (title, sounds, heard) in enumerate(verdict.players, 1):
        cells = []
        for who, sound in sounds.items():
            path = f"{HEARD}/{place}_{_as_name(name)}/{number}_{_as_name(who)}.wav"
            write_sound(folder / path, sound)
            player = f'<audio controls preload="none" src="{quote(path)}"></audio>'
            pictures = spectrogram_image(sound, escape(who, quote=True), heard.marks if who == MODEL else ())
            if who == MODEL and heard.attention is not None and (looked := heard.attention()) is not None:
                pictures += attention_image(*looked)
            cells.append(f"<figure>{pictures}{player}<figcaption>{escape(who)}<br><small>{extent(sound)}</small></figcaption></figure>")
        parts.append(f'<p>{escape(title)}</p><div class="heard">{"".join(cells)}</div>')
    return parts


def _as_name(text: str) -> str:
    """Letters and digits of a text, the rest as _."""
    return re.sub(r"\W+", "_", text).strip("_")[:80]
