"""Cut-outs on plain grounds: boxes are exact, words fit one thing alone, test things are never seen, what is missing is told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmlm.base.errors import DataError, RecipeError
from mmlm.data import tuxpaint
from mmlm.data.config import TuxPaintConfig
from mmlm.data.pasted import HALF, pasted
from mmlm.data.pasted_texts import programs
from mmlm.data.tuxpaint import read_stamps, short_name
from mmlm.recipe import Recipe


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    """60 stamps in the form of the package, and some that are left out."""
    rng = np.random.default_rng(0)
    for number in range(60):
        folder = tmp_path / ("animals", "food", "vehicles")[number % 3] / "kinds"
        folder.mkdir(parents=True, exist_ok=True)
        high, wide = rng.integers(30, 90, 2)
        rgba = np.zeros((high, wide, 4), np.uint8)
        y, x = np.mgrid[-1 : 1 : high * 1j, -1 : 1 : wide * 1j]
        rgba[..., 3] = 255 * (x**2 + y**2 < 0.8)
        rgba[high // 2, :, 3] = 255  # a line that is too thin to be seen when it is shrunk
        rgba[..., :3] = rng.integers(0, 256, 3)
        Image.fromarray(rgba).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"A thing{number}.\nfr.utf8=Une chose.\n", encoding="utf-8")
    (folder / "drawn.svg").write_text("<svg/>")
    Image.new("RGBA", (4, 4)).save(folder / "nothing.png")
    (folder / "1_desc.ogg").write_bytes(b"")
    monkeypatch.setattr(tuxpaint, "STAMPS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A red apple.", ("a", "red apple")), ("A peacock (a male peafowl).", ("a", "peacock")), ("An owl.", ("an", "owl")),
        ("The moon!", ("", "moon")), ("Tux\u2014the Linux mascot!", ("", "tux")),
        ("A spiny lobster, from the islands.", ("a", "spiny lobster")),
        ("Grapes.", ("", "grapes")), ("A hoverfly resembles a honeybee drone.", None), ("", None), ("123", None),
        ("A t-shirt.", ("a", "t-shirt")),
    ],
)  # fmt: skip
def test_names_are_short(text, wanted) -> None:
    assert short_name(text) == wanted


def test_stamps_are_read_and_the_others_are_counted(stamps) -> None:
    found, left_out = read_stamps()
    assert len(found) == 60 and left_out == {"drawings (.svg)": 1, "without a caption": 1}
    assert {each.kind for each in found} == {"animal", "food", "vehicle"} and found[0].caption.startswith("A thing")


def test_boxes_are_those_of_the_pixels(stamps) -> None:
    source = TuxPaintConfig(count=40).build()
    for number in range(40):
        picture, scene = source.with_scene(number)
        pixels = picture.read()
        assert pixels.shape == (96, 96, 3) and np.array_equal(pixels, source.record(number).read())
        for item in scene.items:
            cover = np.zeros((96, 96), bool)
            alpha = np.asarray(item.patch)[..., 3]
            cover[item.top : item.top + alpha.shape[0], item.left : item.left + alpha.shape[1]] = alpha > HALF
            y, x = np.nonzero(cover)
            assert item.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)
            others = [each for each in scene.items if each is not item]
            changed = np.abs(pixels.astype(int) - pasted([0, number, 1], others, 96, 96)).sum(-1) > 0
            y, x = np.nonzero(changed)
            assert len(y) == 0 or (x.min() >= item.left and x.max() < item.left + alpha.shape[1] and changed[cover].mean() > 0.9)
        assert all(0 <= box[0] < box[2] <= 96 and 0 <= box[1] < box[3] <= 96 for box in (each.box for each in picture.things))


@pytest.mark.parametrize("names", ["caption", "class", "both"])
def test_phrases_name_their_things_and_expressions_mean_one(stamps, names) -> None:
    source = TuxPaintConfig(count=80, names=names).build()
    said = 0
    for number in range(80):
        picture, scene = source.with_scene(number)
        by_box = {item.box: (item.name, item.kind) for item in scene.items}
        for caption in picture.captions:
            assert len(caption.phrases) == len(scene.items)
            for phrase in caption.phrases:
                name = caption.words(phrase).lower()
                assert name in by_box[phrase.boxes[0]] and (
                    names == "both" or (name in {"animal", "food", "vehicle"}) == (names == "class")
                )
        for each in picture.expressions:
            places = [place for place, item in enumerate(scene.items) if item.box == each.box]
            keys = {"caption": ["name"], "class": ["kind"], "both": ["name", "kind"]}[names]
            fitting = {text: program for place in places for key in keys for text, program in programs(scene, place, key)}
            assert scene.one(fitting[each.text]) in places
            said += 1
    assert said > 60


def test_things_of_the_test_are_never_trained_on(stamps) -> None:
    parts = {split: {each.name for each in TuxPaintConfig(split=split).build().stamps} for split in ("train", "validate", "test")}
    assert sum(map(len, parts.values())) == 60 and min(map(len, parts.values())) > 1
    assert not parts["train"] & parts["test"] and not parts["train"] & parts["validate"] and not parts["test"] & parts["validate"]
    only = TuxPaintConfig(classes=["food"]).build().stamps
    assert {each.folder for each in only} == {"food"}


def test_what_is_missing_or_damaged_is_told(stamps, monkeypatch, tmp_path) -> None:
    source = TuxPaintConfig(min_things=9, max_things=9).build()
    source.stamps[0].path.write_bytes(b"no picture")
    source.stamps = source.stamps[:1]
    with pytest.raises(DataError, match=r"\.png: cannot be read"):
        source.record(0)
    with pytest.raises(DataError, match="no stamp of plants"):
        TuxPaintConfig(classes=["plants"]).build()
    monkeypatch.setattr(tuxpaint, "STAMPS", tmp_path / "nowhere")
    with pytest.raises(DataError, match="apt-get install tuxpaint-stamps-default"):
        TuxPaintConfig().build()
    with pytest.raises(RecipeError, match="sizes"):
        Recipe.read("grounded_captioning/tuxpaint", ["data.train.0.sizes=[0.9, 0.1]"])


@pytest.mark.skipif(not tuxpaint.STAMPS.is_dir(), reason=f"needs: {tuxpaint.INSTALL}")
def test_the_real_stamps_are_many() -> None:
    found, left_out = read_stamps()
    assert len(found) > 600 and left_out["drawings (.svg)"] > 100 and sum(each.spoken is not None for each in found) > 40
    assert {"frog", "red apple"} & {each.name for each in found}
    pictures = TuxPaintConfig(count=6, split="test").build().everything()
    assert all(each.read().std() > 1 and each.captions for each in pictures)
