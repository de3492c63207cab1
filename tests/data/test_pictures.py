"""Pictures from files: every kind of file and damage, boxes that turn with their picture, lists and annotations with their faults told."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmlm.analysis.grounding import iou
from mmlm.base.errors import DataError
from mmlm.data import picture_files, picture_sources
from mmlm.data.config import CocoConfig, PictureFolderConfig, PictureManifestConfig, YoloConfig
from mmlm.data.picture_files import ORIENTATION, picture_facts, read_picture
from mmlm.data.picture_sources import listing
from mmlm.data.pictures import Thing, random_part, seen_in
from mmlm.tokenizers.config import ImagePatchesConfig


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    """What is remembered of files stays in the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def drawing(height: int = 48, width: int = 80) -> np.ndarray:
    """Light, with a dark box at [10, 20, 30, 44]."""
    pixels = np.full((height, width, 3), 230, np.uint8)
    pixels[20:44, 10:30] = (200, 20, 20)
    return pixels


BOX = [10, 20, 30, 44]


def dark(pixels_yxc: np.ndarray) -> tuple[float, float, float, float]:
    y_n, x_n = np.nonzero(pixels_yxc[:, :, 1] < 120)
    return float(x_n.min()), float(y_n.min()), float(x_n.max() + 1), float(y_n.max() + 1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tif", "a.ppm"])
def test_formats_are_read_alike(name, tmp_path) -> None:
    Image.fromarray(drawing()).save(tmp_path / name, quality=95)
    found = read_picture(tmp_path / name)
    assert found.dtype == np.uint8 and found.shape == (48, 80, 3) and np.abs(found.astype(int) - drawing()).mean() < 6


def test_modes_become_eight_bit_colour(tmp_path) -> None:
    image, gray = Image.fromarray(drawing()), np.linspace(0, 65535, 48 * 80).reshape(48, 80)
    made = {
        "gray": image.convert("L"), "palette": image.convert("P"), "cmyk": image.convert("CMYK"), "bit": image.convert("1"),
        "deep": Image.fromarray(gray.astype(np.uint16)), "float": Image.fromarray((gray / 65535 - 0.5).astype(np.float32)),
    }  # fmt: skip
    for name, each in made.items():
        each.save(tmp_path / f"{name}.tif")
        found = read_picture(tmp_path / f"{name}.tif")
        assert found.shape == (48, 80, 3) and found.dtype == np.uint8, name
        if name in ("deep", "float"):
            assert found.min() == 0 and found.max() == 255 and abs(int(found[24, 0, 0]) - 128) <= 1, name
        elif name != "bit":
            assert dark(found) == tuple(BOX) or name == "gray", name
    Image.fromarray(np.full((4, 4), -3.0, np.float32)).save(tmp_path / "even.tif")
    assert not read_picture(tmp_path / "even.tif").any()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "none.tif")
    with pytest.raises(DataError, match=r"none.tif: cannot be read: it holds a value that is no finite number\.$"):
        read_picture(tmp_path / "none.tif")


