"""What RDKit says of molecules, given as SMILES.

Units: logP is the decadic logarithm of octanol over water; TPSA square angstrom; weight g/mol.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from html import escape
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, require

MOST_CHARACTERS = 10_000  # of a SMILES text; nothing that is drawn as atoms and bonds needs more
FINGERPRINT_BITS, FINGERPRINT_RADIUS = 2048, 2


@cache
def chemistry() -> Any:
    """RDKit's module Chem. Raises MissingExtra without RDKit."""
    for part in (
        "rdkit.Chem.Scaffolds.MurckoScaffold",
        "rdkit.Chem.rdFingerprintGenerator",
        "rdkit.Chem.Draw.rdMolDraw2D",
        "rdkit.Chem.QED",
    ):
        require(part, "molecules")
    return require("rdkit.Chem", "molecules")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """RDKit's own messages are kept off the terminal: faults are told by errors."""
    block = require("rdkit.rdBase", "molecules").BlockLogs()
    try:
        yield
    finally:
        del block


def parsed(smiles: str) -> Any:
    """RDKit's molecule. Raises DataError for a SMILES text that is none, with what is wrong with it."""
    if len(smiles) > MOST_CHARACTERS:
        raise DataError(f"SMILES {smiles[:80]!r}... has {len(smiles):,} characters; at most {MOST_CHARACTERS:,} are read.")
    chem = chemistry()
    with quiet():
        found = chem.MolFromSmiles(smiles, sanitize=False)
        if found is None:
            raise DataError(f"SMILES {smiles[:80]!r} cannot be read: brackets, rings or symbols do not fit together.")
        try:
            chem.SanitizeMol(found)
        except ValueError as error:
            raise DataError(f"SMILES {smiles[:80]!r} is no molecule: {str(error).strip()}.") from None
    if found.GetNumAtoms() == 0:
        raise DataError(f"SMILES {smiles[:80]!r} holds no atom.")
    return found


def is_valid(smiles: str) -> bool:
    """Whether RDKit reads it as a molecule."""
    try:
        parsed(smiles)
    except DataError:
        return False
    return True


def canonical(smiles: str) -> str:
    """The one spelling of a molecule that RDKit chooses. Raises DataError."""
    return str(chemistry().MolToSmiles(parsed(smiles)))


def respelled(smiles: str, rng: np.random.Generator) -> str:
    """Another spelling of the same molecule, from another atom and in another order. Raises DataError."""
    chem, found = chemistry(), parsed(smiles)
    order = [int(place) for place in rng.permutation(found.GetNumAtoms())]
    return str(chem.MolToSmiles(chem.RenumberAtoms(found, order), canonical=False))


def scaffold(smiles: str) -> str:
    """The rings of a molecule and what joins them (Bemis & Murcko 1996), as canonical SMILES; empty without rings. Raises DataError."""
    murcko = require("rdkit.Chem.Scaffolds.MurckoScaffold", "molecules")
    return str(chemistry().MolToSmiles(murcko.GetScaffoldForMol(parsed(smiles)), isomericSmiles=False))


@cache
def _descriptors() -> dict[str, Callable[[Any], float]]:
    crippen, more = require("rdkit.Chem.Crippen", "molecules"), require("rdkit.Chem.rdMolDescriptors", "molecules")
    return {
        "logp": crippen.MolLogP,
        "qed": require("rdkit.Chem.QED", "molecules").qed,
        "tpsa": more.CalcTPSA,
        "weight": require("rdkit.Chem.Descriptors", "molecules").MolWt,
        "rings": more.CalcNumRings,
        "heavy_atoms": lambda found: found.GetNumHeavyAtoms(),
        "rotatable_bonds": more.CalcNumRotatableBonds,
        "h_donors": more.CalcNumHBD,
        "h_acceptors": more.CalcNumHBA,
        "sp3": more.CalcFractionCSP3,
    }


DESCRIPTORS = ("logp", "qed", "tpsa", "weight", "rings", "heavy_atoms", "rotatable_bonds", "h_donors", "h_acceptors", "sp3")


def computed(smiles: str, names: Sequence[str]) -> dict[str, float]:
    """Numbers that RDKit computes of a molecule, by name. Raises DataError for a SMILES text that is none."""
    if not names:
        return {}
    functions, found = _descriptors(), parsed(smiles)
    return {name: float(functions[name](found)) for name in names}


def fingerprints(smiles: Sequence[str], *, radius: int = FINGERPRINT_RADIUS, size: int = FINGERPRINT_BITS) -> np.ndarray:
    """float32 [molecules, size]: 1 where a Morgan environment of up to that radius is there (Rogers & Hahn 2010). Raises DataError."""
    generator = require("rdkit.Chem.rdFingerprintGenerator", "molecules").GetMorganGenerator(radius=radius, fpSize=size)
    rows = [generator.GetFingerprintAsNumPy(parsed(each)) for each in smiles]
    return np.array(rows, dtype=np.float32).reshape(len(rows), size)


def diversity(smiles: Sequence[str]) -> float:
    """1 - mean Tanimoto likeness of pairs of different molecules by their fingerprints; 0 for fewer than two."""
    if len(smiles) < 2:
        return 0.0
    bits_nf = fingerprints(smiles)
    both_nn = bits_nf @ bits_nf.T
    count_n = bits_nf.sum(1)
    likeness_nn = both_nn / np.maximum(count_n[:, None] + count_n[None] - both_nn, 1)
    return float(1 - likeness_nn[~np.eye(len(smiles), dtype=bool)].mean())


def svg(smiles: str, *, width: int = 220, height: int = 160, legend: str = "") -> str:
    """A drawing as an SVG element, which names the molecule to those who do not see it. Raises DataError for a SMILES text that is none."""
    draw, found = require("rdkit.Chem.Draw.rdMolDraw2D", "molecules"), parsed(smiles)
    canvas = draw.MolDraw2DSVG(width, height)
    draw.PrepareAndDrawMolecule(canvas, found, legend=legend)
    canvas.FinishDrawing()
    text = str(canvas.GetDrawingText())
    name = escape(f"{legend}: {smiles}" if legend else smiles, quote=True)
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{name}"', 1)
