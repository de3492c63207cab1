"""Other codecs of boxes: whole pixels are exact, errors have a bound, and all is serialized, read and constrained as other bins are."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from mmlm.analysis.grounding import iou
from mmlm.base.errors import DataError
from mmlm.tokenizers import boxes as grounded
from mmlm.tokenizers.boxes import CLOSE, LOC, OBJ, OPEN, TEXT, Grounded, GroundedGrammar, Phrase, parse, serialize
from mmlm.tokenizers.config import AbsoluteBoxesConfig, ResidualBoxesConfig

CODECS = {"absolute": AbsoluteBoxesConfig(num_bins=200).build(), "residual": ResidualBoxesConfig(num_bins=200, grid=10).build()}


def drawn(count: int) -> np.ndarray:
    """Boxes in shares [n, 4], among them some that touch the edges, and some without extent."""
    box_n4 = np.sort(np.random.default_rng(0).random((count, 2, 2)), axis=1).reshape(-1, 4)
    box_n4[::10, :2], box_n4[5::10, 2:] = 0, 1
    box_n4[7::20, 2:] = box_n4[7::20, :2]
    return box_n4


def ids(texts: list[str]) -> list[list[int]]:
    return [[ord(character) for character in text] for text in texts]


@pytest.mark.parametrize(("side", "count"), [(24, 300), (49, 1225)])
def test_every_box_of_whole_pixels_is_exact_on_its_canvas(side: int, count: int) -> None:
    """All of a side, one pixel alone included; 1/49 of 49 is less than 1 in floating point."""
    canvas = AbsoluteBoxesConfig(num_bins=side).build()
    spans = [(low, high) for low in range(side) for high in range(low + 1, side + 1)]
    for low, high in spans:
        for other in ((0, side), (low, high), (side - 1, side)):
            share = (low / side, other[0] / side, high / side, other[1] / side)
            assert canvas.bins(share) == [low, other[0], high - 1, other[1] - 1] and canvas.box(canvas.bins(share)) == share
    assert len(spans) == count


def test_what_is_no_whole_pixel_is_covered_and_no_more() -> None:
    canvas = CODECS["absolute"]
    for box in drawn(2000):
        found = np.array(canvas.box(canvas.bins(box)))
        grown = (box - found) * [1, 1, -1, -1]
        assert grown.min() > -1e-8 and grown.max() < 1 / 200 + 1e-8


def test_offsets_are_as_exact_as_their_cell_and_sizes_as_a_bin() -> None:
    codec, half = CODECS["residual"], 0.5 / 199
    for x1, y1, x2, y2 in drawn(2000):
        point, *rest = codec.bins((x1, y1, x2, y2))
        assert point == min(int((y1 + y2) * 5), 9) * 10 + min(int((x1 + x2) * 5), 9) and all(0 <= each < 200 for each in rest)
        dx, dy, wide, high = (each / 199 for each in rest)
        for middle, cell, offset in (((x1 + x2) / 2, point % 10, dx), ((y1 + y2) / 2, point // 10, dy)):
            assert abs((cell + offset) / 10 - middle) <= half / 10 + 1e-9
        assert abs(wide - max(x2 - x1, 1 / 199)) <= half + 1e-9 and abs(high - max(y2 - y1, 1 / 199)) <= half + 1e-9


@pytest.mark.parametrize("name", CODECS)
def test_little_is_lost_and_bins_of_bins_are_the_same(name) -> None:
    codec, found = CODECS[name], []
    for box in drawn(1000):
        if min(box[2] - box[0], box[3] - box[1]) > 0.1:
            found.append(iou(tuple(box), codec.box(codec.bins(box))))
            if name == "absolute":
                assert codec.bins(codec.box(codec.bins(box))) == codec.bins(box)
    assert len(found) > 400 and np.mean(found) > 0.97
    for wrong in ((0.5, 0, 0.4, 1), (0, 0, 1.01, 1), (0, 0, float("nan"), 1)):
        with pytest.raises(DataError, match="0 <= x1 <= x2 <= 1"):
            codec.bins(wrong)


@pytest.mark.parametrize("name", CODECS)
def test_texts_with_these_boxes_are_read_again(name) -> None:
    codec = CODECS[name]
    for box, other in zip(drawn(300), drawn(300)[::-1], strict=True):
        true = sorted((codec.box(codec.bins(each)) for each in (box, other)), key=codec.rank)
        said = Grounded("two dogs here", (Phrase(4, 8, tuple(map(tuple, (box, other)))),))
        tokens = [(kind, index) for kind, found in serialize(said, ids, codec) for index in found]
        found = parse(tokens, lambda some: "".join(map(chr, some)), codec)
        assert found.text == said.text and not found.faults and sorted(found.phrases[0].boxes) == sorted(true)


def test_faults_are_mended_and_told() -> None:
    def read(codec, *bins: int) -> Grounded:
        tokens = [(OBJ, OPEN), (TEXT, ord("a")), *((LOC, each) for each in bins), (OBJ, CLOSE)]
        return parse(tokens, lambda some: "".join(map(chr, some)), codec)

    for codec, bins, mended in (
        (CODECS["absolute"], (30, 5, 20, 9), (20, 5, 30, 9)), (CODECS["residual"], (150, 9, 9, 9, 9), (99, 9, 9, 9, 9)),
        (CODECS["residual"], (50, 9, 9, 0, 9), (50, 9, 9, 0, 9)),
    ):  # fmt: skip
        found = read(codec, *bins)
        assert [code for code, _ in found.faults] == [grounded.ORDER] and found.phrases[0].boxes == (codec.box(mended),)
    assert not read(CODECS["absolute"], 7, 7, 7, 7).faults
    assert [code for code, _ in read(CODECS["residual"], 1, 2, 3, 4).faults] == [grounded.BOX_COUNT]


@pytest.mark.parametrize("codec", [AbsoluteBoxesConfig(num_bins=20).build(), ResidualBoxesConfig(num_bins=20, grid=4).build()])
def test_what_is_held_to_the_grammar_has_no_fault(codec) -> None:
    spans, end, rng, boxes = {TEXT: range(40), OBJ: range(40, 42), LOC: range(50, 70)}, 45, np.random.default_rng(0), 0
    for _ in range(500):
        grammar, written = GroundedGrammar(spans, end, 40, codec), list[int]()
        while allowed := list(grammar.allowed(written)):
            written.append(allowed[int(rng.integers(len(allowed)))])
        assert written[-1] == end and len(written) <= 40
        name_of = {index: (name, index - span.start) for name, span in spans.items() for index in span}
        found = parse([name_of[index] for index in written[:-1]], lambda some: "a" * len(some), codec)
        assert not found.faults
        boxes += sum(len(each.boxes) for each in found.phrases)
    assert boxes > 100


def test_a_grid_has_no_more_cells_than_bins() -> None:
    with pytest.raises(ValidationError, match="has 25 cells"):
        ResidualBoxesConfig(num_bins=24, grid=5)
