"""Cells of a table that are no texts, in rows that are written as text: each is read by the tokenizer of its kind.

A row is first written like any other, with one character of a private plane of Unicode in the place of such a cell. What was written is
then cut at these marks: texts between them are text tokens, a picture is patches, a sound units, a molecule or a number its own symbols.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.audio_files import read_sound
from mmlm.data.picture_files import read_picture
from mmlm.data.tables import Column, Table
from mmlm.model import MultimodalLM
from mmlm.model_config import ChannelConfig
from mmlm.sound import Sound
from mmlm.stream import Segment
from mmlm.tasks.base import tokenizer_of
from mmlm.tasks.config import CellReading
from mmlm.tokenizers.image_patches import VISION, ImagePatches
from mmlm.tokenizers.molecules import MoleculeTokenizer
from mmlm.tokenizers.numbers import NUMBER, NumberTokenizer
from mmlm.tokenizers.units import UnitTokenizer
from mmlm.tokenizers.whole_images import WholeImages

logger = logging.getLogger(__name__)

FIRST, LAST = 0xF0000, 0xFFFFD  # the marks: supplementary private use area A
MARK = re.compile(f"([{chr(FIRST)}-{chr(LAST)}])")
KEPT_BYTES = 256 << 20  # of the cells whose tokens are kept
CELL_BYTES = 1024  # that a cell takes beside its numbers
READERS: dict[str, tuple[tuple[type, ...], str]] = {
    "picture": ((ImagePatches, WholeImages), "image_patches or whole_images"),
    "sound": ((UnitTokenizer,), "units"),
    "molecule": ((MoleculeTokenizer,), "molecules"),
    "number": ((NumberTokenizer,), "numbers"),
}


class Cell(NamedTuple):
    """kind: of READERS.   value: a path, a SMILES text or a number.   place: where it stands, for messages."""

    kind: str
    value: str | float
    place: str


class CellReader:
    """Marks the cells that the recipe has tokenizers for, and reads them. Raises RecipeError for a tokenizer of another type."""

    def __init__(self, config: CellReading, tokenizers: Mapping[str, Any]) -> None:
        names = {"picture": config.pictures, "sound": config.sounds, "molecule": config.molecules, "number": config.numbers}
        self.names = {kind: name for kind, name in names.items() if name is not None}
        self.readers = {kind: tokenizer_of(tokenizers, name, f"task.cells.{kind}s", *READERS[kind]) for kind, name in self.names.items()}
        self.known: dict[tuple[str, str | float], Segment] = {}
        self.size_bytes = 0  # of those

    @property
    def vocabulary(self) -> dict[str, int]:
        """Ranges of all tokenizers of cells."""
        return {name: size for reader in self.readers.values() for name, size in reader.sizes.items()}

    @property
    def features(self) -> dict[str, int]:
        """Numbers that a patch of a picture carries."""
        return {VISION: self.readers["picture"].num_features} if "picture" in self.readers else {}

    @property
    def channels(self) -> dict[str, ChannelConfig]:
        """The fixed encoding of digits."""
        return {NUMBER: ChannelConfig(kind="number", size=1)} if "number" in self.readers else {}

    def meet_model(self, model: MultimodalLM) -> None:
        """Raises RecipeError where an encoder of whole pictures reads others than these."""
        if isinstance(reader := self.readers.get("picture"), WholeImages):
            reader.check(model.encoders[VISION], VISION)

    def mark(self, table: Table, cells: list[Cell]) -> Table:
        """The table with a mark in place of each cell that is read; what the marks stand for is added to `cells`."""
        return dataclasses.replace(table, columns=[self._marked(column, cells) for column in table.columns])

    def _marked(self, column: Column, cells: list[Cell]) -> Column:
        kind = column.kind if column.medium is None else column.medium.kind
        if any(MARK.search(word) for word in (column.name, *(column.used_words() if column.kind == "category" else ()))):
            raise DataError(f"column {column.name!r}: holds a character of the private plane U+F0000 to U+FFFFD, which no text may hold.")
        if kind not in self.readers:
            if column.medium is not None:
                told = "column %r holds %ss, which are read as texts: task.cells.%ss names no tokenizer"
                logger.warning(told, column.name, kind, kind)
            return column
        distinct, inverse = np.unique(column.values[~column.missing], return_inverse=True)
        words = [self._word(column, kind, value, cells) for value in distinct.tolist()]
        codes = np.full(len(column), np.nan)
        codes[~column.missing] = inverse
        return Column(column.name, "category", codes, words)

    def _word(self, column: Column, kind: str, value: float, cells: list[Cell]) -> str:
        """The mark of a cell, which is added; of a word that stands for itself, the word."""
        if column.medium is None:
            cells.append(Cell(kind, value, f"column {column.name!r}"))
        elif int(value) < len(column.medium.places):
            cells.append(Cell(kind, column.words[int(value)], column.medium.places[int(value)]))
        else:
            return column.words[int(value)]
        if FIRST + len(cells) > LAST:
            raise DataError(f"column {column.name!r}: a table has at most {LAST - FIRST:,} different cells that are no texts.")
        return chr(FIRST + len(cells) - 1)

    def cut(self, text: str, cells: Sequence[Cell]) -> list[str | Segment]:
        """The texts between marks, and the tokens of the cells that these stand for. Raises DataError naming the place of a bad cell."""
        return [self.read(cells[ord(part) - FIRST]) if MARK.fullmatch(part) else part for part in MARK.split(text) if part]

    def read(self, cell: Cell) -> Segment:
        """The tokens of a cell, without loss."""
        key = (cell.kind, cell.value)
        if key not in self.known:
            try:
                self._keep(key, dataclasses.replace(self.readers[cell.kind].encode(_raw(cell)), weight=0.0))
            except DataError as error:
                raise DataError(f"{cell.place}: {error}" if cell.place else str(error)) from None
        return dataclasses.replace(self.known[key])

    def _keep(self, key: tuple[str, str | float], segment: Segment) -> None:
        """Remember the tokens of a cell; the oldest are forgotten where all together are too large."""
        self.known[key] = segment
        self.size_bytes += _size_bytes(segment)
        while self.size_bytes > KEPT_BYTES and len(self.known) > 1:
            self.size_bytes -= _size_bytes(self.known.pop(next(iter(self.known))))

    def texts_of(self, name: str, table: Table) -> list[str] | None:
        """What a tokenizer of molecules is fitted on; None for a tokenizer that reads no cells."""
        if name != self.names.get("molecule"):
            return None
        return [word for column in table.columns if column.medium and column.medium.kind == "molecule" for word in column.used_words()]

    def sounds(self, table: Table) -> list[Sound]:
        """The sounds of a table."""
        columns = [column for column in table.columns if column.medium and column.medium.kind == "sound"]
        return [read_sound(word) for column in columns for word in column.used_words()]


def shown(text: str, cells: Sequence[Cell]) -> str:
    """A written row for people: a cell is its kind and what it holds."""
    return MARK.sub(lambda found: f"<{cells[ord(found[0]) - FIRST].kind} {cells[ord(found[0]) - FIRST].value}>", text)


def _size_bytes(segment: Segment) -> int:
    tensors = (segment.ids, segment.features, *segment.channels.values())
    return CELL_BYTES + sum(each.nbytes for each in tensors if each is not None)


def _raw(cell: Cell) -> Any:
    """What the tokenizer of a cell reads."""
    if cell.kind == "picture":
        return read_picture(str(cell.value))
    return read_sound(str(cell.value)) if cell.kind == "sound" else cell.value
