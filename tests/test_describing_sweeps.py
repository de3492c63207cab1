"""Sweeps described from files: what is written, real ones through the recipe of generated ones, and what cannot be asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmlm.base.errors import RecipeError
from mmlm.cli import main
from mmlm.data.config.street import StreetConfig
from mmlm.describing_sweeps import describe_sweeps
from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "lidar_sustech"
SMALL = [
    "task.constrained=true", "task.max_tokens=40", "task.kinds={grounded_caption: 1, expression: 1, class: 1, question: 1}",
    "task.requests=4", "backbone.width=16", "backbone.num_layers=1", "tokenizers.sweep.num_tokens=4", "encoders.lidar.pillars.channels=4",
    "encoders.lidar.queries={num_queries: 4, num_layers: 1, num_heads: 2, width: 16}", "encoders.lidar.pillars.cell=1.6",
    "train.steps=2", "train.batch_size=2", "train.validate_every=0", "train.sample_every=0", "data.validate=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("describing") / "run"
    train(Recipe.read("lidar/quickstart", [*SMALL, f"output={folder}"]))
    return str(folder)


@pytest.fixture
def sweeps(tmp_path) -> Path:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name, sweep in zip(("a.bin", "sub/b.bin"), StreetConfig(count=2, split="test").build().everything(), strict=True):
        sweep.read().tofile(folder / name)
    return folder


def test_a_sweep_gives_words_boxes_in_metres_and_a_drawing(run, sweeps, capsys) -> None:
    given = ["generate", run, "--sweep", str(sweeps / "a.bin"), "--expression", "the car", "--output", str(sweeps / "out")]
    assert main(given) == 0
    (said,) = json.loads((sweeps / "out" / "a.bin.json").read_text())
    assert said["kind"] == "expression" and said["question"] == "the car" and said["view"] is None
    (box,) = said["phrases"][0]["boxes"]
    assert len(box) == 7 and max(map(abs, box[:2])) < 25.6 and min(box[3:6]) > 0 and 0 <= said["phrases"][0]["scores"][0] <= 1
    assert Image.open(sweeps / "out" / "a.bin.png").size == (512, 512)
    assert "a.bin" in capsys.readouterr().out


def test_a_folder_a_view_and_what_lies_ahead(run, sweeps) -> None:
    found, failed = describe_sweeps(run, sweeps, question="What is nearest?", view="back left")
    assert [each.path.name for each in found] == ["a.bin", "b.bin"] and not failed
    assert all(one.request.view == 2 for each in found for one in each.said)
    (sweeps / "c.bin").write_bytes(b"\0" * 7)
    found, failed = describe_sweeps(run, sweeps)
    assert len(found) == 2 and [each.path.name for each in failed] == ["c.bin"] and found[0].said[0].request.kind == "grounded_caption"
    ahead = np.asarray(Image.open(found[0].picture)).astype(int)
    turned, _ = describe_sweeps(run, sweeps / "a.bin", sweeps / "turned", front_degrees=90.0)
    assert not np.array_equal(np.asarray(Image.open(turned[0].picture)), ahead)


def test_what_cannot_be_asked_is_told(run, sweeps, capsys) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'front left'"):
        describe_sweeps(run, sweeps, question="What?", view="frnt left")
    with pytest.raises(RecipeError, match="exclude each other"):
        describe_sweeps(run, sweeps, expression="the car", view="front")
    assert main(["generate", run, "--image", str(sweeps / "a.bin"), "--view", "front"]) == 2
    assert "--view goes with --sweep, not with --image" in capsys.readouterr().err
    assert main(["generate", run, "--image", str(sweeps / "a.bin")]) == 2
    assert "describes no pictures" in capsys.readouterr().err


def test_real_sweeps_run_through_the_same_recipe(tmp_path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there")
    source = f"{{type: sweep_folder, path: {REAL}, front_degrees: -90, reach: 25, hold_out: 0.3}}"
    folder = tmp_path / "run"
    train(Recipe.read("lidar/quickstart", [*SMALL, f"data.train=[{source}]", "data.test=[]", f"output={folder}"]))
    found = evaluate(folder)
    assert {"bev_iou", "class_accuracy", "answers"} <= set(found["metrics"])
    (one,), failed = describe_sweeps(folder, REAL / "000965.npz", tmp_path / "out", front_degrees=-90.0)
    assert not failed and one.picture.is_file() and len(json.loads(one.json.read_text())) == 1
