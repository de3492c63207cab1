"""Solubility, lipophilicity and free energy of solvation, read off molecules of scaffolds that training never shows.

The tables are those of MoleculeNet, beside the checkout; five minutes of one core each. Ridge and random forest on RDKit's fingerprints get
the same rows of the same split.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality
TABLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "molecules"
COLUMNS = {"esol": "logS", "lipophilicity": "logD", "freesolv": "expt"}


def measured(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """{who: {metric: value}} on held-out scaffolds, printed."""
    import pandas

    table = folder / f"{name}.csv"
    pandas.read_parquet(TABLES / f"{name}.parquet").to_csv(table, index=False)
    source = f"{{type: molecule_table, path: {table}, properties: {{measured: {COLUMNS[name]}}}, compute: [logp], on_bad: skip}}"
    given = [f"data.train=[{source}]", "task.properties=[measured, logp]", f"output={folder / name}", "train.sample_every=0"]
    train(Recipe.read("molecules/esol", given))
    found = evaluate(folder / name)
    rows = {"model": found["metrics"], **found["baselines"]}
    for who, row in rows.items():
        print(f"{name:<14} {who:<36}", ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return rows


@pytest.mark.skipif(not TABLES.is_dir(), reason="needs the tables of MoleculeNet, which the checkout does not hold")
@pytest.mark.parametrize("name", COLUMNS)
def test_what_was_measured_is_read_off_unseen_scaffolds(name, tmp_path) -> None:
    rows = measured(name, tmp_path)
    assert rows["model"]["rmse_measured"] <= 0.8 * rows["the mean of the training compounds"]["rmse_measured"]
    assert rows["model"]["unparsable_measured"] < 0.01
