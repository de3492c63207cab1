"""Pictures and texts in one space as a run: losses and their weights, softening, export, vectors for applications, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmlm
from mmlm.base.errors import DataError, RecipeError
from mmlm.data.pictures import Picture
from mmlm.evaluation.validation import Validation
from mmlm.recipe import Recipe
from mmlm.records import Records
from mmlm.run import build_task, evaluate, load_run, preview, train
from mmlm.serving.examples import examples_of
from mmlm.serving.uses import uses_of
from mmlm.tasks import image_text as module
from mmlm.tasks.image_text import hidden_words
from mmlm.tokenizers.boxes import Grounded
from mmlm.training import checkpoint

open_clip = pytest.importorskip("open_clip")
RECIPE = """
schema: 1
name: towers
task:
  type: image_text
  towers:
    type: open_clip
    sizes: {size: 12, picture: {image_size: 32, width: 24, layers: 2, heads: 2}, text: {context: 16, width: 16, layers: 2, heads: 2}}
  least_area: 0.7
  templates: ["{}", "a picture of {}"]
  LOSSES
data:
  train: [{type: scenes, count: 12}]
  validate: [{type: scenes, split: validate}]
  validate_samples: 5
  test: [{type: scenes, split: test, count: 12}]
train: {steps: 4, batch_size: 6, log_every: 1, validate_every: 4, sample_every: 4, lr: 1e-3}
"""
ALL = "soft_clip: {alpha: 0.2}\n  token_matching: {}\n  caption_mlm: {num_heads: 2}"


def recipe(losses: str = ALL, *overrides: str) -> Recipe:
    return Recipe.read(RECIPE.replace("LOSSES", losses), overrides)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers") / "run"
    train(recipe(ALL, f"output={folder}"))
    return folder


def test_a_report_sorts_texts_for_the_pictures_that_it_shows_alone(monkeypatch):
    sorted_for = []
    monkeypatch.setattr(module, "_nearest", lambda outputs: (sorted_for.append(each) or ([(0.5, "<near>")], "true") for each in outputs))
    record = Picture("a", "a", 4, 4, lambda: np.zeros((4, 4, 3), np.uint8))
    shown = module.ImageTextTask.pictures(None, range(1000), [record] * 1000)
    assert len(shown) == module.PICTURED and len(sorted_for) <= module.PICTURED + 1 and "&lt;near&gt;" in shown[0]


def test_pictures_are_found_by_texts_and_texts_by_pictures(run):
    (use,) = uses_of(run)
    examples, why = examples_of(use)
    assert not why and [len(each["pictures"]) for each in examples] == [8, 1, 8]
    given = {"pictures": examples[0]["pictures"], "texts": " a red square\n\na blue circle\na red square\n"}
    (found,) = use.answer(given)
    texts, encoder = ["a red square", "a blue circle"], use.task.encoder
    cosines_nm = encoder.encode(given["pictures"], normalize=True) @ encoder.encode_texts(texts, normalize=True).T
    order = np.argsort(-cosines_nm[:, 0], kind="stable")
    assert all(np.array_equal(one, given["pictures"][place]) for one, place in zip(found["pictures"], order, strict=True))
    assert [row["text"] for row in found["nearness"]] == texts
    told = np.array([[row[f"picture {number}"] for number in range(1, 9)] for row in found["nearness"]])
    assert np.abs(told.T - cosines_nm).max() < 6e-4
    wanted = torch.from_numpy(cosines_nm[order] * float(use.model.model.logit_scale.detach().exp())).softmax(-1)
    assert np.abs(np.array([[row[text] for text in texts] for row in found["chances"]]) - wanted.numpy()).max() < 1e-5
    with pytest.raises(DataError, match="texts: there are 33; 32 are allowed"):
        list(use.answer({**given, "texts": "\n".join(map(str, range(33)))}))


def batch_of(task, config, count=6):
    samples = task.samples(Records.of_training(config, task))
    return samples.collate([samples.sample(0, np.random.default_rng(number)) for number in range(count)])


def test_every_loss_counts_pairs_and_can_be_left_out():
    for losses, names in (("", {"soft_clip"}), (ALL, {"soft_clip", "token_matching", "caption_mlm"})):
        config = recipe(losses)
        task = build_task(config)
        learner = task.learner(0)
        batch = batch_of(task, config)
        found, weights = learner(batch), learner.loss_weights(batch)
        assert found.keys() == weights.keys() == names and set(weights.values()) == {6.0}
        assert all(float(weight) == 6 and torch.isfinite(total) for total, weight in found.values())
        words = [float(total.detach()) / 6 / 0.5 for name, (total, _) in found.items() if name == "caption_mlm"]
        assert all(abs(each - np.log(49408)) < 1 for each in words)  # a mean over hidden words: nothing is known of them yet
    lighter = recipe(ALL, "task.token_matching.weight=0.5", "task.caption_mlm.weight=0.25")
    less = build_task(lighter).learner(0)
    torch.manual_seed(1)
    whole = learner(batch)
    torch.manual_seed(1)
    part = less(batch)
    assert float(part["token_matching"][0].detach()) == pytest.approx(0.5 * float(whole["token_matching"][0].detach()), rel=1e-4)
    assert float(part["caption_mlm"][0].detach()) == pytest.approx(0.5 * float(whole["caption_mlm"][0].detach()), rel=1e-4)  # of 0.5


def test_validation_by_one_process_of_several_waits_for_no_other(monkeypatch):
    config = recipe()
    task = build_task(config)
    learner, batch = task.learner(0).eval(), batch_of(task, config)
    torch.manual_seed(0)
    by_one = {name: float(total.detach()) for name, (total, _) in learner(batch).items()}
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    torch.manual_seed(0)
    assert {name: float(total.detach()) for name, (total, _) in learner(batch).items()} == by_one
    with pytest.raises(ValueError, match="process group"):  # in training the others are asked
        learner.train()(batch)


def test_plain_training_is_the_loss_of_open_clip_and_targets_soften_over_the_run():
    config = recipe("")
    task = build_task(config)
    learner, batch = task.learner(0), batch_of(task, config)
    model = learner.model.model
    with torch.no_grad():
        pictures, texts, scale = model(batch.pictures_bcyx, batch.ids_bt)
        plain = open_clip.ClipLoss()(pictures, texts, scale)
        assert float(learner(batch)["soft_clip"][0]) / 6 == pytest.approx(float(plain), abs=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen, read, found = learner.model.see(batch.pictures_bcyx), learner.model.read(batch.ids_bt), learner(batch)["soft_clip"][0]
        exact = open_clip.ClipLoss()(*(F.normalize(each.pooled_bd.float(), dim=-1) for each in (seen, read)), scale)
        assert float(found) / 6 == pytest.approx(float(exact), abs=1e-5)
    soft = build_task(recipe(ALL)).learner(0)
    shares = []
    for step in (0, 5, 10):
        soft.begin_step(step, 11)
        shares.append(float(soft.alpha))
    assert shares == pytest.approx([0, 0.1, 0.2])
    soft.model.model.logit_scale.data.fill_(9.0)
    soft.begin_step(3, 11)
    assert float(soft.model.model.logit_scale.detach().exp()) == pytest.approx(100)


def test_at_least_one_word_of_each_caption_is_hidden_and_nothing_else():
    torch.manual_seed(0)
    is_word = torch.zeros(500, 8, dtype=torch.bool)
    is_word[:, 1:6] = True
    hidden = hidden_words(is_word, 0.15)
    assert not (hidden & ~is_word).any() and (hidden.sum(1) >= 1).all()
    share = float(hidden.sum()) / float(is_word.sum())  # one of five at least where none is drawn
    assert abs(share - (0.15 + 0.85**5 / 5)) < 0.03
    assert not hidden_words(torch.zeros(1, 4, dtype=torch.bool), 0.15).any()


def test_the_finished_run_holds_two_towers_as_open_clip_writes_them(run):
    _, task, towers = load_run(run)
    plain = build_task(recipe("")).learner(0).model.model
    assert {name: value.shape for name, value in towers.model.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    trained = checkpoint.read(run / "checkpoints" / "step_000004")[0]["model"]
    for name, value in towers.model.state_dict().items():
        assert name == "attn_mask" or torch.equal(value, trained[f"model.model.{name}"]), name
    assert any(name.startswith("mlm.fusion") for name in trained)  # which the towers do not have
    package, _, transform = open_clip.create_model_and_transforms(f"local-dir:{run}")
    package.eval()
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    with torch.no_grad():
        theirs = package.encode_image(transform(Image.fromarray(picture))[None], normalize=True).numpy()
        texts = package.encode_text(task.encoder.tokenizer(["a red circle"]), normalize=True).numpy()
    embedder = mmlm.encoder(str(run))
    np.testing.assert_allclose(embedder.encode([picture], normalize=True), theirs, atol=1e-5)
    np.testing.assert_allclose(embedder.encode_texts(["a red circle"], normalize=True), texts, atol=1e-5)
    with pytest.raises(RecipeError, match="leave out precision"):
        mmlm.encoder(str(run), precision="bf16")
    with pytest.raises(RecipeError, match="encoder 'timm' reads no texts"):
        mmlm.encoder("timm", model="test_resnet").encode_texts(["x"])


def test_retrieval_and_naming_are_measured_beside_chance(run):
    found = evaluate(run)
    assert {"mean_r1", "i2t_r1", "t2i_r10", "t2i_median"} <= found["metrics"].keys() and found["data"]["records"] == {"scenes": 12}
    assert 0 < found["baselines"]["chance"]["mean_r1"] <= 100 / 12 * 1.5
    page = (run / "report.html").read_text()
    assert page.count("<figure><img") == 6 and page.count("<small>true: ") == 6
    names = {path.name for path in (run / "samples" / "step_000004").iterdir()}
    assert names == {"1.png", "2.png", "3.png", "4.png", "nearest.txt"}
    assert "trains a network of its own" in str(recipe("").without_effect()["backbone"])
    config = json.loads((run / "open_clip_config.json").read_text())
    assert config["model_cfg"]["embed_dim"] == 12 and config["preprocess_cfg"]["size"] == [32, 32]


def classed(*names: str) -> list[Picture]:
    """Pictures of classes, "" for none."""
    rng = np.random.default_rng(0)
    return [
        Picture(
            str(number),
            "here",
            32,
            32,
            lambda: rng.integers(0, 255, (32, 32, 3), dtype=np.uint8),
            (Grounded(f"thing {number}"),),
            labels={"class": name} if name else {},
        )
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize(("classes", "templates", "is_known"), [("ab", 2, True), ("aa", 2, False), ("ab", 0, False)])
def test_the_best_may_be_told_by_zero_shot_figures_where_classes_are_known(classes, templates, is_known):
    config = recipe("", *([] if templates else ["task.templates=[]"]), "train.keep_best={metric: zero_shot_1, mode: max}")
    records = iter(classed(*classes))
    drawn = SimpleNamespace(fingerprint="", draw=lambda rng: (next(records), None), collate=lambda items: None)
    learner: Any = SimpleNamespace(loss_weights=lambda batch: {"soft_clip": 1.0}, eval=lambda: learner)
    validation = Validation(drawn, build_task(config), config.train, count=2, seed=0)
    assert ("zero_shot_class" in validation.names(learner)) == is_known
    if is_known:
        return validation.check(learner)
    with pytest.raises(RecipeError, match="train.keep_best.metric: unknown validation metric 'zero_shot_1'"):
        validation.check(learner)


def test_pictures_with_a_class_are_named_by_sentences(run):
    _, task, model = load_run(run)
    records = classed("food-drink", "animals", "animals", "")
    outputs = task.predict(model, records)
    assert [one.label for one in outputs] == ["food-drink", "animals", "animals", ""] and outputs[3].label_sd is None
    words = mmlm.encoder(str(run)).encode_texts(["food drink", "a picture of food drink"], normalize=True)
    np.testing.assert_allclose(outputs[0].label_sd, words, atol=1e-5)
    found = task.score(outputs, records)
    assert found.keys() == {*task.metrics, *task.further_metrics(records)} and found["zero_shot_5"] == 100
    with pytest.raises(DataError, match="here: has no caption"):
        task.predict(model, [Picture("x", "here", 2, 2, lambda: np.zeros((2, 2, 3), np.uint8))])


def test_what_cannot_be_trained_is_told():
    assert "a batch of 6" in preview(recipe("")) and "32 pixels" not in preview(recipe(""))
    with pytest.raises(RecipeError, match="templates: 'a picture' must hold {} once"):
        recipe("", "task.templates=[a picture]")
    with pytest.raises(RecipeError, match="task.caption_mlm.stages: the text tower has 2 layers, not 3"):
        build_task(recipe(ALL, "task.caption_mlm.stages=3")).learner(0)
    with pytest.raises(RecipeError, match="num_heads: 3 do not share the text tower's width of 16"):
        build_task(recipe(ALL, "task.caption_mlm.num_heads=3")).learner(0)
    with pytest.raises(RecipeError, match="capacity: has no effect: plan is max"):
        recipe("token_matching: {plan: max, capacity: 3}")
