"""Columns of a table whose cells are pictures, sounds or molecules.

A picture or a sound is a file, whose path is written in the cell: beside the table, or absolute. A molecule is a SMILES text. Where nobody
says what a column holds, it is told from its cells:

- pictures or sounds, if every cell is named like such a file and the first of them exists;
- molecules, if the column's name says SMILES, every cell is written in its symbols, and RDKit is installed; where a cell is not, the log
  names it, and all are texts.

Every different cell is looked at when the table is read, files by their headers, so that a bad one is told before anything is trained.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mmlm.base.errors import DataError, unknown_name
from mmlm.data.config import CellKind
from mmlm.data.tables import Column, Medium, MediumKind, Table

logger = logging.getLogger(__name__)

ENDINGS: dict[MediumKind, frozenset[str]] = {
    "picture": frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}),
    "sound": frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a"}),
}


def with_media(
    table: Table, kinds: Mapping[str, CellKind], path: Path, places: Callable[[], Sequence[str]], *, files: bool = True
) -> Table:
    """The table of a file with its pictures, sounds and molecules known as such.

    kinds: of some columns, by name. places: where each row stands, for messages; too few where the file does not tell. files: whether cells
    may be taken for paths where nobody says so.
    Raises DataError for a column that is none of the table, or holds no texts, and naming file, line and column of a bad cell.
    """
    if unknown := [name for name in kinds if name not in table.names]:
        raise DataError(f"{path}: kinds: {unknown_name('column', unknown[0], table.names)}")
    known: list[str] | None = None
    columns = []
    for column in table.columns:
        kind = kinds[column.name] if column.name in kinds else _guessed(column, path.parent if files else None)
        if kind is None or (kind == "text" and column.kind == "category"):
            columns.append(column)
        elif kind == "text":
            columns.append(column.as_category())
        elif column.kind != "category" and not column.missing.all():
            raise DataError(f"{path}: kinds: column {column.name!r} cannot hold {kind}s: its cells are {column.kind}s.")
        else:
            known = list(places()) if known is None else known
            columns.append(_as_medium(column, kind, path, known))
    return replace(table, columns=columns)


def _guessed(column: Column, folder: Path | None) -> MediumKind | None:
    """folder: that of the paths; None: nothing is one."""
    words = column.used_words() if column.kind == "category" else []
    if not words:
        return None
    endings = {Path(word).suffix.lower() for word in words}
    for kind, some in ENDINGS.items():
        if folder is not None and endings <= some and (folder / words[0]).is_file():
            logger.info("column %r: its cells are paths of %ss", column.name, kind)
            return kind
    if "smiles" not in column.name.lower() or not importlib.util.find_spec("rdkit"):
        return None
    if why := _no_smiles(words):
        logger.warning("column %r: its cells are read as texts, not as molecules: %s", column.name, why)
    return None if why else "molecule"


def _no_smiles(words: Sequence[str]) -> str:
    """What is wrong with the first that is not written in symbols of SMILES; empty where all are."""
    from mmlm.tokenizers.molecules import smiles_symbols

    for word in words:
        try:
            smiles_symbols(word.strip())
        except DataError as error:
            return str(error)
    return ""


def _as_medium(column: Column, kind: MediumKind, path: Path, rows: Sequence[str]) -> Column:
    codes = column.codes()
    first = {int(code): row for row, code in reversed(list(enumerate(codes.tolist()))) if code >= 0}
    words, places = list(column.words), [""] * len(column.words)
    for code, row in sorted(first.items()):
        where = rows[row] if row < len(rows) else f"{path}, row {row + 1}"
        places[code] = f"{where}, column {column.name!r}"
        words[code] = words[code].strip() if kind == "molecule" else str(path.parent / words[code])
        try:
            _check(kind, words[code])
        except DataError as error:
            raise DataError(f"{places[code]}: {error}") from None
    return Column(column.name, "category", np.where(column.missing, np.nan, column.values), words, Medium(kind, places))


def _check(kind: MediumKind, word: str) -> None:
    """Raises DataError for a file whose header cannot be read, or what is no molecule."""
    if kind == "picture":
        from mmlm.data.picture_files import picture_facts

        picture_facts(word)
    elif kind == "sound":
        from mmlm.data.audio_files import sound_facts

        sound_facts(word)
    else:
        from mmlm.chemistry import parsed

        parsed(word)
