"""What a text-to-speech model reads: phonemes of a text, or an instruction as text that quotes what is to be said.

Axes: e entries
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError
from mmlm.data.instructions import bare, content, requoted
from mmlm.data.speech import Utterance
from mmlm.data.spoken_entries import entries_of_text
from mmlm.tokenizers.phonemes import PhonemeTokenizer
from mmlm.tokenizers.text import TextTokenizer

INSTRUCTIONS, STYLE = "instructions", "style"


class TextReader(Protocol):
    """Texts as tokens."""

    @property
    def size(self) -> int:
        """Different tokens."""

    def ids(self, text: str, voice_text: str = "") -> Tensor:
        """Tokens [e] of a text to be spoken, that is told with what is heard in a voice before it. Raises DataError naming the text."""

    def of(self, records: Sequence[Utterance], rng: np.random.Generator) -> Tensor:
        """Tokens [e] of recordings in a row, as a sample reads them."""

    def asked(self, record: Utterance) -> str:
        """What the record's speech is asked for by."""

    def check(self, record: Utterance) -> None:
        """Raise DataError for a record that cannot be read."""


class PhonemeReader:
    """Phonemes. What is heard in a voice is read by itself."""

    def __init__(self, phonemes: PhonemeTokenizer) -> None:
        self.phonemes = phonemes

    @property
    def size(self) -> int:
        """See `TextReader`."""
        return self.phonemes.sizes["phone"]

    def ids(self, text: str, voice_text: str = "") -> Tensor:
        """See `TextReader`. The voice comes before them by itself."""
        return torch.tensor(self.phonemes.ids(entries_of_text(self.phonemes.transcribe(text))))

    def of(self, records: Sequence[Utterance], rng: np.random.Generator) -> Tensor:
        """See `TextReader`. Nothing is drawn."""
        return self.ids(" ".join(record.text for record in records))

    def asked(self, record: Utterance) -> str:
        """See `TextReader`."""
        return record.text

    def check(self, record: Utterance) -> None:
        """See `TextReader`. A text that cannot be spoken is told where it is read."""


class InstructionReader:
    """Tokens of instructions. A record has them as a list in its label `instructions`; without it is asked for by its quoted text alone.

    bare_share: of the samples, how many read the quoted text alone.
    """

    def __init__(self, text: TextTokenizer, bare_share: float) -> None:
        self.text, self.bare_share = text, bare_share

    @property
    def size(self) -> int:
        """See `TextReader`."""
        return self.text.sizes["text"]

    def ids(self, text: str, voice_text: str = "") -> Tensor:
        """See `TextReader`. What is heard in the voice is said first."""
        said = content(text)
        return self._ids(requoted(text, f"{voice_text} {said}" if voice_text else said))

    def _ids(self, instruction: str) -> Tensor:
        return torch.tensor(self.text.ids([instruction])[0], dtype=torch.long)

    def of(self, records: Sequence[Utterance], rng: np.random.Generator) -> Tensor:
        """See `TextReader`. One of the first record's instructions, which asks for the texts of all; sometimes these alone."""
        return self._ids(self.drawn(records, rng))

    def drawn(self, records: Sequence[Utterance], rng: np.random.Generator) -> str:
        """The instruction of a sample."""
        text, wordings = " ".join(record.text for record in records), records[0].labels.get(INSTRUCTIONS, ())
        if not wordings or rng.random() < self.bare_share:
            return bare(text)
        return requoted(wordings[int(rng.integers(len(wordings)))], text)

    def asked(self, record: Utterance) -> str:
        """See `TextReader`: its first instruction."""
        return requoted((record.labels.get(INSTRUCTIONS) or [bare(record.text)])[0], record.text)

    def check(self, record: Utterance) -> None:
        """See `TextReader`. Raises DataError for instructions that are no list of texts, or quote another text than that of the record."""
        wordings = record.labels.get(INSTRUCTIONS, [])
        if not isinstance(wordings, list | tuple) or not all(isinstance(each, str) for each in wordings):
            raise DataError(f"{record.where}: 'instructions' must be a list of texts, but is {wordings!r:.80}.")
        for each in wordings:
            if content(each, record.where) != content(bare(record.text), record.where):
                raise DataError(f"{record.where}: the instruction {each[:80]!r} does not quote the text {record.text[:80]!r}.")