def test_what_is_transparent_lies_on_white_and_of_moving_pictures_the_first_is_read(tmp_path) -> None:
    clear = np.dstack([drawing(), np.full((48, 80), 255, np.uint8)])
    clear[:10, :, 3] = 0
    Image.fromarray(clear).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png")[:10] == 255).all() and (read_picture(tmp_path / "a.png")[10:] == drawing()[10:]).all()
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "b.gif").max() <= 12


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_upright_and_boxes_turn_with_them(orientation, name, tmp_path) -> None:
    """Of the stored file, as annotation tools that ignore EXIF give them."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(drawing()).save(tmp_path / name, exif=exif)
    facts, shown = picture_facts(tmp_path / name), read_picture(tmp_path / name)
    assert facts.upright == (shown.shape[1], shown.shape[0]) and facts.turned(tuple(BOX)) == dark(shown)


def cut_short() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[:900]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"), (b"hello, I am no picture", "no picture of a known format"), (cut_short(), "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be read|known format"),
    ],
)  # fmt: skip
def test_damaged_files_are_told_by_name(content, message, tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=f"a.jpg: .*({message})"):
        read_picture(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="No such file"):
        read_picture(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match="directory"):
        read_picture(tmp_path)


def test_huge_ones_are_refused_by_their_header_and_tiny_ones_are_read(tmp_path, monkeypatch) -> None:
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "one.png")
    assert read_picture(tmp_path / "one.png").tolist() == [[[9, 8, 7]]]
    Image.new("L", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 80_000)
    with pytest.raises(DataError) as told:
        read_picture(tmp_path / "large.png")
    assert str(told.value) == f"{tmp_path / 'large.png'}: has 300 x 300 pixels; at most 80,000 are read."


def test_jpegs_are_decoded_no_larger_than_needed(tmp_path) -> None:
    Image.fromarray(np.repeat(np.repeat(drawing(), 10, 0), 10, 1)).save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").shape == (480, 800, 3)
    small = read_picture(tmp_path / "a.jpg", longest=150)
    assert small.shape == (120, 200, 3) and iou(tuple(4 * v for v in dark(small)), tuple(10 * v for v in BOX)) > 0.9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_jpegs_of_reduced_size_keep_boxes_of_the_stored_file(orientation, tmp_path) -> None:
    """Stored large and decoded small: as shares of the sides a box lies where it lies in the whole picture."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.repeat(np.repeat(drawing(), 10, 0), 10, 1)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "a.jpg", "things": [{"label": "x", "box": [10 * v for v in BOX]}]}))
    config = PictureManifestConfig(path=str(tmp_path / "list.jsonl"), hold_out=0, longest=150)
    (found,) = config.build().everything()
    pixels = found.read()
    assert max(pixels.shape) == 200 and (found.width > found.height) == (pixels.shape[1] > pixels.shape[0]) == (orientation < 5)
    seen = dark(pixels)
    shares = (seen[0] / pixels.shape[1], seen[1] / pixels.shape[0], seen[2] / pixels.shape[1], seen[3] / pixels.shape[0])
    assert np.abs(np.subtract(shares, found.share(found.things[0].box))).max() < 0.011


def listed(folder: Path, *lines: dict | str) -> PictureManifestConfig:
    Image.fromarray(drawing()).save(folder / "a.png")
    path = folder / "list.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return PictureManifestConfig(path=str(path), hold_out=0)


GOOD = {
    "image": "a.png", "caption": "A red box.", "phrases": [{"span": [2, 9], "boxes": [BOX]}],
    "expressions": [{"text": "the box", "box": BOX}], "questions": [{"question": "What?", "answer": "a box", "kind": "what"}],
    "things": [{"label": "box", "box": BOX}],
}  # fmt: skip


def test_a_list_gives_all_that_its_lines_say(tmp_path) -> None:
    (found,) = listed(tmp_path, GOOD, "").build().everything()
    assert (found.id, found.width, found.height) == ("a.png", 80, 48) and found.where.endswith("list.jsonl, line 1")
    (caption,) = found.captions
    assert caption.words(caption.phrases[0]) == "red box" and caption.phrases[0].boxes == (tuple(map(float, BOX)),)
    assert found.expressions[0].text == "the box" and found.questions[0].kind == "what" and found.things[0].label == "box"
    assert np.array_equal(found.read(), drawing()) and found.share(found.things[0].box) == (10 / 80, 20 / 48, 30 / 80, 44 / 48)


def test_phrases_without_a_box_are_words_alone_and_captions_of_spaces_are_none(tmp_path) -> None:
    phrases = [{"span": [0, 1], "boxes": []}, *GOOD["phrases"]]
    one, other = listed(tmp_path, changed(phrases=phrases), changed(caption="  ", phrases=[])).build().everything()
    assert [one.captions[0].words(each) for each in one.captions[0].phrases] == ["red box"] and not other.captions


def test_boxes_of_a_list_turn_with_a_picture_that_is_shown_turned(tmp_path) -> None:
    config, exif = listed(tmp_path, GOOD), Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(drawing()).save(tmp_path / "a.png", exif=exif)
    (found,) = config.build().everything()
    assert (found.width, found.height) == (48, 80) == found.read().shape[1::-1] and found.things[0].box == dark(found.read())
    assert found.captions[0].phrases[0].boxes[0] == found.expressions[0].box == found.things[0].box


