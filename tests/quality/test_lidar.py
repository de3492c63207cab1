"""Sweeps of LiDAR, whole: classes of places, boxes and captions need the sweep that is shown, and a view is known by its vector alone.

The quickstart with the vectors of the views and without them. A question about a view does not name it: without the vectors the answer to
"What is nearest?" can only be the best guess over all views.
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
COUNT, ASKED, AZIMUTHS = 80, 300, 256  # sweeps, those that are asked of their views, and directions of their rays as in the recipe


def trained(folder, *options: str):
    quiet = ["train.validate_every=0", "train.sample_every=0", "data.validate=[]"]
    train(Recipe.read("lidar/quickstart", [f"output={folder}", *quiet, *options]))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("lidar") / "run")


@pytest.fixture(scope="module")
def found(run):
    measured = evaluate(run, [f"data.test=[{{type: street, azimuths: {AZIMUTHS}, split: test, count: {COUNT}}}]"])
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
def viewed(run, tmp_path_factory):
    """(task, model) with vectors of views and without."""
    without = trained(tmp_path_factory.mktemp("views") / "run", "encoders.lidar.view_vectors=false")
    loaded = {has_vectors: load_run(folder)[1:] for has_vectors, folder in ((True, run), (False, without))}
    return {has_vectors: (task, model.eval()) for has_vectors, (task, model) in loaded.items()}


def asked() -> list[tuple[np.ndarray, Request]]:
    """The question about each view where it has an answer."""
    return [
        (record.read(), Request("question", BLIND, Grounded(each.said.answer), view=each.view))
        for record in StreetConfig(count=ASKED, azimuths=AZIMUTHS, split="test").build().everything()
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


def test_the_vectors_alone_tell_the_view(viewed) -> None:
    """Without them two views have one answer. What swapping two of them does is told, not asked for: a vector stands on the cells of the
    view's sector too, and a model that looks where any vector stands answers as before."""
    task, model = viewed[True]
    sweeps = [record.read() for record in StreetConfig(count=COUNT, azimuths=AZIMUTHS, split="test").build().everything()]
    (_, request), *_ = asked()
    vectors, pair = model.encoders["lidar"].views_vd, [0, 3]
    own = vectors.detach().clone()

    def answers(vectors_vd: torch.Tensor) -> list[tuple[str, ...]]:
        with torch.no_grad():
            vectors.copy_(vectors_vd)
        found = [said(task, model, [(seen, Request("question", BLIND, request.truth, view=view)) for seen in sweeps]) for view in pair]
        return list(zip(*found, strict=True))

    swapped = own.clone()
    swapped[pair] = own[pair[::-1]]
    after, without, before = answers(swapped), answers(torch.zeros_like(own)), answers(own)
    differing = [(one, other) for one, other in zip(before, after, strict=True) if one[0] != one[1]]
    share = sum(other == one[::-1] for one, other in differing) / max(len(differing), 1)
    print(f"\nof {len(differing)} sweeps whose two answers differ, swapped vectors swap {share:.3f}")
    assert len(differing) >= COUNT / 2 and all(one == other for one, other in without)
