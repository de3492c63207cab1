"""Examples for demos: inputs made of records that a run was measured on, or of a shipped table."""

from __future__ import annotations

import csv
from typing import Any

from mmlm.base.errors import MmlmError
from mmlm.recipe import shipped
from mmlm.run import test_records
from mmlm.serving.uses import Use
from mmlm.tasks.base import TestsApart
from mmlm.tasks.forms import Usable

COUNT = 3
SHOTS, ASKED, TARGET = 24, 6, "species"  # of the shipped table


def examples_of(use: Use, count: int = COUNT) -> tuple[list[dict[str, Any]], str]:
    """Some inputs, and why there are none where there are none: data of other folders may be gone where a run is shown."""
    if not isinstance(use.task, Usable):
        return [_of_table()], ""
    try:
        records = [record for some in test_records(use.recipe, use.task, count).values() for record in some][:count]
        if isinstance(use.task, TestsApart):
            use.task.begin_tests()
        return [dict(use.task.given_by(record)) for record in records], ""
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
