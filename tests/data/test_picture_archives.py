"""Flickr30k Entities, Visual Genome and lists of boxes, on small files in their form: what they say, and what is told of bad ones."""

from __future__ import annotations

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from mmlm.base.errors import DataError
from mmlm.data.boxed_lists import write_pictures
from mmlm.data.config import Flickr30kConfig, PictureManifestConfig, VisualGenomeConfig


def save(path, width=80, height=60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(path)


XML = """<annotation><filename>7.jpg</filename><size><width>80</width><height>60</height><depth>3</depth></size>
<object><name>1</name><bndbox><xmin>10</xmin><ymin>5</ymin><xmax>30</xmax><ymax>50</ymax></bndbox></object>
<object><name>1</name><name>2</name><bndbox><xmin>40</xmin><ymin>5</ymin><xmax>70</xmax><ymax>{bottom}</ymax></bndbox></object>
<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>"""
LINES = """[/EN#1/people Two men] hold [/EN#2/other/clothing a red rope] , in [/EN#3/scene a field] .
[/EN#1/people They] , with [/EN#2/other it] , stand .
"""


def flickr(folder, bottom="50", lines=LINES) -> Flickr30kConfig:
    for name, text in (("Sentences/7.txt", lines), ("Annotations/7.xml", XML.format(bottom=bottom))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    save(folder / "images" / "7.jpg")
    return Flickr30kConfig(path=str(folder / "images"), annotations=str(folder), hold_out=0)


def test_flickr30k_captions_carry_boxes(tmp_path) -> None:
    (picture,) = flickr(tmp_path).build().everything()
    first, second = picture.captions
    assert first.text == "Two men hold a red rope, in a field." and second.text == "They, with it, stand."
    one, other = (10.0, 5.0, 30.0, 50.0), (40.0, 5.0, 70.0, 50.0)
    assert [(first.words(each), each.boxes) for each in first.phrases] == [("Two men", (one, other)), ("a red rope", (other,))]
    assert [(second.words(each), each.boxes) for each in second.phrases] == [("They", (one, other)), ("it", (other,))]
    (tmp_path / "ids.txt").write_text("7\n")
    config = flickr(tmp_path).model_copy(update={"ids": str(tmp_path / "ids.txt")})
    assert len(config.build().everything()) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bottom": "high"}, r"7\.xml, object 2: bndbox must hold"),
        ({"bottom": "90"}, r"7\.txt: box .* leaves the picture"),
        ({"lines": "[/EN#1/people Two men hold a rope .\n"}, r"7\.txt, line 1: a mark is not"),
        ({"bottom": "<"}, r"7\.xml: cannot be read"),
    ],
)  # fmt: skip
def test_bad_files_of_flickr30k_are_named(tmp_path, options, told) -> None:
    with pytest.raises(DataError, match=told):
        flickr(tmp_path, **options).build()


def genome(folder, **changes) -> VisualGenomeConfig:
    files = {
        "image_data": [{"image_id": 4, "width": 80, "height": 60, "url": "https://x/VG_100K/4.jpg"}],
        "regions": [{"id": 4, "regions": [
            {"region_id": 1, "image_id": 4, "phrase": "a red ball ", "x": 70, "y": -2, "width": 30, "height": 20},
            {"region_id": 2, "image_id": 4, "phrase": "nothing", "x": 90, "y": 0, "width": 5, "height": 5}]}],
        "objects": [{"image_id": 4, "objects": [{"object_id": 9, "names": ["ball", "toy"], "x": 1, "y": 2, "w": 10, "h": 20}]}],
    } | changes  # fmt: skip
    for name, held in files.items():
        (folder / f"{name}.json").write_text(json.dumps(held))
    save(folder / "VG_100K" / "4.jpg")
    return VisualGenomeConfig(path=str(folder), hold_out=0, **{name: str(folder / f"{name}.json") for name in files})


