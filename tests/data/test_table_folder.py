"""Tasks from a folder of tables: what is left out and why, targets, and tables kept for validation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data.config import EpisodeConfig, TableCleaning, TableFolderConfig

SMALL = TableCleaning(min_rows=20, min_columns=3)


def write(path: Path, seed: int, rows: int = 40, name: str = "colour", extra: str = "") -> None:
    """Two columns of numbers and one of words."""
    rng = np.random.default_rng(seed)
    cells = [f"{x:.3f},{y:.3f},{'red' if x > 0 else 'blue'}{extra}\n" for x, y in rng.normal(size=(rows, 2))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"height{seed},width,{name}{',mail' if extra else ''}\n" + "".join(cells))


def built(folder: Path, **options: Any):
    return TableFolderConfig.model_validate({"path": str(folder), "cleaning": SMALL, **options}).build()


def test_tables_are_cleaned_and_what_is_left_out_is_told_with_its_reason(tmp_path, caplog):
    for number in range(3):
        write(tmp_path / "deep" / f"{number}.csv", number)
    write(tmp_path / "short.csv", 3, rows=9)
    write(tmp_path / "private.csv", 4, extra=",ann@example.org")
    (tmp_path / "z.csv").write_bytes((tmp_path / "deep" / "1.csv").read_bytes())
    with caplog.at_level(logging.WARNING):
        source = built(tmp_path)
    assert sorted(table.names[0] for table in source.tables) == ["height0", "height1", "height2"]
    assert "3 of 6 tables cannot be used and are left out" in caplog.text
    told = ["short.csv: it has 9 rows, but 20 are needed.", "private.csv: 100% of the cells of column 'mail'", "z.csv: has the content of"]
    for line in told:
        assert line in caplog.text
    assert len(built(tmp_path, cleaning=SMALL.model_copy(update={"min_rows": 5})).tables) == 4


def test_targets_are_categories_but_for_a_share_of_numbers(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.csv", number)
    config, rng = EpisodeConfig(num_rows=12, max_shots=8), np.random.default_rng(0)

    def share(**options: Any) -> float:
        source = built(tmp_path, **options)
        return float(np.mean([source.draw(rng, config).target == "colour" for _ in range(100)]))

    assert share(number_share=0.0) == 1 and share(number_share=1.0) == 0 and 0.75 < share() < 1


def test_tables_of_one_header_are_kept_for_validation_together_and_never_trained_on(tmp_path):
    for number in range(30):
        write(tmp_path / f"{number}.csv", number)
    source = built(tmp_path, validate_share=0.3)
    trained, kept = ({table.names[0] for table in some.tables} for some in (source, source.kept_back()))
    assert 3 <= len(kept) <= 16 and trained | kept == {f"height{number}" for number in range(30)} and not trained & kept
    assert {table.names[0] for table in built(tmp_path, validate_share=0.3).tables} == trained and built(tmp_path).kept_back() is None


def test_folders_that_cannot_be_trained_on_are_told(tmp_path):
    write(tmp_path / "a.csv", 0)
    with pytest.raises(DataError, match="validate_share: of 1 tables none is left"):
        built(tmp_path, validate_share=0.01)
    with pytest.raises(DataError, match="cleaning: of 1 tables none is left to train on"):
        built(tmp_path, cleaning=TableCleaning())
    with pytest.raises(DataError, match="a.csv: is not a folder; of one table, table_file gives tasks"):
        built(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("a,b\n1\n")
    with pytest.raises(DataError, match=r"1 of 2 tables cannot be used; on_bad: skip goes on without them"):
        built(tmp_path)
    assert [Path(each.where).name for each in built(tmp_path, on_bad="skip").bad] == ["b.csv"]
