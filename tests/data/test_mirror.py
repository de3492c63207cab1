"""Texts are mirrored with their boxes where every left and right is a side, and not at all where one may be none."""

from __future__ import annotations

import numpy as np
import pytest

from mmlm.data.config import ScenesConfig
from mmlm.data.mirror import mirrored
from mmlm.data.pictures import Thing, every_thing
from mmlm.recipe import Recipe
from mmlm.run import build_task
from mmlm.tasks.grounded import Request, _flipped
from mmlm.tokenizers.boxes import Grounded, Phrase


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("the leftmost dog", "the rightmost dog"), ("A cat left of a dog.", "A cat right of a dog."), ("left", "right"),
        ("Left guy", "Right guy"), ("the dog on the right", "the dog on the left"),
        ("top-left corner, to the RIGHT", "top-right corner, to the LEFT"),
        ("man at his left hand", "man at his right hand"), ("the right dog", "the left dog"), ("a dog above a cat", "a dog above a cat"),
        ("third from the left", "third from the right"),
    ],
)  # fmt: skip
def test_sides_change_places_and_back(text, wanted) -> None:
    said = mirrored(Grounded(text))
    assert said is not None and said.text == wanted
    back = mirrored(said)
    assert back is not None and back.text == text


@pytest.mark.parametrize(
    "text",
    [
        "the man who left", "what is left over", "the right answer", "a left-handed batter", "an upright piano", "the letter b", "a clock",
        "a sign left of a dog", "right now", "he has left the room", "the east side", "some leftovers", "it is alright",
    ],
)  # fmt: skip
def test_what_may_be_no_side_is_not_mirrored(text) -> None:
    assert mirrored(Grounded(text)) is None


def test_phrases_and_boxes_move_with_the_words() -> None:
    said = Grounded("A cat right of a dog.", (Phrase(2, 5, ((0.5, 0.1, 0.75, 0.2),)), Phrase(17, 20, ((0.0, 0.0, 0.25, 1.0),))))
    found = mirrored(said)
    assert found is not None and [found.words(each) for each in found.phrases] == ["cat", "dog"]
    assert found.phrases[0].boxes == ((0.25, 0.1, 0.5, 0.2),) and found.phrases[1].boxes == ((0.75, 0.0, 1.0, 1.0),)
    assert mirrored(found) == said


def test_a_list_is_ordered_anew() -> None:
    things = every_thing([Thing("b", (0.5, 0.25, 0.75, 0.5)), Thing("a", (0.0, 0.25, 0.25, 0.5)), Thing("c", (0.5, 0.0, 0.75, 0.125))])
    assert things.text == "c a b"
    request, is_flipped = _flipped(Request("detection", "", things))
    assert is_flipped and request.truth.text == "c b a" and request.truth.phrases[1].boxes == ((0.25, 0.25, 0.5, 0.5),)


def test_a_mirrored_sample_shows_the_mirrored_picture_and_others_stay() -> None:
    options = ["task.kinds={expression: 1, question: 1, detection: 1}", "task.flip=1"]
    task = build_task(Recipe.read("grounded_captioning/quickstart", options))
    still = build_task(Recipe.read("grounded_captioning/quickstart", options[:1]))
    number = 0
    for number, record in enumerate(ScenesConfig(count=20, split="test").build().everything()):
        stream = task.example(record, np.random.default_rng(number))
        assert np.array_equal(task.patches.decode(stream.segments[0]), record.read()[:, ::-1])
        plain = still.example(record, np.random.default_rng(number))
        assert np.array_equal(still.patches.decode(plain.segments[0]), record.read())
    assert number == 19