def changed(**keys) -> dict:
    return {**GOOD, **keys}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"), ("[1]", "must be an object"), ({"img": "a.png"}, "has no 'image'|unknown key"),
        (changed(image="b.png"), "no such file"), (changed(expression=[]), "unknown key 'expression'. Did you mean 'expressions'?"),
        (changed(phrases=[{"span": [2, 99], "boxes": [BOX]}]), r"span \[2, 99\] does not fit"),
        (changed(phrases=[{"span": [5, 2], "boxes": [BOX]}]), r"span \[5, 2\] does not fit"),
        (changed(phrases=[{"boxes": [BOX]}]), "not as a line must be"),
        (changed(things=[{"label": "x", "box": [30, 44, 10, 20]}]), "corners are"),
        (changed(things=[{"label": "x", "box": [10, 20, 30, 90]}]), "leaves the picture of 80 x 48"),
        (changed(things=[{"label": "x", "box": [0.1, 0.2, 0.5, 0.6]}]), "seems to be shares"),
        (changed(things=[{"label": "x", "box": [1, 2, 3]}]), "a box is four numbers"),
        (changed(things=[{"label": "x", "box": [1, 2, float("nan"), 9]}]), "a box is four numbers"),
        (changed(expressions=[{"text": " ", "box": BOX}]), "must be a text"),
    ],
)  # fmt: skip
def test_faults_of_a_line_are_told_with_it_and_left_out_if_asked(line, message, tmp_path, caplog) -> None:
    config = listed(tmp_path, GOOD, line)
    with pytest.raises(DataError, match=f"1 of 2 pictures cannot be used(.|\n)*line 2: (.|\n)*({message})"):
        config.build()
    assert len(config.model_copy(update={"on_bad": "skip"}).build().everything()) == 1
    assert "line 2" in caplog.text


def test_files_are_decoded_the_first_time_only_and_told_again_where_they_changed(tmp_path, monkeypatch) -> None:
    """Where a file has changed it is decoded again; one that is bad is told each time."""
    read, plain = list[str](), picture_sources.read_picture
    monkeypatch.setattr(picture_sources, "read_picture", lambda path, *more: read.append(path.name) or plain(path, *more))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    noise.save(tmp_path / "b.jpg")
    config = listed(tmp_path, GOOD, changed(image="b.jpg"))
    first = config.build().everything()
    assert sorted(read) == ["a.png", "b.jpg"]
    again = config.build().everything()
    assert len(read) == 2 and [each.things for each in again] == [each.things for each in first]
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-900])
    for _ in range(2):
        with pytest.raises(DataError, match=r"line 2: .*b.jpg: cannot be read"):
            config.build()
    assert read[2:] == ["b.jpg", "b.jpg"]


def test_a_file_that_is_damaged_after_the_start_is_told_with_its_line(tmp_path) -> None:
    (found,) = listed(tmp_path, GOOD).build().everything()
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"list.jsonl, line 1: .*a.png: cannot be read"):
        found.read()


@pytest.mark.parametrize("content", [b"", b"hello, I am no picture", b"\x89PNG\r\n\x1a\n" + bytes(40), None])
def test_damaged_and_huge_files_are_told_with_their_line(content, tmp_path, monkeypatch) -> None:
    config = listed(tmp_path, GOOD, changed(image="b.png"))
    if content is None:
        Image.new("L", (300, 300)).save(tmp_path / "b.png")
        monkeypatch.setattr(picture_files, "MAX_PIXELS", 80_000)
    else:
        (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"list.jsonl, line 2: .*b.png: (is empty|is no picture|cannot be read|has 300 x 300 pixels)"):
        config.build()


