"""A finished tabular run as an estimator of scikit-learn."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mmlm.base.errors import DataError, MmlmError, require, unknown_name
from mmlm.data.config import CellKind
from mmlm.data.episodes import Episode, classes_of
from mmlm.data.table_bins import bin_means, quantile_bins
from mmlm.data.table_marks import has_decimal_commas
from mmlm.data.table_media import with_media
from mmlm.data.table_reader import read_raw, read_table
from mmlm.data.tables import Column, Table, Texts, join_rows, number_texts
from mmlm.run import fine_tune, load_run
from mmlm.training.config import LoraConfig, TrainConfig

logger = logging.getLogger(__name__)
MAX_BINS = 10
MAX_NUMBERS = 10  # whole numbers of more values are a quantity
MAX_DIGITS = 15  # of a float64 after the point
Target = Literal["auto", "classes", "numbers"]
Fit = Literal["shots", "lora"]
ROWS_AT_ONCE, MOST_AT_ONCE = 256, 1024  # rows predicted together: as many as there are examples, within these
base: Any = require("sklearn.base", "tabular")
utils: Any = require("sklearn.utils", "tabular")
validation: Any = require("sklearn.utils.validation", "tabular")
multiclass: Any = require("sklearn.utils.multiclass", "tabular")
metaestimators: Any = require("sklearn.utils.metaestimators", "tabular")


def _has_classes(predictor: TabularPredictor) -> bool:
    return predictor.kind != "numbers" and not getattr(predictor, "is_regression_", False)


class TabularPredictor(base.BaseEstimator):  # type: ignore[misc]
    """Predicts a column from example rows.

    run: the folder of a finished tabular run.
    kind: "auto" predicts numbers for a numeric y of more than ten distinct values or with fractions, else classes; or say which. Say
        "numbers" where scikit-learn must know before it sees y, as when it splits rows for a cross-validation.
    fit_by: "shots" keeps the examples and changes no weight; "lora" also fits adapters to them, in `steps` steps at rate `lr`.
    max_shots: more examples than these are sampled down, in the shares of their classes, at least one of each where there is room; adapters
        are fitted to all of them.
    cells: what columns hold, by name: "text", "picture" or "sound" (paths of files), "molecule" (SMILES); of others it is told from their
        cells, as for a table in a file. A run that has no tokenizer for a kind reads such cells as texts.
    Numbers are predicted as the mean of quantile bins weighted by their probabilities. A run of feature tokens knows at most ten classes.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        kind: Target = "auto",
        fit_by: Fit = "shots",
        steps: int = 100,
        lr: float = 1e-3,
        max_shots: int = 512,
        cells: Mapping[str, CellKind] | None = None,
        random_state: int = 0,
    ) -> None:
        self.run, self.kind, self.fit_by = run, kind, fit_by
        self.steps, self.lr, self.max_shots, self.cells, self.random_state = steps, lr, max_shots, cells, random_state

    _loaded: tuple[Any, Any, Any] | None = None  # recipe, task and model of a run that is in memory already
    _opens_files = True  # whether cells of a frame may name pictures and sounds; never those of a stranger

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn may expect: missing cells and text are welcome."""
        tags = super().__sklearn_tags__()
        tags.estimator_type = "regressor" if self.kind == "numbers" else "classifier"
        if self.kind == "numbers":
            tags.regressor_tags = utils.RegressorTags()
        else:
            tags.classifier_tags = utils.ClassifierTags()
        tags.target_tags.required = True
        tags.input_tags.allow_nan = tags.input_tags.string = True
        return tags

    def fit(self, X: Any, y: Any) -> TabularPredictor:  # noqa: N803  scikit-learn's name
        """Keep the examples, and fit adapters if so asked.

        X: frame, array or Table [rows, columns]; y: [rows]. The model reads the name of y too, as a Series has one; else it is "target".
        Raises DataError for fewer than two classes, for more than the run can tell apart, and for an option that is none.
        """
        self._check_options()
        table = self._table(X, reset=True)
        if y is None:
            raise DataError("this estimator requires y to be passed, but the target y is None.")
        if not isinstance(y, Column):
            name = _target_name(y, table.names)
            y = validation.column_or_1d(y, warn=True)
            if len(y) != table.num_rows:
                raise DataError(f"inconsistent numbers of samples: x has {table.num_rows} rows, but y has {len(y)}.")
            if self.kind == "classes":
                multiclass.check_classification_targets(y)
            given = y if y.dtype.kind in "biufU" or _are_texts(y) else None
            return self._keep(table, _column(y, name), given)
        return self._keep(table, y)

    def _check_options(self) -> None:
        for name, known in (("kind", get_args(Target)), ("fit_by", get_args(Fit))):
            if getattr(self, name) not in known:
                raise DataError(f"TabularPredictor: {name}: {unknown_name('value', getattr(self, name), known)}")
        for name in ("max_shots", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise DataError(f"TabularPredictor: {name} must be a whole number of at least 1, but is {value!r}.")

    def _keep(self, table: Table, target: Column, given: np.ndarray | None = None) -> TabularPredictor:
        """The fit itself. given: the target as numbers, booleans or texts of numpy, which the predicted classes are."""
        if not table.columns:
            raise DataError("the examples have no column beside the target; there is nothing to predict from.")
        if len(target) != table.num_rows:
            raise DataError(f"x has {table.num_rows} rows, but y has {len(target)}.")
        present = np.flatnonzero(~target.missing)
        table, target = table.take(present), target.take(present)
        given = None if given is None else given[present]
        is_number = target.kind == "number" and (self.kind == "numbers" or (self.kind == "auto" and _is_quantity(target)))
        if self.kind == "numbers" and not is_number:
            raise DataError(f"kind 'numbers' needs a numeric target, but {target.name!r} holds texts or dates.")
        if target.num_distinct < 2:
            raise DataError(f"the examples show one class alone ({target.num_distinct} distinct target values); at least two are needed.")
        recipe, self.task_, self.model_ = self._loaded or load_run(self.run, fits=lambda task: getattr(task, "reads", "tables") == "tables")
        if getattr(recipe.tasks[0], "reads", "tables") != "tables":
            raise DataError(f"{self.run}: its task {recipe.tasks[0].type!r} predicts no column of a table; name a run that does.")
        if is_number:
            bins = min(MAX_BINS, max(2, len(target) // 4))
            edges = quantile_bins(target.values, bins)
            labels, texts = classes_of(Column(target.name, "number", target.values + 0.0), len(target), bins)
            if len(texts) != len(edges) + 1:  # few whole numbers: each is its own bin
                self.means_ = np.array([float(text) for text in texts])
            else:
                self.means_ = bin_means(target.values, edges)
        else:
            category = target.as_category() if target.kind != "category" else target
            seen, labels = np.unique(category.codes(), return_inverse=True)
            texts = [category.words[code] for code in seen]
            most = self.task_.max_classes
            if most is not None and len(texts) > most:
                raise DataError(
                    f"the target {target.name!r} has {len(texts)} classes, but this run can tell at most {most} apart. Join rare classes, "
                    'say kind="numbers" if they are numbers, or use a run that reads rows as text (recipe tabular/tabula).'
                )
            kept = target.values if target.kind == "number" and given is None else given
            self.classes_ = np.array(texts) if kept is None else np.array([kept[labels == at][0] for at in range(len(texts))])
            order = np.argsort(self.classes_, kind="stable")
            self.classes_, texts = self.classes_[order], [texts[at] for at in order]
            labels = np.argsort(order)[labels]
        self.is_regression_ = is_number
        if self.fit_by == "lora":
            train = TrainConfig(steps=self.steps, batch_size=4, lr=self.lr, warmup=0.1, log_every=self.steps)
            whole = Table(str(self.run), [*table.columns, target], target.name)
            fine_tune(recipe, self.task_, self.model_, whole, LoraConfig(rank=16), train)
        chosen = self._sampled(labels)
        self.texts_, self.target_, self.shots_, self.labels_ = texts, target.name, table.take(chosen), labels[chosen]
        return self

    def _sampled(self, labels: np.ndarray) -> np.ndarray:
        """Rows kept as examples: all, or max_shots of them, class by class in turn of their share."""
        if len(labels) <= self.max_shots:
            return np.arange(len(labels))
        logger.warning("%d example rows: %d of them are shown with a prediction (max_shots)", len(labels), self.max_shots)
        mixed = np.random.default_rng(self.random_state).permutation(len(labels))
        place = np.zeros(len(labels))
        for label in np.unique(labels):
            rows = mixed[labels[mixed] == label]
            place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
            place[rows[0]] = 0
        return np.sort(np.argsort(place, kind="stable")[: self.max_shots])

    def _chances(self, x: Any) -> np.ndarray:
        validation.check_is_fitted(self, "shots_")
        queries = self._table(x, reset=False)
        if missing := [name for name in self.shots_.names if name not in queries.names]:
            raise DataError(f"the rows to predict lack the column {missing[0]!r} of the examples.")
        for shown in self.shots_.columns:
            asked = queries.column(shown.name)
            if asked.kind != shown.kind and not (asked.missing.all() or shown.missing.all()):
                told = f"column {shown.name!r} is a {shown.kind} in the examples, but a {asked.kind} in the rows to predict"
                logger.warning("%s: both are read as text", told)
        parts = []
        size = max(ROWS_AT_ONCE, min(len(self.labels_), MOST_AT_ONCE))  # the examples are read again for each part
        for start in range(0, queries.num_rows, size):
            rows = np.arange(start, min(start + size, queries.num_rows))
            joined = join_rows([self.shots_, queries.select(self.shots_.names).take(rows)])
            labels = np.concatenate([self.labels_, np.full(len(rows), -1)])
            problem = Episode(joined, labels, self.texts_, len(self.labels_), self.target_)
            parts.append(self.task_.predict_proba(self.model_, problem))
        return np.concatenate(parts)

    @metaestimators.available_if(_has_classes)
    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Probabilities [rows, classes], in the order of `classes_`. A predictor of numbers has no such method (AttributeError)."""
        return self._chances(X)

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Classes [rows], or numbers for a numeric target."""
        chances = self._chances(X)
        return chances @ self.means_ if self.is_regression_ else self.classes_[chances.argmax(1)]

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        """Accuracy, or R2 for a numeric target."""
        metrics = require("sklearn.metrics", "tabular")
        measure = metrics.r2_score if self.is_regression_ else metrics.accuracy_score
        return float(measure(y, self.predict(X)))

    def _table(self, x: Any, *, reset: bool) -> Table:
        if isinstance(x, Table):
            return x
        pandas = require("pandas", "tabular")
        if isinstance(x, pandas.DataFrame):
            validation._check_feature_names(self, x, reset=reset)
            validation._check_n_features(self, x, reset=reset)
            if not len(x):
                raise DataError(f"0 sample(s) (shape={x.shape}) while a minimum of 1 is required.")
            frame = x
        else:
            checked = validation.validate_data(self, x, reset=reset, dtype=None, ensure_all_finite="allow-nan")
            frame = pandas.DataFrame(checked).infer_objects()
        return with_media(Table.from_frame(frame.rename(columns=str), "x"), self.cells or {}, Path("x"), list, files=self._opens_files)


def _target_name(y: Any, taken: list[str]) -> str:
    """What the target is called, which the model reads too: as a Series or the one column of a frame is; "target" where nothing is said."""
    columns = getattr(y, "columns", None)
    found = getattr(y, "name", None) if columns is None else next(iter(columns), None)
    name = str(found) if isinstance(found, str | int) and str(found).strip() else "target"
    while name in taken:  # of the columns to predict from
        name += "_"
    return name


def _column(y: np.ndarray, name: str) -> Column:
    pandas = require("pandas", "tabular")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise DataError("the target y contains NaN or infinity; leave those rows out.")
    return Table.from_frame(pandas.DataFrame({name: y}), "y").columns[0]


def _are_texts(y: np.ndarray) -> bool:
    return bool(require("pandas", "tabular").api.types.infer_dtype(y, skipna=True) == "string")


def _is_quantity(column: Column) -> bool:
    known = column.values[~column.missing]
    return column.num_distinct > MAX_NUMBERS or not bool((known == np.floor(known)).all())


def fill_column(run: str | Path, table_file: Path, target: str, shots_file: Path, output: Path) -> int:
    """Fill the target of a table from the examples of another, write it as CSV; returns the number of rows filled.

    Rows that have a value keep it, and the other cells of a text file are written as they are. Predicted numbers have as many digits
    after the point as the examples. Raises DataError where files or columns do not fit, MmlmError where the output cannot be written.
    """
    if output.is_dir() or not output.parent.is_dir():
        raise DataError(f"{output}: {'is a folder' if output.is_dir() else f'the folder {output.parent} does not exist'}; name a file.")
    for given in (table_file, shots_file):
        if output.exists() and given.exists() and output.samefile(given):
            raise DataError(f"{output}: is read from, so it cannot be the output; name another file.")
    shots = read_table(shots_file, target=target)
    table = read_table(table_file)
    features = [name for name in shots.names if name != target]
    if missing := [name for name in features if name not in table.names]:
        raise DataError(
            f"{table_file}: lacks the column {missing[0]!r} of {shots_file}, from which its rows are predicted. Add it, or take it out of "
            f"{shots_file.name}."
        )
    predictor = TabularPredictor(run)
    try:
        predictor._keep(shots.select(features), shots.column(target))
    except DataError as error:
        raise DataError(f"{shots_file}: {error}") from None
    empty = np.flatnonzero(table.column(target).missing) if target in table.names else np.arange(table.num_rows)
    found: list[Any] = predictor.predict(table.take(empty)).tolist() if len(empty) else []
    separator, header, rows, commas = _written(table_file, table)
    texts = _as_written(found, shots.column(target), commas) if found and not isinstance(found[0], str) else found
    place = table.names.index(target) if target in table.names else len(header)
    for cells in (header, *rows):
        cells += [""] * (place + 1 - len(cells))
    header[place] = header[place] or target
    for row, text in zip(empty.tolist(), texts, strict=True):
        rows[row][place] = text
    _write(output, separator, [header, *rows])
    return len(empty)


def _written(path: Path, table: Table) -> tuple[str, list[str], list[list[str]], bool]:
    """(separator, header, rows, whether numbers have decimal commas) of a table file: those of a text file, else texts of its values."""
    raw = read_raw(path)
    if raw is None:
        columns = [[text or "" for text in table.texts(name)] for name in table.names]
        return ",", list(table.names), [list(row) for row in zip(*columns, strict=True)], False
    separator, (header, *rows) = raw
    numbers = [at for at, column in enumerate(table.columns) if column.kind == "number"]
    return separator, header, rows, any(has_decimal_commas([row[at].strip() for row in rows]) for at in numbers)


def _as_written(values: list[float], example: Column, commas: bool) -> Texts:
    known = number_texts(example.values[~example.missing]) if example.kind == "number" else []
    digits = min(MAX_DIGITS, max((_digits(text or "") for text in known), default=MAX_DIGITS))
    texts = number_texts(np.array(values), digits)
    return [text and text.replace(".", ",") for text in texts] if commas else texts


def _digits(number: str) -> int:
    """Places after the point of a number, as Python writes it."""
    digits, _, power = number.partition("e")
    return max(0, len(digits.partition(".")[2]) - int(power or 0))


def _write(path: Path, separator: str, rows: list[list[str]]) -> None:
    """Write a delimited file, complete or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MmlmError(f"{path}: cannot be written: {error.strerror or error}.") from None
