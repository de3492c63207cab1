"""Texts of streets: each is what its things say, by programs or by the boxes of its phrases, and a view is not named by what is asked of
it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mmlm.data.config.street import StreetConfig
from mmlm.data.scenes.programs import Unclear
from mmlm.data.street.source import told
from mmlm.data.street.texts import NEAR, NOTHING, Street, caption
from mmlm.data.sweeps import Cuboid
from mmlm.encoders.views import VIEWS


def streets(count: int) -> list[Street]:
    return [Street(record.things) for record in StreetConfig(split="test", count=count).build().everything()]


@pytest.fixture(scope="module")
def some() -> list[Street]:
    return streets(120)


def test_captions_name_each_thing_once_with_its_box_and_its_distance(some) -> None:
    for street in some:
        for view in (None, *range(len(VIEWS))):
            said = caption(street, view)
            things = [each for each in street.items if view is None or each.view == view]
            assert sorted(phrase.boxes[0] for phrase in said.phrases) == sorted(each.box for each in things)
            assert (said.text == NOTHING) == (not things)
            by_box = {each.box: each for each in things}
            for phrase in said.phrases:
                thing = by_box[phrase.boxes[0]]
                assert said.words(phrase) == f"{'near' if thing.distance < NEAR else 'far'} {thing.label}"
                before = said.text[: phrase.start]
                if view is None:
                    assert max(VIEWS, key=lambda name: before.rfind(f"{name.capitalize()}: ")) == VIEWS[thing.view]


def test_expressions_and_questions_are_what_a_second_reading_of_their_words_finds(some) -> None:
    kinds, answers = Counter[str](), Counter[str]()
    for number, street in enumerate(some):
        _, pointed, asked = told(np.random.default_rng(number), street)
        for one, program in pointed:
            assert street.items[street.one(program)].box == one.box and read_expression(one.text, street.items) == one.box
        for asking, program in asked:
            assert street.answer(program) == asking.said.answer and not any(name in asking.said.text for name in VIEWS)
            things = [each for each in street.items if asking.view is None or each.view == asking.view]
            assert read_question(asking.said.text, things) == asking.said.answer
            kinds[asking.said.kind] += 1
            answers[asking.said.answer] += asking.said.kind == "exist"
    assert set(kinds) == {"nearest", "count", "exist"} and min(kinds.values()) > 40
    assert 0.3 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.7


def read_expression(text: str, things: list[Cuboid]) -> tuple[float, ...]:
    words, _, where = text.removeprefix("the ").partition(" to the ")
    most, _, label = words.rpartition(" ")
    fit = [each for each in things if label in (each.label, "thing") and where in ("", VIEWS[each.view])]
    assert most or len(fit) == 1
    return sorted(fit, key=lambda each: each.distance)[-1 if most == "farthest" else 0].box


def read_question(text: str, things: list[Cuboid]) -> str:
    if text == "What is nearest?":
        return min(things, key=lambda each: each.distance).label
    count = sum(each.label in text for each in things)
    return str(count) if text.startswith("How many") else "yes" if count else "no"


def test_two_things_as_near_as_each_other_are_unclear() -> None:
    at = [Cuboid("car", (9.0, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0)), Cuboid("truck", (-9.5, 0.0, -1.0, 8.0, 2.5, 3.0, 0.0))]
    with pytest.raises(Unclear):
        Street(at).one(("most", "nearest", ("all",)))
    with pytest.raises(Unclear):
        Street([]).one(("most", "nearest", ("all",)))
    assert Street(at[:1]).one(("most", "nearest", ("all",))) == 0