def test_pictures_of_every_kind_are_listed_with_their_boxes_and_read_as_patches(tmp_path) -> None:
    """Gray, CMYK, 16 bits, moving, of one pixel: none stops a list, and each becomes patches."""
    image = Image.fromarray(drawing())
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 80).reshape(48, 80).astype(np.uint16))
    image.convert("L").save(tmp_path / "gray.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    deep.save(tmp_path / "deep.png")
    image.save(tmp_path / "moving.gif", save_all=True, append_images=[image.convert("L")])
    names = ["gray.png", "cmyk.jpg", "deep.png", "moving.gif"]
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    lines = [{"image": name, "things": [{"label": "box", "box": BOX}]} for name in names]
    found = listed(tmp_path, *lines, {"image": "one.png", "things": [{"label": "box", "box": [0, 0, 1, 1]}]}).build().everything()
    assert [each.share(each.things[0].box) for each in found] == [(10 / 80, 20 / 48, 30 / 80, 44 / 48)] * 4 + [(0, 0, 1, 1)]
    patches = ImagePatchesConfig(patch=8, max_side=64).build()
    assert [len(patches.encode(each.read())) for each in found] == [5 * 8 + 5 + 1] * 4 + [3]


def test_boxes_a_pixel_outside_are_cut_and_ids_are_told_apart(tmp_path) -> None:
    (found,) = listed(tmp_path, changed(things=[{"label": "x", "box": [-0.6, 0, 80.5, 48]}])).build().everything()
    assert found.things[0].box == (0, 0, 80, 48)
    twice = listed(tmp_path, GOOD, changed(caption="Another box.", phrases=[])).build().everything()
    assert [each.id for each in twice] == ["a.png", "a.png (line 2)"]
    with pytest.raises(DataError, match="has the id 'x' of line 1"):
        listed(tmp_path, changed(id="x"), changed(id="x")).build()


def test_folders_give_captions_beside_their_pictures_or_by_their_names(tmp_path) -> None:
    for place in ("cats/a.png", "big_dogs/b.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.fromarray(drawing()).save(tmp_path / place)
    by_name = PictureFolderConfig(path=str(tmp_path), captions="folders", hold_out=0).build().everything()
    assert [each.captions[0].text for each in by_name] == ["big dogs", "cats"]
    with pytest.raises(DataError, match="2 of 2 pictures cannot be used(.|\n)*has no caption: b.txt"):
        PictureFolderConfig(path=str(tmp_path)).build()
    (tmp_path / "cats" / "a.txt").write_text("a  cat\n")
    (tmp_path / "big_dogs" / "b.txt").write_text("a dog")
    assert [each.captions[0].text for each in PictureFolderConfig(path=str(tmp_path), hold_out=0).build().everything()] == [
        "a dog",
        "a cat",
    ]


def test_annotations_of_coco_and_yolo(tmp_path, caplog) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.fromarray(drawing()).save(tmp_path / "images" / "a.png")
    coco = {
        "images": [{"id": 7, "file_name": "a.png"}], "categories": [{"id": 3, "name": "red_box"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 20, 20, 24]}],
    }  # fmt: skip
    for more in ({"bbox": [0, 0, 40, 40], "iscrowd": 1}, {"bbox": [9.98, 18.5, 15.5, 0.0], "iscrowd": 0}):
        coco["annotations"].append({"image_id": 7, "category_id": 3, **more})
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    said = [{"image_id": 7, "caption": text} for text in (" A  box. ", "It is red.", "A box.", " ")]
    (tmp_path / "captions.json").write_text(json.dumps({**coco, "annotations": said}))
    files = [str(tmp_path / name) for name in ("instances.json", "captions.json")]
    (both,) = CocoConfig(path=str(tmp_path / "images"), annotations=files, hold_out=0).build().everything()
    assert [each.text for each in both.captions] == ["A box.", "It is red."] and "1 boxes without extent are left out" in caplog.text
    assert both.things == (Thing("red box", tuple(map(float, BOX))),)  # neither that of a crowd nor the one without extent
    (bare,) = CocoConfig(path=str(tmp_path / "images"), annotations=files[:1], hold_out=0, list_things=True).build().everything()
    assert bare.captions[0].text == "red box" and bare.captions[0].phrases[0].boxes == (tuple(map(float, BOX)),)
    (tmp_path / "labels" / "a.txt").write_text("1 0.25 0.6666667 0.25 0.5\n")
    (yolo,) = YoloConfig(path=str(tmp_path / "images"), names=["ball", "box"], hold_out=0).build().everything()
    assert yolo.things[0].label == "box" and np.allclose(yolo.things[0].box, BOX, atol=1e-4)
    for line, message in (("2 0.5 0.5 0.1 0.1", "is not: class"), ("0 40 20 10 10", "are shares"), ("0 0.5", "is not: class")):
        (tmp_path / "labels" / "a.txt").write_text(line)
        with pytest.raises(DataError, match=message):
            YoloConfig(path=str(tmp_path / "images"), names=["ball", "box"]).build()
    (tmp_path / "instances.json").write_text("{}")
    with pytest.raises(DataError, match="not as COCO's annotations are"):
        CocoConfig(path=str(tmp_path / "images"), annotations=files[:1]).build()


def test_a_picture_that_was_looked_at_and_shows_nothing_is_told_from_one_that_nobody_looked_at(tmp_path) -> None:
    lines = [{"image": "a.png", "id": name, **more} for name, more in (("none", {"things": []}), ("unknown", {"caption": "A box."}))]
    assert [(each.things, each.is_listed) for each in listed(tmp_path, *lines).build().everything()] == [((), True), ((), False)]
    for name in "bcd":
        Image.fromarray(drawing()).save(tmp_path / f"{name}.png")
    images = [{"id": name, "file_name": f"{name}.png", **({"neg_category_ids": [3]} if name == "d" else {})} for name in "abcd"]
    boxes = [{"image_id": "a", "bbox": [10, 20, 20, 24]}, {"image_id": "b", "bbox": [0, 0, 40, 40], "iscrowd": 1}]
    coco = {"images": images, "categories": [{"id": 3, "name": "box"}], "annotations": [{"category_id": 3, **each} for each in boxes]}
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    found = CocoConfig(path=str(tmp_path), annotations=[str(tmp_path / "instances.json")], hold_out=0).build().everything()
    assert {each.id[0]: each.is_listed for each in found} == {"a": True, "b": False, "c": True, "d": False}
    (tmp_path / "a.txt").write_text("")
    yolo = YoloConfig(path=str(tmp_path), names=["box"], hold_out=0).build().everything()
    assert len(yolo) == 4 and all(each.is_listed and not each.things for each in yolo)


def test_things_are_listed_from_the_top_each_kind_once() -> None:
    said = listing([Thing("b", (0, 30, 5, 40)), Thing("a", (0, 10, 5, 20)), Thing("b", (9, 0, 12, 5))])
    assert said.text == "b, a" and [each.boxes for each in said.phrases] == [((9, 0, 12, 5), (0, 30, 5, 40)), ((0, 10, 5, 20),)]


def test_the_split_follows_from_the_id_alone(tmp_path) -> None:
    lines = []
    for number in range(40):
        Image.fromarray(drawing()).save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "caption": "A box."})
    source = listed(tmp_path, *lines).model_copy(update={"hold_out": 0.2, "validate_share": 0.2}).build()
    parts = [{each.id for each in part.everything()} for part in (source, source.kept_back(), source.held_out_records())]
    assert sum(map(len, parts)) == 40 and all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2])
    fewer = listed(tmp_path, *lines[10:]).model_copy(update={"hold_out": 0.2, "validate_share": 0.2}).build()
    assert {each.id for each in fewer.held_out_records().everything()} <= parts[2]
    assert source.draw(np.random.default_rng(0), None).id in parts[0]


