"""Files of pictures through a run that says what is in them: words, boxes in pixels, and the picture with these boxes drawn in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.analysis.drawing import drawn, write_png
from mmlm.base.errors import DataError, RecipeError
from mmlm.base.files import beside, write_text_whole
from mmlm.data.picture_files import ENDINGS, read_picture
from mmlm.data.pictures import Picture
from mmlm.data.speech_check import files_below
from mmlm.run import load_run
from mmlm.tasks.config import Kind
from mmlm.tasks.grounded import GroundedTask, Request, Said, as_json
from mmlm.tokenizers.boxes import Grounded

CAPTIONS: tuple[Kind, ...] = ("grounded_caption", "caption", "detection", "name")  # what is said of a picture that nothing is asked of


@dataclass(frozen=True)
class Described:
    """What was said of a file, and the files that were written.

    Boxes within `said` are as the model has them: of a picture shares of its width and height, from 0 to 1, of a sweep metres; those in the
    file `json` are pixels, or metres.
    """

    path: Path
    said: list[Said]
    json: Path
    picture: Path


@dataclass(frozen=True)
class Failed:
    """A file that could not be read, and why."""

    path: Path
    why: str


class Describer:
    """Says what is in pictures. run: the folder of a finished run. Raises RecipeError where it describes none."""

    def __init__(self, run: str | Path) -> None:
        recipe, task, self.model = load_run(run, fits=lambda task: task.type == "grounded")
        if not isinstance(task, GroundedTask):
            raise RecipeError(f"{run}: its task {recipe.tasks[0].type!r} describes no pictures; --image needs a run that does.")
        self.task, self.kinds = task, [kind for kind, share in task.config.kinds.items() if share > 0]

    def requests(self, expression: str | None = None, question: str | None = None) -> list[Request]:
        """What a picture is asked: what is named, else its caption. Raises RecipeError for what the run has not learned."""
        wanted: list[Request] = []
        for kind, text in (("expression", expression), ("question", question)):
            if text is not None:
                wanted.append(Request(kind, text, Grounded(text)))  # type: ignore[arg-type]
        wanted = wanted or [Request(kind, "", Grounded("")) for kind in CAPTIONS if kind in self.kinds][:1]
        return learned(wanted, self.kinds)

    def describe(self, path: Path, requests: list[Request]) -> tuple[Picture, list[Said]]:
        """A file and the answers. Raises DataError for one that cannot be read."""
        pixels = read_picture(path)
        record = Picture(path.name, str(path), pixels.shape[1], pixels.shape[0], lambda: pixels)
        answers = self.task.answers(self.model, [pixels] * len(requests), requests)
        return record, [Said(request, answer) for request, answer in zip(requests, answers, strict=True)]


def describe(
    run: str | Path,
    given: str | Path,
    output: str | Path | None = None,
    *,
    expression: str | None = None,
    question: str | None = None,
    listen: Callable[[Described], None] | None = None,
) -> tuple[list[Described], list[Failed]]:
    """Describe a file, or all pictures below a folder; returns what was said and which files could not be read.

    output: a folder, default GIVEN.described beside what was given; NAME.json and NAME.png are written there for each picture.
    listen: told of each as it is done. Raises RecipeError for a run that cannot, and DataError for a single file that cannot be read.
    """
    describer = Describer(run)
    requests = describer.requests(expression, question)

    def say(path: Path) -> Told:
        record, said = describer.describe(path, requests)
        return said, [as_json(record, one) for one in said], drawn(record.read(), together(said))

    return each_file(given, output, ENDINGS, "image", say, listen)


def learned(wanted: list[Request], kinds: Sequence[str]) -> list[Request]:
    """The requests. Raises RecipeError where there is none, or one of a kind that a run has not learned."""
    if missing := [each.kind for each in wanted if each.kind not in kinds] or ([] if wanted else ["caption"]):
        raise RecipeError(f"this run has not learned {missing[0]}; it knows {', '.join(kinds)}. Ask it for one of these.")
    return wanted


Told = tuple[list[Said], list[dict[str, Any]], np.ndarray]  # answers, these with boxes for JSON, and a drawing


def each_file(
    given: str | Path,
    output: str | Path | None,
    endings: Sequence[str],
    flag: str,
    say: Callable[[Path], Told],
    listen: Callable[[Described], None] | None = None,
    suffix: str = "described",
) -> tuple[list[Described], list[Failed]]:
    """What is said of a file, or of all below a folder that end so, written as NAME.json and NAME.png into the output, by default GIVEN
    with the suffix; of a folder, NAME is the path within it. Raises DataError for a single file that cannot be read, for a folder without
    any, and for an output that is a file or lies in the folder that is read."""
    given = Path(given)
    folder = beside(given, f".{suffix}") if output is None else Path(output)
    if folder.is_file():
        raise DataError(f"{folder}: is a file; the output of --{flag} is a folder.")
    if given.is_dir() and folder.resolve().is_relative_to(given.resolve()):
        raise DataError(f"{folder}: lies in the folder that is read; name another folder.")
    paths = files_below(given, tuple(endings)) if given.is_dir() else [given]
    if not paths:
        raise DataError(f"{given}: no file below this folder ends in {', '.join(endings)}.")
    found, failed = list[Described](), list[Failed]()
    for path in paths:
        try:
            said, told, picture = say(path)
        except DataError as error:
            if not given.is_dir():
                raise
            failed.append(Failed(path, str(error)))
            continue
        place = folder / (path.relative_to(given) if given.is_dir() else path.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        target = Described(path, said, place.with_name(f"{place.name}.json"), place.with_name(f"{place.name}.png"))
        write_text_whole(target.json, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        write_png(target.picture, picture)
        found.append(target)
        if listen is not None:
            listen(target)
    return found, failed


def together(said: list[Said]) -> Grounded:
    """All boxes of several answers, for one drawing."""
    return Grounded("", tuple(phrase for one in said for phrase in one.answer.phrases))
