"""Boxes in space as words: bins lose at most half a bin, headings go round, texts go there and back, anything is read, grammars hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from mmlm.base.errors import CheckpointError, DataError
from mmlm.tokenizers import boxes as grounded
from mmlm.tokenizers.boxes import CLOSE, LOC, OBJ, OPEN, TEXT, Grounded, GroundedGrammar, Phrase, PhrasesGrammar, parse, serialize
from mmlm.tokenizers.config import Boxes3dConfig

RANGE = {"low": [-20.0, -10.0, -3.0], "high": [20.0, 10.0, 3.0], "largest": [12.0, 4.0, 4.0]}
BINS = Boxes3dConfig(num_bins=80, **RANGE).build()
SPANS = {TEXT: range(40), OBJ: range(40, 42), LOC: range(50, 130)}
END = 45


def ids(texts: list[str]) -> list[list[int]]:
    return [[ord(character) for character in text] for text in texts]


def text(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def random_box(rng: np.random.Generator) -> tuple[float, ...]:
    places = rng.uniform(RANGE["low"], RANGE["high"]).tolist()
    return (*places, *rng.uniform(0.1, RANGE["largest"]).tolist(), float(rng.uniform(-math.pi, math.pi)))


def test_bins_are_those_of_the_range_and_headings_go_round() -> None:
    assert BINS.bins((-20, -10, -3, 0.01, 0.01, 0.01, 0)) == [0, 0, 0, 0, 0, 0, 40]
    assert BINS.bins((0.01, 9.99, 0.01, 50, 2.01, 1.99, math.pi)) == [40, 79, 40, 79, 40, 39, 0]
    assert BINS.bins((0, 0, 0, 1, 1, 1, -math.pi)) == BINS.bins((0, 0, 0, 1, 1, 1, math.pi)) == BINS.bins((0, 0, 0, 1, 1, 1, 3 * math.pi))
    assert BINS.box([0, 79, 40, 0, 40, 79, 0]) == pytest.approx((-19.75, 9.875, 0.0375, 0.075, 2.025, 3.975, -math.pi))
    half = Boxes3dConfig(num_bins=80, turn="half", **RANGE).build()
    assert half.bins((0, 0, 0, 1, 1, 1, 0.3)) == half.bins((0, 0, 0, 1, 1, 1, 0.3 - math.pi))
    assert BINS.bins((0, 0, 0, 1, 1, 1, 0.3)) != BINS.bins((0, 0, 0, 1, 1, 1, 0.3 - math.pi))


def test_no_number_is_off_by_more_than_half_a_bin() -> None:
    rng, steps = np.random.default_rng(0), np.array([40, 20, 6, 12, 4, 4, 2 * math.pi]) / 80
    for _ in range(1000):
        box = random_box(rng)
        off = np.abs(np.array(BINS.box(BINS.bins(box))) - box)
        off[6] = min(off[6], 2 * math.pi - off[6])
        assert (off <= steps / 2 + 1e-9).all()
        assert BINS.bins(BINS.box(BINS.bins(box))) == BINS.bins(box)


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ((21, 0, 0, 1, 1, 1, 0), "lies outside the range"), ((0, 10, 0, 1, 1, 1, 0), "lies outside the range"),
        ((0, 0, 0, 0, 1, 1, 0), "must be above 0"), ((0, 0, 0, 1, 1, 1), "seven finite numbers"),
        ((0, 0, 0, 1, float("nan"), 1, 0), "seven finite numbers"),
    ],
)  # fmt: skip
def test_boxes_that_are_none_are_refused(box, told) -> None:
    with pytest.raises(DataError, match=told):
        BINS.bins(box)


def test_what_was_serialized_is_read_again_the_nearest_box_first() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        boxes = sorted((BINS.box(BINS.bins(random_box(rng))) for _ in range(3)), key=lambda box: math.hypot(box[0], box[1]))
        said = Grounded("A car and two trucks.", (Phrase(2, 5, (boxes[1],)), Phrase(10, 20, (boxes[0], boxes[2]))))
        mixed = Grounded(said.text, (said.phrases[0], Phrase(10, 20, (boxes[2], boxes[0]))))
        tokens = [(name, index) for name, some in serialize(mixed, ids, BINS) for index in some]
        assert parse(tokens, text, BINS) == said


def test_faults_are_those_of_seven_numbers() -> None:
    def read(*tokens) -> Grounded:
        return parse([(LOC, token) if isinstance(token, int) else token for token in tokens], text, BINS)

    start, word, end = (OBJ, OPEN), (TEXT, ord("a")), (OBJ, CLOSE)
    assert read(start, word, *range(7), end) == Grounded("a", (Phrase(0, 1, (BINS.box(range(7)),)),))
    short = read(start, word, *range(6), end)
    assert not short.phrases and [code for code, _ in short.faults] == [grounded.BOX_COUNT]
    more = read(start, word, *range(9), end)
    assert len(more.phrases[0].boxes) == 1 and [code for code, _ in more.faults] == [grounded.BOX_COUNT]
    assert [code for code, _ in read(start, word, *range(7)).faults] == [grounded.UNCLOSED]


def test_anything_is_read_without_an_error() -> None:
    rng = np.random.default_rng(2)
    for _ in range(3000):
        kinds = rng.integers(0, 10, int(rng.integers(0, 40))).tolist()
        tokens = [(OBJ, int(rng.integers(2))) if k == 0 else (TEXT, 97) if k == 1 else (LOC, int(rng.integers(80))) for k in kinds]
        found = parse(tokens, text, BINS)
        assert all(len(box) == 7 for phrase in found.phrases for box in phrase.boxes)


@pytest.mark.parametrize("is_one_group", [False, True])
def test_what_a_grammar_allows_has_no_fault_and_ends_in_time(is_one_group) -> None:
    rng, groups = np.random.default_rng(3), 0
    blank = [index for index in SPANS[TEXT] if not chr(index).strip()]  # a group of spaces alone has no words
    for _ in range(1500):
        room = int(rng.integers(11, 40))
        grammar = GroundedGrammar(SPANS, END, room, BINS, blank=blank, is_one_group=is_one_group)
        groups += len(_read(_written(grammar, rng, room)).phrases)
    assert groups > 300
    with pytest.raises(DataError, match="a group takes 11 with the end"):
        GroundedGrammar(SPANS, END, 10, BINS, is_one_group=True)


def test_phrases_of_a_given_text_get_seven_bins_each() -> None:
    box = BINS.box([1] * 7)
    said = Grounded("!!###$%", (Phrase(2, 5, (box,)), Phrase(6, 7, (box,))))
    pieces, rng = serialize(said, ids, BINS), np.random.default_rng(4)
    for _ in range(200):
        found = _read(_written(PhrasesGrammar(pieces, SPANS, END, 60, BINS), rng, 60))
        assert found.text == said.text and [(each.start, each.end) for each in found.phrases] == [(2, 5), (6, 7)]


def _written(grammar, rng: np.random.Generator, room: int) -> list[int]:
    found: list[int] = []
    while allowed := list(grammar.allowed(found)):
        found.append(allowed[int(rng.integers(len(allowed)))])
    assert found[-1] == END and len(found) <= room
    return found[:-1]


def _read(found: list[int]) -> Grounded:
    names = [next(name for name, span in SPANS.items() if index in span) for index in found]
    said = parse([(name, index - SPANS[name].start) for name, index in zip(names, found, strict=True)], text, BINS)
    assert not said.faults
    return said


def test_a_saved_tokenizer_is_of_its_range(tmp_path) -> None:
    BINS.save(tmp_path)
    assert Boxes3dConfig(num_bins=80, **RANGE).build().load(tmp_path).sizes == {OBJ: 2, LOC: 80}
    with pytest.raises(CheckpointError, match="is of another config"):
        Boxes3dConfig(num_bins=80).build().load(tmp_path)
    with pytest.raises(ValidationError, match="must lie below high"):
        Boxes3dConfig(low=[0, 0, 3], high=[1, 1, 3])
