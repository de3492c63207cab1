"""The quickstart of grounded captioning, whole: unseen scenes are described and pointed at, and without looking they are not.

Ten minutes of training from nothing. F1_all counts an object word as right where its box is; its best on these scenes is about 0.9, as of
two things of a class only the first counts. `compose` holds pairs of colour and shape that training never shows.
"""

from __future__ import annotations

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from mmlm.tasks.base import TRUTH
from mmlm.tasks.grounded import TWIN

pytestmark = pytest.mark.quality
SPLITS = ("test", "compose")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grounded") / "run"
    train(Recipe.read("grounded_captioning/quickstart", [f"output={folder}", "train.sample_every=0"]))
    return folder


@pytest.fixture(scope="module")
def found(run):
    measured = evaluate(run)
    for name, row in {"model": measured["metrics"], **measured["baselines"]}.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return measured


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_described_with_the_right_boxes(found, split) -> None:
    values = {name: found["metrics"][f"{name}: scenes, split {split}"] for name in ("f1_all", "acc_50", "malformed")}
    assert values["f1_all"] >= 0.6 and values["acc_50"] >= 0.7 and values["malformed"] < 0.01
    assert found["baselines"][TRUTH][f"f1_all: scenes, split {split}"] > 0.85


@pytest.mark.parametrize("split", SPLITS)
def test_without_looking_little_is_right(found, split) -> None:
    twin = found["baselines"][TWIN]
    assert twin[f"f1_all: scenes, split {split}"] < 0.05 and twin[f"acc_50: scenes, split {split}"] <= 0.06


def test_held_to_the_grammar_nothing_is_malformed(run) -> None:
    values = evaluate(run, ["task.constrained=true", "data.test=[{type: scenes, split: test, count: 60}]"])["metrics"]
    assert values["malformed"] == 0
