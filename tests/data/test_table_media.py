"""Columns of pictures, sounds and molecules: how they are told, overridden, joined, and what is said of a bad cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmlm.analysis.drawing import write_png
from mmlm.base.errors import DataError, RecipeError
from mmlm.data.audio_files import write_sound
from mmlm.data.config import TableFileConfig
from mmlm.data.table_media import with_media
from mmlm.data.table_reader import read_table
from mmlm.data.tables import Column, Table, join_rows
from mmlm.recipe import Recipe
from mmlm.sound import Sound

HEADER = "photo,cry,smiles,weight,kind"


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("rdkit")
    pytest.importorskip("soundfile")
    for number in range(2):
        write_png(tmp_path / f"{number}.png", np.full((6, 5, 3), 40 * number, dtype=np.uint8))
        write_sound(tmp_path / f"{number}.wav", Sound(np.zeros(400, dtype=np.float32) + 0.1, 16_000))
    return tmp_path


def table(folder, *rows: str):
    path = folder / "some.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


def kinds(found) -> dict[str, str | None]:
    return {column.name: column.medium.kind if column.medium else None for column in found.columns}


def test_columns_are_told_from_their_cells(folder):
    path = table(folder, "0.png,0.wav,CCO,4.5,cat", "1.png,1.wav,c1ccccc1,2,dog", ",1.wav,,3,dog")
    found = read_table(path)
    assert kinds(found) == {"photo": "picture", "cry": "sound", "smiles": "molecule", "weight": None, "kind": None}
    photo = found.column("photo")
    assert photo.words[:2] == [str(folder / "0.png"), str(folder / "1.png")] and photo.missing.tolist() == [False, False, True]
    assert photo.medium.places[1] == f"{path}, line 3, column 'photo'"
    assert found.column("cry").medium.places == [f"{path}, line {line}, column 'cry'" for line in (2, 3)]
    assert found.take([1]).column("smiles").medium is found.column("smiles").medium


def test_what_is_said_of_a_column_goes_before_what_is_guessed(folder):
    path = table(folder, "0.png,0.wav,CCO,4.5,cat", "1.png,1.wav,CCN,2,dog")
    assert kinds(read_table(path, kinds={"photo": "text", "weight": "text"}))["photo"] is None
    assert read_table(path, kinds={"weight": "text"}).column("weight").kind == "category"
    text = path.read_text().replace("smiles", "substance")
    path.write_text(text)
    assert kinds(read_table(path))["substance"] is None
    assert kinds(read_table(path, kinds={"substance": "molecule"}))["substance"] == "molecule"
    source = TableFileConfig(path=str(path), target="kind", kinds={"substance": "molecule"}, hold_out=0.0).build()
    assert kinds(source.whole)["substance"] == "molecule"
    json = folder / "some.jsonl"
    json.write_text('\n{"p": "0.png", "kind": "a"}\n\n{"p": "gone.png", "kind": "b"}\n')
    with pytest.raises(DataError, match=r"some\.jsonl, line 4, column 'p': .*gone\.png: .*[Nn]o such file"):
        read_table(json)


def test_a_cell_that_is_no_smiles_makes_all_texts_and_is_told_but_spaces_around_one_count_for_nothing(folder, caplog):
    found = read_table(table(folder, "0.png,0.wav, CCO ,4.5,cat", "1.png,1.wav,CCN,2,dog"))
    assert kinds(found)["smiles"] == "molecule" and found.column("smiles").words == ["CCO", "CCN"]
    found = read_table(table(folder, "0.png,0.wav,CCO,4.5,cat", "1.png,1.wav,not known,2,dog"))
    assert kinds(found)["smiles"] is None
    told = "column 'smiles': its cells are read as texts, not as molecules: SMILES 'not known': 't' at place 3 is no symbol of SMILES."
    assert told in [line.message for line in caplog.records]


def test_file_names_without_files_are_texts_unless_it_is_said(folder):
    path = table(folder, "a.png,b.wav,CCO,4.5,cat", "c.png,d.wav,CCN,2,dog")
    assert kinds(read_table(path)) == {"photo": None, "cry": None, "smiles": "molecule", "weight": None, "kind": None}
    with pytest.raises(DataError, match=r"some\.csv, line 2, column 'photo': .*a\.png: [Nn]o such file"):
        read_table(path, kinds={"photo": "picture"})


@pytest.mark.parametrize(
    ("row", "spoil", "message"),
    [
        ("gone.png,1.wav,CCN,2,dog", None, r"some\.csv, line 4, column 'photo': .*gone\.png: [Nn]o such file"),
        ("1.png,1.wav,CCN,2,dog", "1.png", r"some\.csv, line 4, column 'photo': .*1\.png: "),
        ("1.png,1.wav,CCN,2,dog", "1.wav", r"some\.csv, line 4, column 'cry': .*1\.wav: "),
        ("1.png,1.wav,C1CC,2,dog", None, r"some\.csv, line 4, column 'smiles': SMILES 'C1CC' cannot be read"),
    ],
)
def test_a_bad_cell_is_named_by_file_line_and_column(folder, row, spoil, message):
    path = table(folder, "0.png,0.wav,CCO,4.5,cat", "", row)
    if spoil:
        (folder / spoil).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_columns_that_cannot_hold_what_is_said_are_told(folder):
    path = table(folder, "0.png,0.wav,CCO,4.5,cat", "1.png,1.wav,CCN,2,dog")
    with pytest.raises(DataError, match="kinds: column 'weight' cannot hold sounds: its cells are numbers"):
        read_table(path, kinds={"weight": "sound"})
    with pytest.raises(DataError, match="kinds: unknown column 'foto'. Did you mean 'photo'"):
        read_table(path, kinds={"foto": "picture"})
    source = {"type": "table_file", "path": str(path), "target": "kind", "kinds": {"cry": "noise"}}
    with pytest.raises(RecipeError, match=r"data\.train\.0\.kinds\.cry: must be .*sound"):
        Recipe.read({"schema": 1, "name": "x", "task": {"type": "tabular"}, "data": {"train": [source]}})


def test_joined_rows_stay_what_they_are(folder):
    first = read_table(table(folder, "0.png,0.wav,CCO,4.5,cat", "1.png,1.wav,CCN,2,dog"))
    other = read_table(table(folder, "1.png,0.wav,CCS,4.5,cat"))
    joined = join_rows([first, other])
    assert kinds(joined) == kinds(first)
    smiles = joined.column("smiles")
    assert smiles.words == ["CCO", "CCN", "CCS"] and smiles.medium.places[2].endswith("line 2, column 'smiles'")
    plain = read_table(folder / "some.csv", kinds={"photo": "text"})
    assert kinds(join_rows([first, plain]))["photo"] is None


def test_a_column_of_gaps_alone_may_be_said_to_hold_anything():
    whole = Table("t", [Column("photo", "number", np.full(2, np.nan))])
    (column,) = with_media(whole, {"photo": "picture"}, Path("x"), list).columns
    assert column.medium is not None and column.medium.kind == "picture" and column.missing.all()
