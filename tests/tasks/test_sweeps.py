"""Sweeps in words: streams say what records say and are of one view, answers are scored, grammars hold, and a run goes from end to end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmlm.data.config.street import StreetConfig
from mmlm.data.sweeps import Sweep
from mmlm.model import MultimodalLM
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, evaluate, train
from mmlm.stream import NO_LABEL, pack
from mmlm.tasks.asking import COMMONEST, QUESTION_ALONE, Request, Said
from mmlm.tasks.base import TRUTH
from mmlm.tasks.config import SWEEP_KINDS
from mmlm.tasks.sweeps import TWIN, SweepsTask
from mmlm.tokenizers.boxes import Grounded

KINDS = "task.kinds={grounded_caption: 1, caption: 1, expression: 1, class: 1, question: 1}"
SMALL = [
    "backbone.width=32", "backbone.num_layers=1", "tokenizers.sweep.num_tokens=4", "encoders.lidar.pillars.channels=4",
    "encoders.lidar.pillars.cell=1.6", "encoders.lidar.queries={num_queries: 4, num_layers: 1, num_heads: 2, width: 16}",
]  # fmt: skip


@pytest.fixture(scope="module")
def built() -> tuple[SweepsTask, MultimodalLM]:
    recipe = Recipe.read("lidar/quickstart", [KINDS, *SMALL, "task.requests=1"])
    task = build_task(recipe)
    return task, build_model(recipe, task).eval()


def sweeps(count: int, split: str = "test") -> list[Sweep]:
    return StreetConfig(count=count, split=split).build().everything()


def test_a_stream_holds_what_its_record_says_of_one_view(built) -> None:
    task, model = built
    kinds = set()
    for number, record in enumerate(sweeps(40)):
        stream = task.example(record, np.random.default_rng(number))
        seen, *prompt, answer = stream.segments
        mark = prompt[-1]
        kind = SWEEP_KINDS[int(mark.ids[0]) - 1]
        kinds.add(kind)
        assert all(each.mutual == 1 and each.weight == 0 for each in (seen, *prompt)) and answer.mutual == 0 and answer.weight == 1
        assert np.array_equal(task.points.decode(seen), record.read()) and seen.whole
        batch = pack([stream], model.vocabulary)
        assert int((batch.labels != NO_LABEL).sum()) == len(answer)
        said = task._parsed(batch.ids[0, -len(answer) :].tolist(), model.vocabulary, model.vocabulary.span("special").start)
        view = int(seen.features[0, 4])
        fitting = [each for each in task.requests(record) if each.kind == kind and (-1 if each.view is None else each.view) == view]
        assert not said.faults and said.text in [each.truth.text for each in fitting]
        boxes = [each.ids.tolist() for each in prompt if each.modality == "loc"]
        assert bool(boxes) == (kind == "class")
        if boxes:
            assert any(task.boxes.bins(thing.box)[:2] == boxes[0] and thing.label == said.text for thing in record.things)
    assert kinds == set(SWEEP_KINDS)


def test_a_class_is_asked_of_a_place_and_not_of_a_size_or_height(built) -> None:
    task, _ = built
    (record,) = sweeps(1)
    x, y, *_ = record.things[0].box
    asked = []
    for rest in ((-1.0, 4.3, 1.8, 1.55, 0.3), (-0.2, 0.6, 0.6, 1.7, -1.0)):
        request = Request("class", "", Grounded("car"), box=(x, y, *rest))
        asked.append([each.ids.tolist() for each in task.prompt(record.read(), request).segments[1:]])
        assert task.asked(request).count("<") == 2
    assert asked[0] == asked[1] == [task.boxes.bins(record.things[0].box)[:2], [1 + SWEEP_KINDS.index("class")]]


def test_requests_of_a_sample_are_of_one_view(built) -> None:
    task, model = built
    several = SweepsTask(task.config.model_copy(update={"requests": 4}), task.tokenizers)
    views, sizes = set(), set()
    for number, record in enumerate(sweeps(30)):
        requests = several._drawn(several.requests(record), np.random.default_rng(number))
        assert len({each.view for each in requests}) == 1
        views.add(requests[0].view)
        sizes.add(len(requests))
        stream = several.example(record, np.random.default_rng(number))
        assert float(stream.segments[0].features[0, 4]) == (-1 if requests[0].view is None else requests[0].view)
        assert {each.branch for each in stream.segments[1:]} == set(range(1, len(requests) + 1))
    assert len(views) > 3 and max(sizes) == 4


def test_true_answers_score_one_and_wrong_ones_do_not(built) -> None:
    task, _ = built
    records = sweeps(40)
    outputs = [[Said(request, request.truth) for request in task.requests(record)] for record in records]
    found = task.score(outputs, records)
    assert set(found) == {"cider", "bleu_4", "bev_iou", "class_accuracy", "answers", "malformed"} and found["malformed"] == 0
    assert all(found[name] == pytest.approx(1) for name in ("bleu_4", "bev_iou", "class_accuracy", "answers"))
    silent = [[replace(one, answer=Grounded("", (), (("group is not closed", 1),))) for one in each] for each in outputs]
    assert task.score(silent, records) | {"malformed": 0.0} == dict.fromkeys(found, 0.0) and task.score(silent, records)["malformed"] == 1
    baselines = task.baselines(records)
    assert baselines[TRUTH] == found and all(0.1 < baselines[COMMONEST][name] < 0.6 for name in ("class_accuracy", "answers"))
    assert set(task.curves(outputs, records)) == {"bev_iou", "class_accuracy", "answers"}


@torch.no_grad()
def test_constrained_answers_of_an_untrained_model_have_no_fault(built) -> None:
    task, model = built
    records = sweeps(2)
    held = SweepsTask(task.config.model_copy(update={"constrained": True, "max_tokens": 40}), task.tokenizers)
    outputs = held.predict(model, records)
    assert held.score(outputs, records)["malformed"] == 0
    assert all(len(one.answer.phrases) == 1 for each in outputs for one in each if one.request.kind == "expression")
    assert not any(one.answer.phrases for each in outputs for one in each if one.request.kind in ("caption", "class", "question"))


def test_the_twin_sees_another_sweep_with_the_same_requests(built) -> None:
    task, model = built
    seen = []

    class Spy(SweepsTask):
        def answers(self, model, seen_ones, requests):
            seen.extend(zip(seen_ones, requests, strict=True))
            return [request.truth for request in requests]

    records = sweeps(3)
    assert set(Spy(task.config, task.tokenizers).twins(model, records)) == {TWIN}
    shown = [record.read() for record in (*records[1:], records[0])]
    wanted = [(points, each) for points, record in zip(shown, records, strict=True) for each in task.requests(record)]
    assert len(seen) == len(wanted)
    assert all(np.array_equal(one[0], other[0]) and one[1] == other[1] for one, other in zip(seen, wanted, strict=True))


def test_a_run_trains_shows_and_measures(tmp_path) -> None:
    options = [
        KINDS, *SMALL, "train.steps=3", "train.batch_size=3", "train.validate_every=3", "train.sample_every=3", "data.validate_samples=2",
        "task.max_tokens=48", "data.test=[{type: street, split: test, count: 2}]", f"output={tmp_path / 'run'}",
    ]  # fmt: skip
    train(Recipe.read("lidar/quickstart", options))
    found = evaluate(tmp_path / "run")
    assert {"bev_iou", "class_accuracy", "answers", "cider"} <= set(found["metrics"])
    assert {TWIN, COMMONEST, QUESTION_ALONE, TRUTH} <= set(found["baselines"])
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("<figure><img") >= 3 and "grounded caption<br>" in page and "<small>true: " in page
    texts = list((tmp_path / "run").rglob("samples/**/1.txt"))
    assert texts and "said" in texts[0].read_text() and list(texts[0].parent.glob("1_*_expression.png"))
