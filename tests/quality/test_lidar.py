"""Sweeps of LiDAR, whole: classes of places, boxes and captions need the sweep that is shown, and a view is known by its vector alone.

The quickstart, and two trainings of four minutes on questions about views, with the vectors of the views and without them. A question about
a view does not name it: without the vectors the answer to "What is nearest?" can only be the best guess over all views.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.data.config.street import StreetConfig
from mmlm.recipe import Recipe
from mmlm.run import evaluate, load_run, train
from mmlm.tasks.asking import Request, plain
from mmlm.tasks.sweeps import COMMONEST, TWIN
from mmlm.tokenizers.boxes import Grounded

pytestmark = pytest.mark.quality
BLIND = "What is nearest?"
COUNT, AZIMUTHS = 80, 256  # sweeps, and directions of their rays as in the recipe


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lidar") / "run"
    train(Recipe.read("lidar/quickstart", [f"output={folder}", "train.validate_every=0", "train.sample_every=0", "data.validate=[]"]))
    measured = evaluate(folder, [f"data.test=[{{type: street, azimuths: {AZIMUTHS}, split: test, count: {COUNT}}}]"])
    for name, row in {"model": measured["metrics"], **measured["baselines"]}.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    return measured


def test_the_class_of_a_place_is_read_from_the_sweep(found) -> None:
    accuracy = found["metrics"]["class_accuracy"]
    assert accuracy >= 0.6 and accuracy >= found["baselines"][TWIN]["class_accuracy"] + 0.2
    assert found["baselines"][COMMONEST]["class_accuracy"] < 0.3


@pytest.mark.parametrize("metric", ["bev_iou", "cider", "bleu_4", "answers"])
def test_grounding_captions_and_answers_are_better_than_without_looking(found, metric) -> None:
    assert found["metrics"][metric] > 1.1 * found["baselines"][TWIN][metric]
    assert metric != "bev_iou" or found["metrics"][metric] > found["baselines"][TWIN][metric] + 0.02


@pytest.fixture(scope="module")
def viewed(tmp_path_factory):
    """(task, model) with vectors of views and without."""
    made = {}
    for has_vectors in (True, False):
        folder = tmp_path_factory.mktemp("views") / str(has_vectors)
        options = ["task.kinds={question: 1}", "train.max_seconds=240", "train.validate_every=0", "train.sample_every=0",
                   "data.validate=[]", f"encoders.lidar.view_vectors={str(has_vectors).lower()}", f"output={folder}"]  # fmt: skip
        train(Recipe.read("lidar/quickstart", options))
        _, task, model = load_run(folder)
        made[has_vectors] = task, model.eval()
    return made


def asked() -> list[tuple[np.ndarray, Request]]:
    """The question about each view where it has an answer."""
    return [
        (record.read(), Request("question", BLIND, Grounded(each.said.answer), view=each.view))
        for record in StreetConfig(count=COUNT, azimuths=AZIMUTHS, split="test").build().everything()
        for each in record.questions
        if each.view is not None and each.said.text == BLIND
    ]


@torch.no_grad()
def said(task, model, some) -> list[str]:
    return [plain(each.text) for each in task.answers(model, [seen for seen, _ in some], [request for _, request in some])]


def test_a_view_that_no_word_names_is_known_by_its_vector(viewed) -> None:
    some = asked()
    right = {}
    for has_vectors, (task, model) in viewed.items():
        answers = said(task, model, some)
        right[has_vectors] = sum(one == plain(request.truth.text) for one, (_, request) in zip(answers, some, strict=True)) / len(some)
    print(f"\nnearest in a view, {len(some)} questions: with vectors {right[True]:.3f}, without {right[False]:.3f}")
    assert right[True] >= right[False] + 0.25


def test_swapped_vectors_swap_the_answers(viewed) -> None:
    task, model = viewed[True]
    sweeps = [record.read() for record in StreetConfig(count=COUNT, azimuths=AZIMUTHS, split="test").build().everything()]
    (_, request), *_ = asked()
    pair = (0, 3)

    def answers() -> list[tuple[str, str]]:
        found = [said(task, model, [(seen, Request("question", BLIND, request.truth, view=view)) for seen in sweeps]) for view in pair]
        return list(zip(*found, strict=True))

    before = answers()
    vectors = model.encoders["lidar"].views_vd
    with torch.no_grad():
        vectors[list(pair)] = vectors[list(reversed(pair))].clone()
    after = answers()
    differing = [(one, other) for one, other in zip(before, after, strict=True) if one[0] != one[1]]
    share = sum(other == tuple(reversed(one)) for one, other in differing) / max(len(differing), 1)
    print(f"\nswapped in {share:.3f} of {len(differing)} sweeps whose two answers differ")
    assert differing and share >= 0.8
