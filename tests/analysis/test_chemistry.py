"""Plain predictors of compounds."""

import pytest

from mmlm.analysis import chemistry
from mmlm.analysis.chemistry import MEAN, RIDGE, compound_baselines
from mmlm.data.molecules import Compound

pytest.importorskip("sklearn")


def proteins(*texts):
    return [Compound(str(number), text, {"score": float(text.count("A"))}, kind="protein") for number, text in enumerate(texts)]


@pytest.mark.parametrize("asked", [["AAKL", "GGKL"], ["AAKLL", "GG"]], ids=["of one length", "of other lengths"])
def test_proteins_of_other_lengths_than_those_of_training_are_compared_by_what_both_have(asked):
    train = proteins("AAKL", "GAKL", "AGKL", "GGKL", "AAKK", "GGKK", "GAKK", "AGKK")
    found = compound_baselines(train, proteins(*asked), "score")
    assert found[MEAN] == [1.0, 1.0] and found[RIDGE][0] > 1.5 > 0.5 > found[RIDGE][1]


def test_of_very_many_training_compounds_plain_predictors_see_some_from_all_of_the_list(monkeypatch):
    monkeypatch.setattr(chemistry, "FITTED_COMPOUNDS", 4)
    train = proteins("AAKL", "GAKL", "AGKL", "GGKL", "AAKK", "GGKK", "GAKK", "AAAK")
    seen = []
    monkeypatch.setattr(chemistry, "plain_features", lambda compounds, like: seen.append(like) or [[0.0]] * len(compounds))
    chemistry.compound_baselines(train, proteins("AAKL"), "score")
    assert [each.text for each in seen[0]] == ["AAKL", "AGKL", "AAKK", "GAKK"]
    assert chemistry.fitted_on(train[:4]) == train[:4]
