"""What validation found while a run was trained, read from its log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mmlm.evaluation.charts import lines
from mmlm.recipe import Recipe
from mmlm.training.log import read_log
from mmlm.training.trainer import LOG, SAMPLES

MARK = "validation."
MOST_TEXTS, MOST_CHARACTERS = 3, 3000  # of samples that a page shows whole, of each task


def run_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; none where it was not kept."""
    return read_log(folder / LOG) if (folder / LOG).is_file() else []


def validations(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a log that tell a validation."""
    return [line for line in log if any(key.startswith(MARK) for key in line)]


def told(log: Sequence[dict[str, Any]], recipe: Recipe) -> str:
    """One sentence: what validation found of the weights that the run ended with, and whether they are the best; empty without any."""
    found = validations(log)
    if not found:
        return ""
    last, best = found[-1], recipe.train.keep_best
    ended = next((line for line in found if line["step"] == last.get("best_step")), last)
    names = [key.removeprefix(MARK) for key in ended if key.startswith(MARK) and not key.startswith(f"{MARK}loss.")]
    values = ", ".join(f"{name} {_shown(ended[MARK + name])}" for name in names)
    kept = ""
    if best is not None and last.get("best_step") is not None:
        kept = f"; kept are the weights of this step, the best of {len(found)} by {best.metric}"
    return f"Validation on {recipe.data.validate_samples} samples at step {ended['step']:,}: {values}{kept}."


def validation_charts(log: Sequence[dict[str, Any]]) -> str:
    """Loss and each metric over steps and over training time, as charts; empty without any validation."""
    found = validations(log)
    names = list(dict.fromkeys(key for line in found for key in line if key.startswith(MARK) and not key.startswith(f"{MARK}loss.")))
    parts = []
    for key in names:
        name = key.removeprefix(MARK)
        for at, title in (("step", "step"), ("seconds", "training time, s")):
            series = {f"validation {name}": [(line[at], line[key]) for line in found if line.get(key) is not None and at in line]}
            if name == "loss":
                series = {"training loss": [(line[at], line["loss"]) for line in log if line.get("loss") is not None]} | series
            parts.append(lines(series, title, name if name == "loss" else f"validation {name}"))
    return "".join(parts)


def sample_links(folder: Path) -> str:
    """Links to the samples that were written while training, by step, players of those that are sound, and the last texts; empty without
    any."""
    root = folder / SAMPLES
    files = sorted((path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [], key=partial(_in_order, root))
    links = [f'<a href="{_place(path, folder)}">{escape(path.relative_to(root).as_posix())}</a>' for path in files if path.suffix != ".wav"]
    cell = '<tr><td>{}</td><td><audio controls preload="none" src="{}"></audio></td></tr>'
    heard = [cell.format(escape(path.relative_to(root).as_posix()), _place(path, folder)) for path in files if path.suffix == ".wav"]
    table = f'<h2>To be heard</h2><div class="wide"><table>{"".join(heard)}</table></div>' if heard else ""
    return (f"<p>Samples while training: {', '.join(links)}.</p>" if links else "") + table + _last_texts(root, files)


def _in_order(root: Path, path: Path) -> tuple[int, Path]:
    """By step, those of more digits later."""
    return len(path.relative_to(root).parts[0]), path


def _last_texts(root: Path, files: Sequence[Path]) -> str:
    """The texts among the samples of the last step, of each task the first of them and their beginnings."""
    step = files[-1].relative_to(root).parts[0] if files else ""
    folders: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix == ".txt" and path.is_relative_to(root / step):
            folders.setdefault(path.parent, []).append(path)
    parts = []
    for place, texts in folders.items():
        parts += [f"<h3>{escape(place.name)}</h3>"] if len(folders) > 1 else []
        told = (path.read_text(encoding="utf-8", errors="replace")[:MOST_CHARACTERS] for path in texts[:MOST_TEXTS])
        parts += [f"<pre>{escape(text)}</pre>" for text in told]
    return f"<h2>Samples at the end</h2>{''.join(parts)}" if parts else ""


def _place(path: Path, folder: Path) -> str:
    return quote(path.relative_to(folder).as_posix())


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"
