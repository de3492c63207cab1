"""Plain predictors of compounds."""

import pytest

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
