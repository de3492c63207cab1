"""A molecule or protein with its numbers: the record of their tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["molecule", "protein"]


@dataclass(frozen=True)
class Compound:
    """text: SMILES, or residues of a protein, as they were given.   properties: numbers by name.   where: file and line, for messages."""

    id: str
    text: str
    properties: Mapping[str, float] = field(default_factory=dict)
    where: str = ""
    kind: Kind = "molecule"
