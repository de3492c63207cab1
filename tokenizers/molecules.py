"""Molecules as tokens: SMILES, kept letter by letter, or SELFIES, of which any sequence is a molecule.

SMILES are cut by the regular expression of their symbols, the longest first: atoms in brackets, Br and Cl, ring numbers %nn and %(nnn),
then single letters. The tokens joined are the text again, always. An atom in brackets that no training molecule has becomes the letters
that it is written with, as does a ring number, so that nothing is refused that is written in SMILES letters.

SELFIES are made from SMILES and back by the package `selfies`: the molecule is kept, its spelling is not. Some molecules have none, and
some have symbols of which the tokenizer was not fitted on any.

Source: Schwaller et al. 2018, doi:10.1039/C8SC02339E; SELFIES, arXiv:1905.13741.
"""

from __future__ import annotations

import contextlib
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from mmlm.base.errors import DataError, require
from mmlm.tokenizers.config import MoleculesConfig
from mmlm.tokenizers.symbols import Symbols

MOLECULE = "molecule"
SMILES = re.compile(r"\[[^\[\]\s]+\]|Br|Cl|%[0-9]{2}|%\([0-9]{3,5}\)|>>|[NOSPFIBCnoscpb()\[\]=#\-+\\/:~@?>*$.0-9]")
ATOMS = ["C", "c", "N", "n", "O", "o", "S", "s", "P", "p", "F", "Cl", "Br", "I", "B", "b"]
BONDS = ["(", ")", "=", "#", "-", "+", "\\", "/", ":", "~", "@", "?", ">", ">>", "*", "$", ".", "[", "]", "%"]
LETTERS = [*string.digits, *string.ascii_letters]
PLAIN = list(dict.fromkeys([*ATOMS, *BONDS, *LETTERS]))
NOTHING = "[nop]"


class Unwritable(DataError):
    """A molecule that SELFIES cannot write, or not with the symbols that are known."""


def smiles_symbols(smiles: str) -> list[str]:
    """The symbols of a SMILES text, which joined are that text. Raises DataError that names the first place that is none of them."""
    found = SMILES.findall(smiles)
    if sum(map(len, found)) != len(smiles) or not found:
        at = 0
        for symbol in found:
            if not smiles.startswith(symbol, at):
                break
            at += len(symbol)
        what = f"{smiles[at]!r} at place {at + 1} is no symbol of SMILES" if at < len(smiles) else "holds no symbol"
        raise DataError(f"SMILES {smiles[:80]!r}: {what}.")
    return found


class MoleculeTokenizer(Symbols):
    """SMILES texts to ids of the range `molecule` and back."""

    range_name = MOLECULE

    def __init__(self, config: MoleculesConfig) -> None:
        self.config = config
        self.is_fitted = False
        self.is_selfies = config.notation == "selfies"
        self._take([NOTHING] if self.is_selfies else PLAIN)

    def fit(self, raws: Iterable[str]) -> None:
        """Take the atoms in brackets, or the symbols of SELFIES, that occur, the commonest first. What SELFIES cannot write has none."""
        counts = Counter[str]()
        for raw in raws:
            with contextlib.suppress(Unwritable):
                counts.update(symbol for symbol in self._cut(raw) if self.is_selfies or symbol.startswith("[") and len(symbol) > 1)
        known = [NOTHING] if self.is_selfies else PLAIN
        if self.is_selfies:
            counts.update(require("selfies", "molecules").get_semantic_robust_alphabet())
        ordered = sorted(counts, key=lambda symbol: (-counts[symbol], symbol))
        self._take([*known, *(symbol for symbol in ordered[: self.config.max_brackets] if symbol not in known)])
        self.is_fitted = True

    def load(self, folder: Path | str) -> Self:
        """Take the symbols that `save` wrote."""
        self.is_fitted = True
        return super().load(folder)

    def split(self, text: str) -> list[str]:
        """The symbols of a SMILES text. Raises DataError; Unwritable where another notation could write it."""
        found = self._cut(text)
        if all(symbol in self.index for symbol in found):
            return found
        if self.is_selfies:
            unknown = next(symbol for symbol in found if symbol not in self.index)
            raise Unwritable(
                f"SMILES {text[:80]!r}: its SELFIES symbol {unknown} at place {found.index(unknown) + 1} is none that was fitted; "
                "notation: smiles writes any."
            )
        letters = [letter for symbol in found for letter in ([symbol] if symbol in self.index else symbol)]
        if unknown_ones := [letter for letter in letters if letter not in self.index]:
            raise DataError(f"SMILES {text[:80]!r}: {unknown_ones[0]!r} at place {text.index(unknown_ones[0]) + 1} is no letter of SMILES.")
        return letters

    def join(self, symbols: Sequence[str]) -> str:
        """The SMILES text of symbols."""
        joined = "".join(symbols)
        return str(require("selfies", "molecules").decoder(joined)) if self.is_selfies else joined

    def _cut(self, text: str) -> list[str]:
        if not self.is_selfies:
            return smiles_symbols(text)
        selfies = require("selfies", "molecules")
        smiles_symbols(text)
        try:
            return list(selfies.split_selfies(selfies.encoder(text)))
        except selfies.EncoderError as error:
            raise Unwritable(f"SMILES {text[:80]!r}: cannot be written as SELFIES: {str(error).strip().splitlines()[0]}") from None
