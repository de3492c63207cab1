"""The quickstart of molecules, whole: one checkpoint reads logP off unseen scaffolds and writes molecules to a wanted logP.

20,000 molecules of MOSES, eight minutes of one core. A model that only reads, or only writes, fails one half. What designs are like is said
by RDKit; shuffled wanted values must tell nothing.
"""

from __future__ import annotations

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("molecules") / "run"
    train(Recipe.read("molecules/quickstart", [f"output={folder}", "train.validate_every=0", "train.sample_every=0"]))
    measured = evaluate(folder)
    for name, row in {"model": measured["metrics"], **measured["baselines"]}.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return measured


def test_logp_of_unseen_scaffolds_is_read(found):
    values, mean = found["metrics"], found["baselines"]["the mean of the training compounds"]
    assert values["rmse"] <= 0.6 * mean["rmse"] and values["unparsable"] < 0.01


def test_designs_follow_the_wanted_logp_and_nothing_else(found):
    values = found["metrics"]
    assert {"steering", "steering_shuffled"} <= values.keys(), "of some wanted value no design was a molecule"
    assert values["steering"] >= 0.5 and abs(values["steering_shuffled"]) < 0.1
    assert values["uniqueness"] > 0.5 and values["novelty"] > 0.5  # any SELFIES is a molecule: validity is no success
