"""Files of LiDAR through a run that says what is in them: words, boxes in metres, and the sweep seen from above with these boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmlm.analysis.birds_eye import seen_from_above
from mmlm.base.errors import RecipeError, unknown_name
from mmlm.data.points import READERS
from mmlm.data.sweep_source import read_ahead
from mmlm.describing import Described, Failed, Told, each_file, learned, together
from mmlm.encoders.views import VIEWS
from mmlm.run import load_run
from mmlm.tasks.asking import Request, Said
from mmlm.tasks.sweeps import SweepsTask
from mmlm.tokenizers.boxes import Grounded

CAPTIONS = ("grounded_caption", "caption")  # what is said of a sweep that nothing is asked of


def describe_sweeps(
    run: str | Path,
    given: str | Path,
    output: str | Path | None = None,
    *,
    expression: str | None = None,
    question: str | None = None,
    view: str | None = None,
    front_degrees: float = 0.0,
    listen: Callable[[Described], None] | None = None,
) -> tuple[list[Described], list[Failed]]:
    """Describe a file, or all sweeps below a folder; returns what was said and which files could not be read.

    output: a folder, default GIVEN.described beside what was given; NAME.json and NAME.png are written there for each sweep.
    view: the part that captions and questions are about, by its name. front_degrees: where ahead lies in the files, from x towards y.
    Raises RecipeError for a run that cannot, or a view that is none, and DataError for a single file that cannot be read.
    """
    recipe, task, model = load_run(run, fits=lambda task: task.type == "sweeps")
    if not isinstance(task, SweepsTask):
        raise RecipeError(f"{run}: its task {recipe.tasks[0].type!r} describes no sweeps; --sweep needs a run that does.")
    if view is not None and view not in VIEWS:
        raise RecipeError(f"--view: {unknown_name('view', view, VIEWS)}")
    if view is not None and expression is not None:
        raise RecipeError("--view and --expression exclude each other: an expression is about the whole scene.")
    kinds = [kind for kind, share in task.config.kinds.items() if share > 0]
    number = None if view is None else VIEWS.index(view)
    asked = [("expression", expression, None), ("question", question, number)]
    wanted = [Request(kind, text, Grounded(text), view=where) for kind, text, where in asked if text is not None]
    wanted = wanted or [Request(kind, "", Grounded(""), view=number) for kind in CAPTIONS if kind in kinds][:1]
    requests, reach = learned(wanted, kinds), task.reach

    def say(path: Path) -> Told:
        points = read_ahead(path, front_degrees)
        said = [Said(request, answer) for request, answer in zip(
            requests, task.answers(model, [points] * len(requests), requests), strict=True)]  # fmt: skip
        return said, [as_json(one) for one in said], seen_from_above(points, together(said), reach=reach)

    return each_file(given, output, tuple(READERS), "sweep", say, listen)


def as_json(one: Said) -> dict[str, Any]:
    """An answer with its boxes, [x, y, z, length, width, height, heading] in metres and radians, x ahead, and how sure each is."""
    phrases = [
        {
            "span": [each.start, each.end],
            "boxes": [[round(value, 3) for value in box] for box in each.boxes],
            "scores": [round(score, 4) for score in each.scores],
        }
        for each in one.answer.phrases
    ]
    view = None if one.request.view is None else VIEWS[one.request.view]
    return {"kind": one.request.kind, "view": view, "question": one.request.question, "text": one.answer.text, "phrases": phrases}
