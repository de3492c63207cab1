"""What a tokenizer is to the tasks that use it, and how those that learn nothing are saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from mmlm.base.errors import CheckpointError
from mmlm.base.files import parse_json
from mmlm.stream import Segment


class Tokenizer(Protocol):
    """Raw input to tokens and back. A tokenizer that has to be fitted also has `is_fitted` and `fit(raws)`."""

    @property
    def sizes(self) -> dict[str, int]:
        """The vocabulary ranges it writes, and their sizes."""

    def encode(self, raw: Any) -> Segment:
        """Tokens of one raw input, with ids local to their range."""

    def decode(self, segment: Any) -> Any:
        """The raw input again."""

    def save(self, folder: Path | str) -> None:
        """Write all that load needs."""

    def load(self, folder: Path | str) -> Any:
        """Take what save wrote."""


class TextLike(Tokenizer, Protocol):
    """A tokenizer of text: ids of the range `text`."""

    @property
    def first(self) -> list[int]:
        """Ids that belong before a text and nowhere else."""

    def add_tokens(self, tokens: Sequence[str]) -> None:
        """Make each of these texts one token; called before the first use."""

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""

    def token(self, text: str) -> int:
        """The id of a text that is one token. Raises DataError where it is not."""


class SavedConfig:
    """Base of tokenizers that learn nothing: what they write is their config, and what they read must be the same. file: its name."""

    config: Any
    file: str

    def save(self, folder: Path | str) -> None:
        """Write the config."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / self.file).write_text(json.dumps(self.config.model_dump(mode="json")) + "\n")

    def load(self, folder: Path | str) -> Self:
        """Check that `save` wrote the same config. Raises CheckpointError."""
        path = Path(folder) / self.file
        try:
            found = type(self.config).model_validate(parse_json(path.read_text()))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}.") from None
        if found != self.config:
            raise CheckpointError(f"{path}: is of another config ({found}) than the recipe ({self.config}).")
        return self
