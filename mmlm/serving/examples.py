"""Examples for demos: inputs made of records that a run was measured on, or of a shipped table, and what the run answered to them.

Answers are kept beside the run, `demo/TASK.json`, and hold for its weights, recipe and version alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import mmlm
from mmlm.base.errors import MmlmError
from mmlm.base.files import parse_json, write_text_whole
from mmlm.recipe import shipped
from mmlm.run import fingerprint, test_records
from mmlm.serving.uses import Use
from mmlm.serving.values import from_json, to_json
from mmlm.tasks.base import TestsApart
from mmlm.tasks.forms import AskedOfSeveral, Usable, Values

logger = logging.getLogger(__name__)
COUNT, TOGETHER = 3, 8  # examples, and records of which one is made where a task wants several
SHOTS, ASKED, TARGET = 24, 6, "species"  # of the shipped table
FOLDER = "demo"


def examples_of(use: Use, count: int = COUNT) -> tuple[list[dict[str, Any]], str]:
    """Some inputs, and why there are none where there are none: data of other folders may be gone where a run is shown."""
    if not isinstance(use.task, Usable):
        return [_of_table()], ""
    task: Any = use.task
    wanted = TOGETHER if isinstance(task, AskedOfSeveral) else count
    try:
        records = [record for some in test_records(use.recipe, task, wanted).values() for record in some][:wanted]
        if isinstance(task, TestsApart):
            task.begin_tests()
        found = task.given_by_several(records)[:count] if isinstance(task, AskedOfSeveral) else map(task.given_by, records)
        return [dict(given) for given in found], ""
    except MmlmError as error:
        return [], f"There are no examples here: {str(error).splitlines()[0]}"


def _of_table() -> dict[str, Any]:
    """Penguins: rows of every species as examples, and some without it."""
    with shipped()["tabular/quickstart"].with_name("penguins.csv").open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = [row for row in csv.DictReader(file) if all(row.values())]
    step = len(rows) // (SHOTS + ASKED)
    some = rows[::step][: SHOTS + ASKED]
    asked = some[:: (SHOTS + ASKED) // ASKED][:ASKED]
    shots = [row for row in some if not any(row is each for each in asked)]
    return {"shots": shots, "table": [{name: row[name] for name in row if name != TARGET} for row in asked], "target": TARGET}


class Answers:
    """What a run answered to its examples."""

    def __init__(self, use: Use) -> None:
        self.use, self.path = use, use.run / FOLDER / f"{use.name}.json"

    @cached_property
    def of(self) -> str:
        """Of which run: changes with its weights, its recipe, its outputs and the version."""
        return hashlib.sha256(f"{mmlm.__version__} {list(self.use.outputs)} {fingerprint(self.use.run)}".encode()).hexdigest()

    @cached_property
    def kept(self) -> dict[str, Any]:
        """Answers in JSON's form by what was asked; none of another run."""
        try:
            held = parse_json(self.path.read_text(encoding="utf-8"))
            return dict(held["answers"]) if held["of"] == self.of else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def find(self, given: Values) -> Mapping[str, Any] | None:
        """What was answered; None where that is not known."""
        try:
            found = self.kept.get(_key(given))
            return None if found is None else from_json(self.use.outputs, found)
        except MmlmError:  # of a damaged file
            return None

    def keep(self, given: Values, found: Values) -> None:
        """Remember an answer, in the run's folder where that can be written."""
        self.kept[_key(given)] = to_json(found)
        try:
            self.path.parent.mkdir(exist_ok=True)
            write_text_whole(self.path, json.dumps({"of": self.of, "answers": self.kept}) + "\n")
        except OSError as error:
            logger.warning("answers to examples are not kept: %s", error)


def _key(given: Values) -> str:
    return hashlib.sha256(json.dumps(to_json(dict(given)), sort_keys=True).encode()).hexdigest()