def test_visual_genome_gives_expressions_and_things(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    (picture,) = genome(tmp_path).build().everything()
    assert [(each.text, each.box) for each in picture.expressions] == [("a red ball", (70.0, 0.0, 80.0, 18.0))]
    assert [(each.label, each.box) for each in picture.things] == [("ball", (1.0, 2.0, 11.0, 22.0))]
    assert "1 of the regions have no words, or no extent" in caplog.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_data": [{"image_id": 4}]}, r"image_data\.json, entry 1: needs image_id, width"),
        ({"image_data": {}}, r"image_data\.json: must be a list"),
        ({"regions": [{"id": 4, "regions": [{"region_id": 3, "phrase": "x"}]}]}, r"regions\.json, entry 1, region_id 3: is not as"),
        ({"objects": [{"image_id": 5, "objects": []}]}, r"objects\.json, entry 1: its picture is not in image_data"),
    ],
)
def test_bad_files_of_visual_genome_are_named(tmp_path, changes, told) -> None:
    with pytest.raises(DataError, match=told):
        genome(tmp_path, **changes).build()


def test_a_list_of_boxes_becomes_a_list_of_pictures(tmp_path, caplog) -> None:
    folder = tmp_path / "given"
    save(folder / "a.jpg")
    with tarfile.open(folder / "images.tar", "w") as held:
        held.add(folder / "a.jpg", "a.jpg")
    (folder / "boxes.jsonl").write_text(json.dumps({"image": "a.jpg", "boxes": [["dot", 1, 2, 30, 40], ["dot", 5, 5, 5, 5]]}) + "\n")
    made = write_pictures(folder, tmp_path / "made")
    (picture,) = PictureManifestConfig(path=str(made), hold_out=0).build().everything()
    assert [(each.label, each.box) for each in picture.things] == [("dot", (1.0, 2.0, 30.0, 40.0))]
    assert "boxes.jsonl, line 1: boxes without extent" in caplog.text
    (folder / "boxes.jsonl").write_text('{"image": "b.jpg", "boxes": []}\n')
    with pytest.raises(DataError, match="line 1: b.jpg is in no archive"):
        write_pictures(folder, tmp_path / "made")
    (folder / "boxes.jsonl").write_text('{"image": "a.jpg", "boxes": [["dot", "x"]]}\n')
    with pytest.raises(DataError, match="line 1: must be"):
        write_pictures(folder, tmp_path / "made")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


HOSTILE = {
    "above": ([member("../outside.jpg")], "no ordinary file inside"),
    "above, below": ([member("a/../../outside.jpg")], "no ordinary file inside"),
    "absolute": ([member("/tmp/outside.jpg")], "no ordinary file inside"),
    "link": ([member("link.jpg", tarfile.SYMTYPE, "/etc/hostname")], "no ordinary file inside"),
    "hard link": ([member("link.jpg", tarfile.LNKTYPE, "/etc/hostname")], "no ordinary file inside"),
    "device": ([member("null.jpg", tarfile.CHRTYPE)], "no ordinary file inside"),
    "pipe": ([member("pipe.jpg", tarfile.FIFOTYPE)], "no ordinary file inside"),
    "the folder itself": ([member(".")], "no ordinary file inside"),
    "twice": ([member("a.jpg"), member("a.jpg")], "a.jpg occurs twice"),
    "twice, the long way": ([member("a.jpg"), member("b/../a.jpg")], "occurs twice"),
    "twice in other letters": ([member("a.jpg"), member("A.JPG")], "A.JPG occurs twice"),
    "long name": ([member("a" * 300 + ".jpg")], "cannot be unpacked"),
    "packed zeros": ([member("a.jpg", content=bytes(64 << 20))], "far more than its"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_lies_outside_its_folder(tmp_path, case) -> None:
    members, told = HOSTILE[case]
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "boxes.jsonl").write_text("")
    with tarfile.open(folder / "images.tar", "w:gz" if case == "packed zeros" else "w") as held:
        for info, content in members:
            held.addfile(info, io.BytesIO(content))
    with pytest.raises(DataError, match=f"images.tar: .*{told}"):
        write_pictures(folder, tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"given", "made"}
    assert all(path.name in ("a.jpg", "b") and not path.is_symlink() for path in (tmp_path / "made").iterdir())


def test_an_archive_that_is_cut_short_is_told(tmp_path) -> None:
    save(tmp_path / "a.jpg")
    for form in ("w", "w:gz"):
        with tarfile.open(tmp_path / "images.tar", form) as held:
            held.add(tmp_path / "a.jpg", "a.jpg")
        (tmp_path / "images.tar").write_bytes((tmp_path / "images.tar").read_bytes()[:600])
        with pytest.raises(DataError, match="images.tar: cannot be unpacked"):
            write_pictures(tmp_path, tmp_path / "made")
