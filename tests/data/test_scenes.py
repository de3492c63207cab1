"""Drawn scenes: every text agrees with what is drawn, splits share nothing that they must not, boxes are those of the pixels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from mmlm.analysis.grounding import iou
from mmlm.data.config import ScenesConfig
from mmlm.data.scenes.objects import APART, COLORS, HELD_OUT, SEEN, SHAPES, SIZES, Item, mask, picture
from mmlm.data.scenes.programs import Scene, Unclear

WIDE = {"width": 224, "height": 160, "min_things": 2, "max_things": 5, "radii": [0.075, 0.115, 0.165]}


@pytest.mark.parametrize("options", [{}, WIDE])
def test_programs_give_the_stored_answers_and_expressions_name_one_thing(options) -> None:
    """1,500 scenes of each size (5,000 were tried once)."""
    source, kinds, counted = ScenesConfig(**options).build(), Counter(), 0
    for number in range(1500):
        found, scene, programs = source.with_programs(number)
        for expression, program in zip(found.expressions, programs, strict=False):
            assert scene.items[scene.one(program)].box == expression.box
            counted += 1
        for question, program in zip(found.questions, programs[len(found.expressions) :], strict=True):
            assert scene.answer(program) == question.answer
            kinds[question.kind] += 1
        for said in found.captions:
            assert len(said.phrases) == len(scene.items)
            for phrase in said.phrases:
                (item,) = [each for each in scene.items if each.box == phrase.boxes[0]]
                assert {item.color, item.shape} <= set(said.words(phrase).split()) <= {item.color, item.shape, item.size, item.fill}
    assert counted > 1500 and len(kinds) >= 8 and min(kinds.values()) > 20


def test_answers_are_not_told_by_the_question() -> None:
    answers: dict[str, Counter] = {}
    for number in range(3000):
        for question in ScenesConfig(**WIDE).build().record(number).questions:
            answers.setdefault(question.text, Counter())[question.answer] += 1
    total = sum(sum(each.values()) for each in answers.values())
    best = sum(max(each.values()) for each in answers.values() if sum(each.values()) > 3)
    seen = sum(sum(each.values()) for each in answers.values() if sum(each.values()) > 3)
    assert seen > total / 4 and best / seen < 0.75  # of questions asked four times or more: overfitted, so an upper bound


def test_a_scene_is_a_function_of_its_number_and_boxes_are_those_of_the_pixels() -> None:
    source = ScenesConfig(**WIDE).build()
    assert all(np.array_equal(source.record(n).read(), source.record(n).read()) for n in range(5))
    assert not np.array_equal(source.record(0).read(), source.record(1).read())
    for shape in SHAPES:
        item = Item(shape, "red", "large", "solid", (60.3, 50.8), 30.0, (200, 0, 0))
        empty, drawn = (picture(np.random.default_rng(0), items, 120, 100, 0.0).astype(int) for items in ([], [item]))
        y_n, x_n = np.nonzero(np.abs(drawn - empty).sum(2) > 100)
        assert iou((x_n.min(), y_n.min(), x_n.max() + 1, y_n.max() + 1), item.box) > 0.93


def test_things_stand_apart_unless_they_may_overlap() -> None:
    def pairs(overlap: bool) -> list[float]:
        source = ScenesConfig(max_things=6, min_things=4, overlap=overlap).build()
        boxes = [[thing.box for thing in source.record(n).things] for n in range(150)]
        return [iou(one, other) for each in boxes for at, one in enumerate(each) for other in each[:at]]

    assert max(pairs(False)) <= APART + 1e-9 and max(pairs(True)) > 0.1
    source = ScenesConfig(max_things=6, min_things=4, overlap=True).build()
    for number in range(60):
        _, scene, _ = source.with_programs(number)
        masks = [mask([each], scene.width, scene.height) for each in scene.items]
        seen = [(one & ~np.any([*masks[at + 1 :], np.zeros_like(one)], axis=0)).sum() / one.sum() for at, one in enumerate(masks)]
        assert min(seen) > SEEN / 2.5, number  # half of each box, but of an outline in it less


def test_pairs_that_are_held_out_are_in_every_scene_of_compose_and_in_no_other() -> None:
    def found(split: str) -> list[set[tuple[str, str]]]:
        source = ScenesConfig(split=split, count=200).build()
        return [{tuple(thing.label.split()) for thing in each.things} for each in source.everything()]

    assert all(each & HELD_OUT for each in found("compose"))
    assert not any(each & HELD_OUT for split in ("train", "validate", "test") for each in found(split))
    texts = [{each.captions[0].text for each in ScenesConfig(split=split, count=50).build().everything()} for split in ("validate", "test")]
    assert texts[0] != texts[1]


def test_mixed_sizes_noise_and_drawing() -> None:
    source = ScenesConfig(sides=[40, 90], noise=0.05).build()
    shapes = {source.record(n).read().shape[:2] for n in range(20)}
    assert len(shapes) > 10 and all(40 <= side <= 90 for shape in shapes for side in shape)
    rng = np.random.default_rng(3)
    drawn = [source.draw(rng, None).id for _ in range(5)]
    assert len(set(drawn)) == 5 and drawn[0] == source.draw(np.random.default_rng(3), None).id


def item(shape: str, x: float, y: float, radius: float = 10.0) -> Item:
    return Item(shape, "red", "small", "solid", (x, y), radius, (0, 0, 0))


def test_extremes_and_thirds_need_a_margin() -> None:
    scene = Scene([item("circle", 20, 50), item("circle", 60, 50, 14.0), item("star", 62, 90)], 100, 100)
    assert scene.one(("most", "leftmost", ("all",))) == 0 and scene.one(("most", "largest", ("all",))) == 1
    with pytest.raises(Unclear):
        scene.one(("most", "rightmost", ("all",)))
    with pytest.raises(Unclear):
        scene.one(("most", "largest", ("filter", "shape", "star", ("all",))))
    assert scene.things(("relate", "right of", ("filter", "shape", "star", ("all",)))) == frozenset()
    assert scene.things(("relate", "above", ("filter", "shape", "star", ("all",)))) == {0, 1}
    assert scene.answer(("third", ("most", "leftmost", ("all",)))) == "left"
    with pytest.raises(Unclear):
        Scene([item("circle", 34, 50)], 100, 100).answer(("third", ("all",)))


def test_configs_that_cannot_be_are_refused() -> None:
    for options in ({"min_things": 4, "max_things": 3}, {"radii": [0.2, 0.1, 0.3]}, {"sides": [90, 40]}):
        with pytest.raises(ValidationError):
            ScenesConfig(**options)
    assert len(COLORS) * len(SHAPES) > 4 * len(HELD_OUT) and len(SIZES) == 3
