"""What pictures show: classes of sources, runs, figures, and the run as an encoder and on files."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import mmlm
from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.classifying import classify
from mmlm.cli import main
from mmlm.data.pictures import Picture, Thing
from mmlm.recipe import Recipe
from mmlm.run import build_task, evaluate, load_run, preview, train
from mmlm.tasks.config import PictureClassesConfig
from mmlm.tasks.picture_classes import PictureClassesTask, PictureClassifier, class_of
from mmlm.tokenizers.boxes import Grounded
from tests.training.toy import assert_same

pytest.importorskip("timm")
RECIPE = """
schema: 1
name: classes
output: OUTPUT
seed: 3
task: {type: picture_classes, encoder: {type: timm, model: test_vit, image_size: 32}}
data:
  train: [{type: picture_folder, path: FOLDER, captions: folders, hold_out: 0.25, validate_share: 0.25}]
  validate_samples: 4
train: {steps: 6, batch_size: 8, lr: 3e-3, ema_decay: 0.5, log_every: 2, checkpoint_every: 3,
  keep_last: 9, validate_every: 3, sample_every: 6}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bright, dark and red pictures in folders of these names."""
    path, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, color in {"bright": (230, 230, 230), "dark": (20, 20, 20), "red": (220, 30, 30)}.items():
        (path / name).mkdir()
        for number in range(12 if name == "red" else 8):
            pixels = np.clip(np.array(color) + rng.normal(0, 8, (30, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path / name / f"{name}{number}.png")
    return path


def recipe(folder, output, *overrides):
    return Recipe.read(RECIPE.replace("FOLDER", str(folder)).replace("OUTPUT", str(output)), overrides)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "classes"
    train(recipe(folder, path))
    return path


def test_a_run_leaves_a_network_classes_samples_and_validation(run):
    told = json.loads((run / "classes.json").read_text())
    assert told["classes"] == ["bright", "dark", "red"] and told["encoder"]["model"] == "test_vit"
    assert sorted(path.name for path in (run / "samples" / "step_000006").iterdir())[-2:] == ["4.png", "classes.txt"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {"validation.top1", "validation.top5", "validation.per_class"} <= next(
        line for line in lines if "validation.top1" in line
    ).keys()
    assert "--image" in (run / "README.md").read_text()


def test_a_stopped_run_goes_on_bit_for_bit(folder, run, tmp_path):
    def stop(step, line):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(recipe(folder, tmp_path / "run"), progress=stop).reason == "signal"
    train(recipe(folder, tmp_path / "run"))
    assert_same(run, tmp_path / "run", 6)
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()


def test_evaluation_measures_what_was_held_out_beside_the_commonest_class(run):
    found = evaluate(run)
    assert found["metrics"].keys() == {"top1", "top5", "per_class"} and found["metrics"]["top5"] == 1
    (count,) = found["data"]["records"].values()
    assert 3 <= count <= 14
    assert found["baselines"]["the commonest classes"]["top1"] < 1 and found["baselines"]["the commonest classes"]["top5"] == 1
    assert (run / "report.html").read_text().count("<figure><img") == min(6, count)
    ((_, curves),) = found["curves"].items()
    assert [guesses for guesses, _ in curves["share right"]] == [1, 2, 3] and curves["share right"][-1][1] == 1
    assert "Say what a picture shows" in (run / "report.html").read_text()


def test_a_finished_run_needs_no_pictures_of_its_sources_and_gives_its_trained_encoder(folder, run, tmp_path):
    raw = (run / "recipe.yaml").read_text()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("model.safetensors", "classes.json"):
        (moved / name).write_bytes((run / name).read_bytes())
    (moved / "recipe.yaml").write_text(raw.replace(str(folder), str(tmp_path / "gone")))
    picture = folder / "red" / "red0.png"
    pixels = np.asarray(Image.open(picture))
    _, task, model = load_run(moved)
    chances = task.probabilities(model, [pixels])
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    vectors = mmlm.encoder(moved).encode([picture])
    with torch.no_grad():
        again = model.head(torch.from_numpy(vectors)).softmax(-1).numpy()
    np.testing.assert_allclose(again, chances, atol=1e-5)  # the vectors are those that the classes were told from
    assert not np.allclose(vectors, mmlm.encoder("timm", model="test_vit", image_size=32).encode([pixels]))
    np.testing.assert_allclose(task.probabilities(model, [pixels, 255 - pixels])[0], chances[0], atol=1e-6)


def test_files_are_named_with_probabilities(folder, run, tmp_path, capsys):
    assert main(["generate", str(run), "--image", str(folder / "red" / "red0.png"), "--output", str(tmp_path / "out.json")]) == 0
    ((name, chance), *others) = classify(run, folder / "red" / "red0.png")[0][0].classes
    assert f"red0.png: {name} {chance:.3f}, {others[0][0]}" in capsys.readouterr().out
    assert chance >= others[0][1] and sum(each for _, each in [(name, chance), *others]) == pytest.approx(1, abs=1e-5)
    ((told),) = json.loads((tmp_path / "out.json").read_text())
    assert told["classes"].keys() == {"bright", "dark", "red"}
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "bad.png").write_bytes(b"none")
    (tmp_path / "mixed" / "good.png").write_bytes((folder / "dark" / "dark1.png").read_bytes())
    found, failed = classify(run, tmp_path / "mixed")
    assert [one.path.name for one in found] == ["good.png"] and "bad.png" in failed[0]
    with pytest.raises(RecipeError, match="is no run that names classes"):
        classify(folder, folder)


def picture(label: str, things: int = 1) -> Picture:
    shown = tuple(Thing(label, (0, 0, 4, 4)) for _ in range(things))
    return Picture(label, f"list, line {things}", 8, 8, lambda: np.zeros((8, 8, 3), np.uint8), things=shown)


def test_figures_by_hand():
    task = PictureClassesTask(PictureClassesConfig(classes=list("abcdefg")), {})
    records = [picture(name) for name in ("a", "a", "a", "b", "z")]
    order = np.array([0.4, 0.2, 0.1, 0.1, 0.1, 0.06, 0.04])
    outputs = [order, order, order[::-1], order, order]  # right, right, last place, second place, no class of these
    assert task.score(outputs, records) == pytest.approx({"top1": 2 / 5, "top5": 3 / 5, "per_class": (2 / 3 + 0 + 0) / 3})
    base = task.baselines(records)["the commonest classes"]
    assert base == pytest.approx({"top1": 3 / 5, "top5": 1.0, "per_class": 1 / 3})
    assert dict(task.curves(outputs, records)["share right"])[2.0] == pytest.approx(3 / 5)


def test_a_class_is_the_only_thing_or_the_caption_and_else_an_error():
    assert class_of(picture("red star")) == "red star"
    bare = picture("x", 0)
    captioned = Picture("p", "p", 8, 8, bare.read, captions=(Grounded("cat"),))
    assert class_of(captioned) == "cat"
    with pytest.raises(DataError, match=r"list, line 2: has 2 things"):
        class_of(picture("red star", 2))
    with pytest.raises(DataError, match="no thing and no caption"):
        class_of(bare)
    task = PictureClassesTask(PictureClassesConfig(classes=["a", "b"]), {})
    with pytest.raises(DataError, match=r"list, line 1: shows 'z', which is none of the 2 classes"):
        task.number(picture("z"))


def test_the_head_alone_learns_where_that_is_asked_for(folder, tmp_path):
    task = build_task(recipe(folder, tmp_path, "task.learns=head"))
    learner = task.learner(3)
    before = {name: each.clone() for name, each in learner.model.encoder.state_dict().items()}
    assert [name for name, each in learner.model.named_parameters() if each.requires_grad] == ["head.weight", "head.bias"]
    train(recipe(folder, tmp_path / "run", "task.learns=head", "train.ema_decay=0"))
    _, _, model = load_run(tmp_path / "run")
    for name, each in model.encoder.state_dict().items():
        torch.testing.assert_close(each, before[name], atol=0, rtol=0)
    assert not torch.equal(model.head.weight, learner.model.head.weight)


def test_mirroring_and_smoothing_have_an_effect(folder):
    class One:
        fingerprint = "one"

        def draw(self, rng):
            half = np.zeros((32, 32, 3), np.uint8)
            half[:, :16] = 255
            return Picture("p", "p", 32, 32, lambda: half, things=(Thing("a", (0, 0, 4, 4)),))

    config = PictureClassesConfig(classes=["a", "b"], mirror=True, smoothing=0.2, encoder={"type": "timm", "image_size": 32})
    task = PictureClassesTask(config, {})
    samples = task.samples(One())
    left = [bool(samples.draw(np.random.default_rng(seed))[1][0][0, 0, 0] > 0) for seed in range(40)]
    assert 8 < sum(left) < 32
    batch, learner = samples.collate([samples.sample(0, np.random.default_rng(0))]), task.learner(0)
    with torch.no_grad():
        log_p = learner.eval().model(batch.x_bcyx).log_softmax(-1)[0]
        plain, smooth = float(learner(batch)["class"][0]), float(learner.train()(batch)["class"][0])
    assert plain == pytest.approx(-float(log_p[0]), rel=1e-4) and smooth == pytest.approx(-float(0.9 * log_p[0] + 0.1 * log_p[1]), rel=1e-4)


def test_classes_of_drawn_scenes_are_found_and_a_preview_tells_them():
    text = preview(Recipe.read("vision/classify", ["train.batch_size=2"]), 1)
    assert "one of 44 classes" in text
    assert "a batch of 2: 2 tokens" in text


def test_classes_do_not_depend_on_the_batch(run, folder):
    _, task, model = load_run(run)
    assert isinstance(model, PictureClassifier)
    pixels = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))[:5]]
    together = task.probabilities(model, pixels)
    for one, chances in zip(pixels, together, strict=True):
        np.testing.assert_allclose(task.probabilities(model, [one])[0], chances, atol=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.encoder={type: patch_matrix}", "'patch_matrix' reads no whole pictures"),
        ("task.classes=[a, a]", "'a' is named twice"),
        ("backbone.width=32", "trains a network of its own"),
    ],
)
def test_what_does_not_fit_is_told(folder, tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        recipe(folder, tmp_path, override)


def test_one_class_and_a_broken_run_are_errors(folder, run, tmp_path):
    (tmp_path / "one" / "red").mkdir(parents=True)
    (tmp_path / "one" / "red" / "a.png").write_bytes((folder / "red" / "red0.png").read_bytes())
    with pytest.raises(DataError, match=r"the sources show 1 class \('red'\)"):
        build_task(
            recipe(
                tmp_path / "one",
                tmp_path,
                "data.train.0.hold_out=0",
                "data.train.0.validate_share=0",
                "train.validate_every=0",
                "train.sample_every=0",
            )
        ).learner(0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(CheckpointError, match=r"classes.json: cannot be read"):
        load_run(tmp_path / "run")
