"""Molecules and proteins go into tokens and come back as they were, or are refused with the place."""

from __future__ import annotations

import importlib.util
import time

import pytest

from mmlm.base.errors import CheckpointError, DataError
from mmlm.chemistry import canonical
from mmlm.data.config import MosesConfig
from mmlm.tokenizers.config import MoleculesConfig, ProteinsConfig
from mmlm.tokenizers.molecules import Unwritable

SMILES = ["CCO", "C[C@@H](N)C(=O)O", "[Zn+2].[Cl-]", "C%12CC%12", "BrC1=CC=C(Cl)C=C1/C=C/C", "[13CH4]", "C%(123)CC%(123)", "[se]1cccc1"]


def fitted(**options):
    found = MoleculesConfig(**options).build()
    found.fit(["C[C@@H](N)c1cc[nH]c1", "CC[N+](C)(C)C"])
    return found


@pytest.mark.parametrize("smiles", SMILES)
def test_smiles_come_back_letter_by_letter(smiles):
    tokenizer = fitted()
    assert tokenizer.decode(tokenizer.encode(smiles)) == smiles


def test_symbols_are_the_longest_ones():
    tokenizer = fitted()
    assert tokenizer.split("C[C@@H](N)Cl") == ["C", "[C@@H]", "(", "N", ")", "Cl"]
    assert tokenizer.split("[Zn]") == ["[", "Z", "n", "]"]  # no training molecule has it


@pytest.mark.parametrize(
    ("smiles", "told"), [("CC O", "' ' at place 3"), ("CXC", "'X' at place 2"), ("", "holds no symbol"), ("Cé", "'é' at place 2")]
)
def test_what_is_no_smiles_is_named_with_its_place(smiles, told):
    with pytest.raises(DataError, match=told):
        fitted().encode(smiles)


def test_selfies_keep_the_molecule_and_refuse_unknown_symbols():
    pytest.importorskip("selfies")
    tokenizer = fitted(notation="selfies")
    for smiles in ("c1ccccc1O", "CC(=O)N"):
        assert canonical(tokenizer.decode(tokenizer.encode(smiles))) == canonical(smiles)
    with pytest.raises(Unwritable, match=r"SELFIES symbol \[13C\] at place 2 is none that was fitted"):
        tokenizer.encode("C[13C]")


def test_selfies_are_fitted_on_salts_and_on_what_of_a_list_can_be_written():
    pytest.importorskip("selfies")
    tokenizer = MoleculesConfig(notation="selfies").build()
    tokenizer.fit(["CC(=O)[O-].[Na+]", "F[U](F)(F)(F)(F)(F)(F)(F)F"])
    assert canonical(tokenizer.decode(tokenizer.encode("CC(=O)[O-].[Na+]"))) == canonical("CC(=O)[O-].[Na+]")
    with pytest.raises(Unwritable, match="cannot be written as SELFIES"):
        tokenizer.encode("F[U](F)(F)(F)(F)(F)(F)(F)F")


def test_a_text_that_comes_again_is_cut_once_and_gives_tokens_of_its_own(monkeypatch):
    tokenizer, cut = fitted(), []
    monkeypatch.setattr(tokenizer, "_cut", lambda text, own=tokenizer._cut: cut.append(text) or own(text))
    first = tokenizer.encode(SMILES[1])
    wanted = first.ids.tolist()
    first.ids[0] += 1
    assert tokenizer.encode(SMILES[1]).ids.tolist() == wanted == tokenizer.ids(SMILES[1]) and len(cut) == 2  # `ids` cuts anew
    tokenizer.fit(["C[C@H](N)O"])
    assert tokenizer.encode(SMILES[1]).ids.tolist() == tokenizer.ids(SMILES[1]) != wanted


def test_a_saved_tokenizer_gives_the_same_ids_and_a_damaged_one_is_refused(tmp_path):
    tokenizer = fitted()
    tokenizer.save(tmp_path)
    again = MoleculesConfig().build().load(tmp_path)
    assert again.ids(SMILES[1]) == tokenizer.ids(SMILES[1]) and again.is_fitted
    (tmp_path / "symbols.json").write_text('["C", "C"]')
    with pytest.raises(CheckpointError, match="list of different symbols"):
        MoleculesConfig().build().load(tmp_path)


def test_proteins_come_back_and_unknown_residues_are_named():
    tokenizer = ProteinsConfig().build()
    for text in ("MKTAYIAKQR", "AC-D.XBZUO"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(DataError, match="'k' at place 2 is no residue"):
        tokenizer.encode("MkT")
    with pytest.raises(DataError, match="is empty"):
        tokenizer.encode("")


@pytest.mark.slow
def test_a_hundred_thousand_real_molecules_are_read_and_tokenized_in_ten_seconds():
    if importlib.util.find_spec("moses") is None:
        pytest.skip("needs the data of the package molsets")
    began = time.process_time()
    texts = MosesConfig(count=100_000).build().texts
    tokenizer = MoleculesConfig().build()
    tokenizer.fit(texts[:500])
    found = [tokenizer.ids(text) for text in texts]
    seconds = time.process_time() - began
    print(f"\n100,000 SMILES: {seconds:.2f} s of one core")
    assert len(found) == 100_000 and seconds < 10
    assert all(tokenizer.join([tokenizer.symbols[index] for index in ids]) == text for ids, text in zip(found[::500], texts[::500]))
