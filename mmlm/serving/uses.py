"""What finished runs can be asked for: of each task its inputs, its outputs and one call, for demos and servers alike.

A task says itself what it is asked with (`mmlm.tasks.forms.Usable`); those that predict columns of tables are asked with rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from mmlm.base.errors import CheckpointError, DataError, require
from mmlm.recipe import Recipe
from mmlm.run import load_parts
from mmlm.tasks.forms import Chances, Field, Table, Text, Usable, Values, checked

TABLE_INPUTS: Mapping[str, Field] = {
    "shots": Table("Example rows", "with the column that is to be predicted"),
    "table": Table("Rows to predict", "the same columns without it"),
    "target": Text("Column", "the one that is predicted"),
}
TABLE_OUTPUTS: Mapping[str, Field] = {"table": Table("Predicted"), "probabilities": Chances("Probabilities, a row each")}
SHOWN_DIGITS = 4


@dataclass(frozen=True)
class Use:
    """One task of a finished run. run: its folder.   name: of the task.   type: of the task, as in recipes.   lock: held while the model is
    at work, which other tasks of the run may share."""

    run: Path
    name: str
    type: str
    inputs: Mapping[str, Field]
    outputs: Mapping[str, Field]
    call: Callable[[Values], Iterator[Values]]
    recipe: Recipe
    task: Any
    model: Any
    lock: AbstractContextManager[Any] = field(default_factory=Lock)

    @property
    def title(self) -> str:
        """The run and, where it has several, the task."""
        return self.run.name if self.name == self.type else f"{self.run.name}: {self.name}"

    def answer(self, given: Values) -> Iterator[Values]:
        """Values of the outputs, those that are there already first, the whole ones last.

        Raises DataError for values that are none of the inputs, before the model is asked, and what the task raises."""
        values = checked(self.inputs, given)
        with self.lock:
            yield from self.call(values)


def uses_of(run: str | Path) -> list[Use]:
    """What a run can be asked for; empty where its tasks are no use by themselves. Raises CheckpointError for no finished run."""
    folder = Path(run)
    _, parts, models = load_parts(folder)
    found, lock = list[Use](), Lock()
    for part, model in zip(parts, models, strict=True):
        task, config = part.task, part.config
        if isinstance(task, Usable):
            inputs, outputs, call = task.inputs, task.outputs, _answering(task, model)
        elif hasattr(task, "predict_proba") and getattr(config, "reads", "tables") == "tables":
            inputs, outputs, call = TABLE_INPUTS, TABLE_OUTPUTS, _predicting(folder, (part.recipe, task, model))
        else:
            continue
        found.append(Use(folder.resolve(), config.called, config.type, inputs, outputs, call, part.recipe, task, model, lock))
    return found


def runs_below(folder: str | Path) -> list[Path]:
    """Finished runs in a folder, newest first. Raises CheckpointError where there is none."""
    paths = [path.parent for path in Path(folder).glob("*/recipe.yaml") if _holds_weights(path.parent)]
    if not paths:
        raise CheckpointError(f"{folder}: holds no finished run. Train one first: mmlm train tabular/quickstart")
    return sorted(paths, key=lambda path: -(path / "recipe.yaml").stat().st_mtime)


def _holds_weights(run: Path) -> bool:
    """Whether a run is finished: codecs and other tokenizers that were trained lie with the tokenizers."""
    return any(run.glob("*.safetensors")) or any(run.glob("tokenizers/*/*.safetensors"))


def _answering(task: Usable, model: Any) -> Callable[[Values], Iterator[Values]]:
    return lambda given: task.answer(model, given)


def _predicting(folder: Path, loaded: tuple[Any, Any, Any]) -> Callable[[Values], Iterator[Values]]:
    """Predicts a column of rows from examples."""

    def predict(given: Values) -> Iterator[Values]:
        from mmlm.predictor import TabularPredictor

        pandas = require("pandas", "tabular")
        target, shots, rows = given["target"], pandas.DataFrame(given["shots"]), pandas.DataFrame(given["table"])
        if target not in shots:
            raise DataError(f"target: the example rows have no column {target[:60]!r}, only {', '.join(map(str, shots.columns))[:400]}.")
        known = shots[shots[target].notna() & (shots[target].astype(str).str.strip() != "")]
        predictor = TabularPredictor(folder)
        predictor._loaded, predictor._opens_files = loaded, False
        predictor.fit(known.drop(columns=[target]), known[target])
        features = [name for name in known.columns if name != target]
        if missing := [name for name in features if name not in rows]:
            raise DataError(f"table: the rows to predict have no column {str(missing[0])[:60]!r}, which the example rows have.")
        asked = rows[features]
        probabilities: list[dict[str, float]] = []
        if predictor.is_regression_:
            found = predictor.predict(asked).tolist()
        else:
            chances_nk = predictor.predict_proba(asked)
            found, names = predictor.classes_[chances_nk.argmax(1)].tolist(), [str(each) for each in predictor.classes_.tolist()]
            probabilities = [
                {name: round(chance, SHOWN_DIGITS) for name, chance in zip(names, row, strict=True)} for row in chances_nk.tolist()
            ]
        told = [{**row, target: value} for row, value in zip(given["table"], found, strict=True)]
        yield {"table": told, "probabilities": probabilities}

    return predict
