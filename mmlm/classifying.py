"""Files of pictures through a run that says what they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.files import write_text_whole
from mmlm.data.picture_files import ENDINGS, read_picture
from mmlm.data.speech_check import files_below
from mmlm.run import is_run_of, load_run

TOLD = 5  # classes of a picture that are told


@dataclass(frozen=True)
class Classified:
    """What a file shows: its likeliest classes with their probabilities, the likeliest first."""

    path: Path
    classes: list[tuple[str, float]]


def names_classes(folder: str | Path) -> bool:
    """Whether a folder holds a run that names what pictures show, by its recipe alone."""
    return is_run_of(folder, "picture_classes")


def classify(
    run: str | Path, given: str | Path, output: str | Path | None = None, listen: Callable[[Classified], None] | None = None
) -> tuple[list[Classified], list[str]]:
    """The classes of a file, or of all pictures below a folder, and why files could not be read.

    output: a JSON file for all of them; None: nothing is written. listen: told of each as it is done. Raises RecipeError for a run that
    names no classes, and DataError for a single file that cannot be read.
    """
    if not names_classes(run):
        raise RecipeError(f"{run}: is no run that names classes of pictures.")
    given, output = Path(given), None if output is None else Path(output)
    _, task, model = load_run(run)
    paths = files_below(given, ENDINGS) if given.is_dir() else [given]
    if not paths:
        raise DataError(f"{given}: no file below this folder ends in {', '.join(ENDINGS)}.")
    found, failed = list[Classified](), list[str]()
    for path in paths:
        try:
            pixels = read_picture(path)
        except DataError as error:
            if not given.is_dir():
                raise
            failed.append(str(error))
            continue
        found.append(Classified(path, task.named(task.probabilities(model, [pixels])[0])[:TOLD]))
        if listen is not None:
            listen(found[-1])
    if output is not None:
        told = [{"image": str(one.path), "classes": dict(one.classes)} for one in found]
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(output, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    return found, failed
