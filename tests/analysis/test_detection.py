"""Average precision equals that of pycocotools, and is what can be told on paper."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from mmlm.analysis.detection import Found, average_precision

BOX = (0.1, 0.1, 0.5, 0.5)


def test_precision_of_a_case_on_paper() -> None:
    true = [[Found("a", BOX), Found("a", (0.6, 0.6, 0.9, 0.9))], [Found("b", BOX)]]
    found = [[Found("a", BOX, 0.9), Found("a", BOX, 0.8)], [Found("b", (0.5, 0.5, 0.9, 0.9), 0.7), Found("b", BOX, 0.6)]]
    got = average_precision(found, true)
    assert got.by_label == {"a": pytest.approx(51 / 101), "b": pytest.approx(0.5)}  # half of a's are found, none wrong before them
    assert got.ap_50 == pytest.approx((51 / 101 + 0.5) / 2) == got.ap_50_95
    assert average_precision(true, true).ap_50_95 == pytest.approx(1) and average_precision([[], []], true).ap_50 == 0
    assert average_precision([[]], [[]]).ap_50 == 0


def drawn(seed: int) -> tuple[list[list[Found]], list[list[Found]]]:
    rng = np.random.default_rng(seed)
    true, found = [], []
    for _ in range(12):
        corners = rng.integers(0, 25, (int(rng.integers(0, 8)), 2))  # so near that true boxes contend
        sides = rng.integers(20, 40, corners.shape)
        some = [(str(rng.choice(["x", "y", "z"])), tuple(map(float, (*a, *(a + s))))) for a, s in zip(corners, sides, strict=True)]
        true.append([Found(label, box) for label, box in some])
        near = [(label, tuple(np.array(box) + rng.integers(-4, 5, 4) + [0, 0, 5, 5])) for label, box in some for _ in range(2)]
        noise = [(str(rng.choice(["x", "y", "w"])), (1.0, 1.0, float(rng.integers(2, 90)), 50.0)) for _ in range(3)]
        found.append([Found(label, tuple(map(float, box)), float(rng.integers(1, 30)) / 30) for label, box in [*near, *noise]])
    return found, true


@pytest.mark.parametrize("seed", range(8))
def test_precision_equals_that_of_pycocotools(seed) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    found, true = drawn(seed)
    labels = sorted({each.label for some in [*found, *true] for each in some})

    def rows(pictures: list[list[Found]]) -> list[dict]:
        flat = [(number, each) for number, some in enumerate(pictures, 1) for each in some]
        return [
            {"id": at, "image_id": number, "category_id": labels.index(each.label) + 1, "score": each.score, "iscrowd": 0,
             "bbox": [each.box[0], each.box[1], each.box[2] - each.box[0], each.box[3] - each.box[1]],
             "area": (each.box[2] - each.box[0]) * (each.box[3] - each.box[1])}
            for at, (number, each) in enumerate(flat, 1)
        ]  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(1, len(true) + 1)], "annotations": rows(true),
            "categories": [{"id": at, "name": label} for at, label in enumerate(labels, 1)],
        }  # fmt: skip
        truth.createIndex()
        judge = evaluation.COCOeval(truth, truth.loadRes(rows(found)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    got = average_precision(found, true)
    assert 0.05 < got.ap_50_95 < got.ap_50 < 0.95
    assert (got.ap_50_95, got.ap_50) == pytest.approx(tuple(judge.stats[:2]), abs=1e-6)
