"""What tokenizers of chains of symbols share: a table of symbols, ids of one range, and its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from mmlm.base.errors import CheckpointError
from mmlm.base.files import parse_json, write_text_whole
from mmlm.stream import Segment

FILE = "symbols.json"
KEPT = 65536  # texts whose ids are kept


class Symbols:
    """Symbols by id of the range `range_name`. Subclasses split texts and join symbols."""

    range_name: str
    symbols: list[str]

    def _take(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self.index = {symbol: place for place, symbol in enumerate(self.symbols)}
        self.known: dict[str, np.ndarray] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """The range and its size."""
        return {self.range_name: len(self.symbols)}

    def split(self, text: str) -> list[str]:
        """The symbols of a text. Raises DataError that names the place of what is none."""
        raise NotImplementedError

    def join(self, symbols: Sequence[str]) -> str:
        """The text of symbols."""
        return "".join(symbols)

    def ids(self, text: str) -> list[int]:
        """Ids of a text. Raises DataError for what is no text of this kind."""
        return [self.index[symbol] for symbol in self.split(text)]

    def encode(self, raw: str) -> Segment:
        """Tokens of a text. Those of a text that comes again are remembered: cutting it costs most of a sample."""
        found = self.known.get(raw)
        if found is None:
            if len(self.known) >= KEPT:
                self.known.clear()
            found = self.known[raw] = np.array(self.ids(raw), dtype=np.int32)
        return Segment(self.range_name, torch.from_numpy(found.astype(np.int64)))

    def decode(self, segment: Any) -> str:
        """The text of a segment or of ids."""
        ids: Any = segment.ids if isinstance(segment, Segment) else segment
        return self.join([self.symbols[int(index)] for index in ids])

    def save(self, folder: Path | str) -> None:
        """Write the symbols."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_text_whole(Path(folder) / FILE, json.dumps(self.symbols, ensure_ascii=False) + "\n")

    def load(self, folder: Path | str) -> Self:
        """Take the symbols that `save` wrote. Raises CheckpointError."""
        path = Path(folder) / FILE
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}.") from None
        if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found) or len(set(found)) < len(found):
            raise CheckpointError(f"{path}: must be a list of different symbols.")
        self._take(found)
        return self
