"""Proteins and peptides as tokens: one for each residue, and for gaps of an alignment.

The letters are those of IUPAC: 20 residues, X (any), B, Z, U and O, with `-` and `.` for gaps. Small letters, which alignments use for
insertions, and all others are refused with their place.
"""

from __future__ import annotations

from mmlm.base.errors import DataError
from mmlm.tokenizers.config import ProteinsConfig
from mmlm.tokenizers.symbols import Symbols

PROTEIN = "protein"
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
LETTERS = [*RESIDUES, *"XBZUO", "-", "."]


class ProteinTokenizer(Symbols):
    """Sequences of residues to ids of the range `protein` and back."""

    range_name = PROTEIN

    def __init__(self, config: ProteinsConfig) -> None:
        self.config = config
        self._take(LETTERS)

    def split(self, text: str) -> list[str]:
        """The residues of a sequence. Raises DataError for an unknown one."""
        wrong = next((place for place, letter in enumerate(text) if letter not in self.index), None)
        if wrong is not None or not text:
            what = "is empty" if wrong is None else f"{text[wrong]!r} at place {wrong + 1} is no residue; known: {''.join(LETTERS)}"
            raise DataError(f"sequence {text[:60]!r}: {what}.")
        return list(text)