def test_a_random_part_keeps_the_shape_of_its_picture_and_enough_of_it() -> None:
    parts = [random_part(40, 60, 0.5, np.random.default_rng(seed)) for seed in range(200)]
    areas = [(right - left) * (bottom - top) / 2400 for left, top, right, bottom in parts]
    assert all(min(left, top) >= 0 and right <= 60 and bottom <= 40 for left, top, right, bottom in parts)
    assert all(abs((right - left) / (bottom - top) - 1.5) < 0.06 for left, top, right, bottom in parts)
    assert min(areas) > 0.48 and max(areas) > 0.95 and np.mean(areas) == pytest.approx(0.75, abs=0.03)
    for starts, ends, most in ((0, 2, 60), (1, 3, 40)):  # it lies at either edge, and between them
        assert {part[starts] == 0 for part in parts} == {part[ends] == most for part in parts} == {False, True}


def test_things_are_seen_in_a_part_where_half_of_them_is() -> None:
    things = [
        Thing("whole", (0.375, 0.375, 0.5, 0.625)),
        Thing("half", (0.125, 0.5, 0.375, 0.625)),
        Thing("less", (0.12, 0.5, 0.375, 0.625)),
    ]
    things += [Thing("outside", (0.8, 0.8, 0.9, 0.9)), Thing("beside", (0.75, 0.3, 0.9, 0.4)), Thing("flat", (0.3, 0.3, 0.3, 0.5))]
    found = seen_in(things, (0.25, 0.25, 0.75, 0.75))
    assert [each.label for each in found] == ["whole", "half"]
    assert [each.box for each in found] == [(0.25, 0.25, 0.5, 0.75), (0, 0.5, 0.25, 0.75)]
    assert seen_in(things, (0.0, 0.0, 1.0, 1.0)) == things[:-1]
