"""Pictures described from files: what is written, folders with bad files among them, and what cannot be asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mmlm.base.errors import DataError, RecipeError
from mmlm.cli import main
from mmlm.describing import Describer, describe
from mmlm.recipe import Recipe
from mmlm.run import train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("describing") / "run"
    options = [
        "task.constrained=true", "task.max_tokens=40", "backbone.width=16", "backbone.num_layers=1", "encoders.vision.channels=[4, 4, 8]",
        "train.steps=2", "train.batch_size=2", "train.validate_every=0", "train.sample_every=0", "data.validate=[]", f"output={folder}",
    ]  # fmt: skip
    train(Recipe.read("grounded_captioning/quickstart", options))
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name, size in (("a.png", (50, 90)), ("sub/b.jpg", (200, 64)), ("sub_b.jpg", (64, 64))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def test_a_picture_gives_words_boxes_in_pixels_and_a_drawing(run, pictures, capsys) -> None:
    assert (
        main(["generate", run, "--image", str(pictures / "a.png"), "--expression", "the red circle", "--output", str(pictures / "out")])
        == 0
    )
    assert "boxes in" in capsys.readouterr().out
    (said,) = json.loads((pictures / "out" / "a.png.json").read_text())
    assert said["kind"] == "expression" and said["question"] == "the red circle" and len(said["phrases"]) == 1
    for x1, y1, x2, y2 in said["phrases"][0]["boxes"]:
        assert 0 <= x1 < x2 <= 90 and 0 <= y1 < y2 <= 50
    assert min(Image.open(pictures / "out" / "a.png.png").size) >= 256


def test_a_folder_is_described_whole_and_bad_files_are_told(run, pictures, capsys) -> None:
    (pictures / "c.png").write_bytes(b"no picture")
    assert main(["generate", run, "--image", str(pictures)]) == 2
    told = capsys.readouterr()
    assert "1 of 4 files could not be described" in told.err and "c.png" in told.err
    output = pictures.with_name("in.described")
    written = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert written == {f"{name}.{ending}" for name in ("a.png", "sub/b.jpg", "sub_b.jpg") for ending in ("json", "png")}
    found, failed = describe(run, pictures, pictures.parent / "again")
    assert [one.said[0].request.kind for one in found] == ["grounded_caption"] * 3 and len(failed) == 1


def test_what_cannot_be_asked_is_refused(run, pictures, tmp_path, capsys) -> None:
    with pytest.raises(RecipeError, match="has not learned question; it knows grounded_caption, expression"):
        describe(run, pictures, question="How many?")
    with pytest.raises(DataError, match="No such file"):
        describe(run, tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file below this folder"):
        describe(run, tmp_path / "empty")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; the output of --image is a folder"):
        describe(run, pictures / "a.png", tmp_path / "file")
    with pytest.raises(DataError, match="out: lies in the folder that is read"):
        describe(run, pictures, pictures / "out")
    assert main(["generate", run, "--expression", "the dog"]) == 2
    assert "--expression goes with --image or --sweep, which is missing" in capsys.readouterr().err
    assert Describer(run).kinds == ["grounded_caption", "expression"]
