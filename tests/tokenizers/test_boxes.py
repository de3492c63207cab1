"""Boxes as words: bins, texts with boxes there and back, anything at all read without an error, and grammars that leave no fault."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from pydantic import ValidationError

from mmlm.analysis.grounding import iou
from mmlm.base.errors import CheckpointError, DataError
from mmlm.data.config import ScenesConfig
from mmlm.tokenizers import boxes as grounded
from mmlm.tokenizers.boxes import CLOSE, LOC, OBJ, OPEN, TEXT, Grounded, GroundedGrammar, Phrase, PhrasesGrammar, parse, serialize
from mmlm.tokenizers.config import BoxesConfig

BINS = BoxesConfig(num_bins=200).build()


def ids(texts: list[str]) -> list[list[int]]:
    """Characters as tokens."""
    return [[ord(character) for character in text] for text in texts]


def text(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


def flat(pieces) -> list[tuple[str, int]]:
    return [(name, index) for name, found in pieces for index in found]


def read(*tokens, **options) -> Grounded:
    """Tokens: a text, 'open', 'close' or a bin."""
    found: list[tuple[str, int]] = []
    for token in tokens:
        if isinstance(token, int):
            found.append((LOC, token))
        elif token in ("open", "close"):
            found.append((OBJ, OPEN if token == "open" else CLOSE))
        else:
            found += [(TEXT, ord(character)) for character in token]
    return parse(found, text, BINS, **options)


def test_bins_are_the_nearest_ones_or_those_below() -> None:
    nearest, below = BoxesConfig(num_bins=101).build(), BoxesConfig(num_bins=101, rounding="floor").build()
    assert nearest.bins((0.104, 0.0, 0.506, 1.0)) == [10, 0, 51, 100] and below.bins((0.104, 0.0, 0.506, 1.0)) == [10, 0, 50, 100]
    assert nearest.box([10, 0, 51, 100]) == (0.1, 0.0, 0.51, 1.0)
    assert nearest.bins((0.5, 1.0, 0.5, 1.0)) == [50, 99, 51, 100]  # an extent of one bin at least, within the picture
    segment = nearest.encode((0.1, 0.2, 0.3, 0.4))
    assert segment.modality == LOC and nearest.decode(segment) == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize("box", [(0.5, 0, 0.4, 1), (0, 0.9, 1, 0.1), (-0.1, 0, 1, 1), (0, 0, 1.01, 1), (0, 0, float("nan"), 1)])
def test_boxes_that_are_none_are_refused(box) -> None:
    with pytest.raises(DataError, match="0 <= x1 <= x2 <= 1"):
        BINS.bins(box)


def test_bins_of_scenes_lose_little() -> None:
    scenes = ScenesConfig(width=224, height=160, max_things=5, radii=[0.075, 0.115, 0.165]).build()
    found = []
    for number in range(200):
        picture = scenes.record(number)
        found += [iou(share, BINS.box(BINS.bins(share))) for share in (picture.share(thing.box) for thing in picture.things)]
    assert len(found) > 300 and float(np.mean(found)) >= 0.97


def test_what_was_serialized_is_read_again() -> None:
    """2,000 captions of scenes, with exact bins."""
    scenes, count = ScenesConfig(max_things=6, radii=[0.06, 0.09, 0.12]).build(), 0
    for number in range(2000):
        picture = scenes.record(number)
        said = picture.captions[0]
        snapped = tuple(
            Phrase(each.start, each.end, tuple(BINS.box(BINS.bins(picture.share(box))) for box in each.boxes)) for each in said.phrases
        )
        found = parse(flat(serialize(Grounded(said.text, snapped), ids, BINS)), text, BINS)
        assert found == Grounded(said.text, snapped)
        count += len(snapped)
    assert count > 4000


def test_several_boxes_and_phrases_without_words_are_read_again() -> None:
    """Boxes of a phrase from the top down; a box without words behind the text."""
    low, high = BINS.box([10, 150, 30, 190]), BINS.box([100, 20, 120, 60])
    said = Grounded("Two dogs.", (Phrase(4, 8, (low, high)), Phrase(9, 9, (low,))))
    found = parse(flat(serialize(said, ids, BINS)), text, BINS)
    assert found.text == said.text and found.phrases == (Phrase(4, 8, (high, low)), Phrase(9, 9, (low,)))
    assert [code for code, _ in found.faults] == [grounded.EMPTY]


def test_of_phrases_that_overlap_the_longer_one_is_kept() -> None:
    box = (0.0, 0.0, 0.5, 0.5)
    kept, dropped = grounded.without_overlaps([Phrase(0, 3, (box,)), Phrase(2, 9, (box,)), Phrase(9, 12, (box,))])
    assert [(each.start, each.end) for each in kept] == [(2, 9), (9, 12)] and dropped == 1
    with pytest.raises(DataError, match="overlaps another one"):
        serialize(Grounded("a dog and a cat", (Phrase(0, 5, (box,)), Phrase(2, 9, (box,)))), ids, BINS)
    with pytest.raises(DataError, match="leaves the text"):
        serialize(Grounded("a dog", (Phrase(2, 9, (box,)),)), ids, BINS)


BOX = (10, 20, 30, 40)
TRUE = BINS.box(BOX)


@pytest.mark.parametrize(
    ("tokens", "wanted", "phrases", "codes"),
    [
        (["a", "open", " dog", *BOX, "close", "."], "a dog.", [(2, 5, (TRUE,))], []),
        (["a", *BOX, " dog"], "a dog", [], [grounded.LOC_OUTSIDE] * 4),
        (["open", "dog", *BOX, 1, 2, "close"], "dog", [(0, 3, (TRUE,))], [grounded.BOX_COUNT]),
        (["open", "dog", 1, 2, "close"], "dog", [], [grounded.BOX_COUNT]),
        (["open", "dog", "close"], "dog", [], [grounded.BOX_COUNT]),
        (["open", "dog", *BOX, " and"], "dog and", [(0, 3, (TRUE,))], [grounded.TEXT_AFTER_BOX]),
        (["open", "dog", *BOX, "open", "cat", *BOX, "close"], "dogcat", [(0, 3, (TRUE,)), (3, 6, (TRUE,))], [grounded.NESTED]),
        (["open", "dog", *BOX], "dog", [(0, 3, (TRUE,))], [grounded.UNCLOSED]),
        (["dog", "close"], "dog", [], [grounded.STRAY_CLOSE]),
        (["dog", "open", *BOX, "close"], "dog", [(3, 3, (TRUE,))], [grounded.EMPTY]),
        (["open", "dog", 30, 40, 10, 20, "close"], "dog", [(0, 3, (TRUE,))], [grounded.ORDER]),
        (["open", "dog", 10, 20, 10, 40, "close"], "dog", [(0, 3, (BINS.box((10, 20, 10, 40)),))], [grounded.ORDER]),
    ],
)
def test_each_fault_is_mended_and_told(tokens, wanted, phrases, codes) -> None:
    found = read(*tokens)
    assert found.text == wanted and [(each.start, each.end, each.boxes) for each in found.phrases] == phrases
    assert [code for code, _ in found.faults] == codes


def test_the_last_four_bins_are_read_as_the_published_code_does() -> None:
    assert read("open", "dog", 1, 2, *BOX, "close", last_four=True).phrases == (Phrase(0, 3, (TRUE,)),)
    assert parse([("vision", 3)], text, BINS).faults == ((grounded.FOREIGN, 0),)


def random_tokens(rng: np.random.Generator, count: int) -> list[tuple[str, int]]:
    kinds = rng.integers(0, 8, count)
    return [
        (OBJ, int(rng.integers(2))) if kind == 0 else (TEXT, int(rng.integers(32, 126))) if kind < 3 else (LOC, int(rng.integers(200)))
        for kind in kinds.tolist()
    ]


def test_anything_is_read_without_an_error_and_in_linear_time() -> None:
    """20,000 strings of random tokens here (100,000 were tried once); ten times as long takes about ten times as long."""
    rng, faulty = np.random.default_rng(0), 0
    for _ in range(20_000):
        found = parse(random_tokens(rng, int(rng.integers(0, 24))), text, BINS)
        faulty += bool(found.faults)
        assert all(0 <= each.start <= each.end <= len(found.text) and each.boxes for each in found.phrases)
    assert faulty > 15_000
    seconds = []
    for count in (20_000, 200_000):
        tokens = random_tokens(rng, count)
        start = time.process_time()
        parse(tokens, text, BINS)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 40 * seconds[0] + 0.5


SPANS = {TEXT: range(40), OBJ: range(40, 42), LOC: range(50, 70)}
SMALL = BoxesConfig(num_bins=20).build()
END = 45


def written(grammar, rng: np.random.Generator, room: int) -> list[int]:
    """Ids drawn evenly among those allowed, until the end."""
    found: list[int] = []
    while allowed := list(grammar.allowed(found)):
        found.append(allowed[int(rng.integers(len(allowed)))])
    assert found[-1] == END and len(found) <= room
    return found[:-1]


def meaning(found: list[int]) -> Grounded:
    names = [next(name for name, span in SPANS.items() if index in span) for index in found]
    return parse([(name, index - SPANS[name].start) for name, index in zip(names, found, strict=True)], text, SMALL)


@pytest.mark.parametrize("is_one_group", [False, True])
def test_what_a_grammar_allows_has_no_fault_and_ends_in_time(is_one_group) -> None:
    """10,000 random texts of 8 to 40 tokens; without the grammar nearly all are faulty."""
    rng = np.random.default_rng(1)
    groups = 0
    blank = [index for index in SPANS[TEXT] if not text([index]).strip()]  # a group of spaces alone has no words
    for _ in range(10_000 if not is_one_group else 3_000):
        room = int(rng.integers(8, 40))
        found = meaning(written(GroundedGrammar(SPANS, END, room, SMALL, blank=blank, is_one_group=is_one_group), rng, room))
        assert not found.faults
        groups += len(found.phrases)
        if is_one_group:
            assert len(found.phrases) == 1 and found.phrases[0].start == 0 and found.phrases[0].end == len(found.text.rstrip())
    assert groups > 1_000
    free = [meaning([int(each) for each in rng.choice([*range(42), *range(50, 70)], 20)]) for _ in range(500)]
    assert sum(bool(each.faults) for each in free) > 450


def test_a_grammar_with_too_little_room_is_refused() -> None:
    with pytest.raises(DataError, match="too little"):
        GroundedGrammar(SPANS, END, 7, SMALL, is_one_group=True)


def test_phrase_grounding_writes_the_given_text_and_chooses_the_boxes_alone() -> None:
    box = SMALL.box([1, 1, 4, 4])
    said = Grounded("!!###$%", (Phrase(2, 5, (box,)), Phrase(6, 7, (box, box))))
    pieces, rng, several = serialize(said, ids, SMALL), np.random.default_rng(2), 0
    for _ in range(500):
        found = meaning(written(PhrasesGrammar(pieces, SPANS, END, 40, SMALL), rng, 40))
        assert not found.faults and found.text == said.text
        assert [(each.start, each.end) for each in found.phrases] == [(2, 5), (6, 7)]
        several += any(len(each.boxes) > 1 for each in found.phrases)
    assert several > 50
    tight = 7 + 4 + 8 + 1
    assert [len(each.boxes) for each in meaning(written(PhrasesGrammar(pieces, SPANS, END, tight, SMALL), rng, tight)).phrases] == [1, 1]
    with pytest.raises(DataError, match=f"takes {tight}"):
        PhrasesGrammar(pieces, SPANS, END, tight - 1, SMALL)


def test_a_saved_tokenizer_is_of_its_bins(tmp_path) -> None:
    BINS.save(tmp_path)
    assert BoxesConfig(num_bins=200).build().load(tmp_path).sizes == {OBJ: 2, LOC: 200}
    with pytest.raises(CheckpointError, match="is of another config"):
        BoxesConfig(num_bins=100).build().load(tmp_path)
    with pytest.raises(ValidationError):
        BoxesConfig(num_bins=2)


def test_a_box_is_as_sure_as_the_tokens_of_its_group() -> None:
    tokenizer = grounded.BoxTokenizer(BoxesConfig(num_bins=10))
    tokens = [("text", 0), ("obj", 0), ("text", 1), *[("loc", at) for at in (1, 1, 3, 3, 2, 2, 5, 5)], ("obj", 1)]
    logs = [-9.0, -9.0, -0.5, -1.0, -1.0, -1.0, -1.0, -2.0, -2.0, -2.0, -2.5, -9.0]
    (phrase,) = parse(tokens, lambda ids: "x" * len(ids), tokenizer, logs=logs).phrases
    assert phrase.scores == pytest.approx((math.exp(-4.5 / 5), math.exp(-9 / 5)))
    (last,) = parse(tokens, lambda ids: "x" * len(ids), tokenizer, logs=logs, last_four=True).phrases
    assert last.scores == pytest.approx((math.exp(-9 / 5),)) and parse(tokens, str, tokenizer).phrases[0].scores == ()
