"""A text decoder that learns to see: what it said of texts stays as it was, the rest joins it, and a stage goes on from the one before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.interop.load import load
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, evaluate, load_run, train
from mmlm.weights import read_tensors

pytest.importorskip("timm")
QUICK = ["train.validate_every=0", "train.sample_every=0", "data.validate=[]", "train.batch_size=2", "train.log_every=1"]


def recipe(text_run: str, *more: str) -> Recipe:
    given = [f"backbone.pretrained={text_run}", f"tokenizers.text.path={text_run}/tokenizers/text", "adapt.lora.rank=2"]
    return Recipe.read("grounded_captioning/llava", [*QUICK, *given, "train.steps=3", "data.test_samples=2", *more])


def built(some: Recipe):
    return build_model(some, build_task(some))


@pytest.fixture(scope="module")
def seeing_run(text_run, tmp_path_factory) -> str:
    """Three steps in which the encoder is frozen."""
    run = str(tmp_path_factory.mktemp("llava") / "run")
    train(recipe(text_run, f"output={run}", "adapt.freeze=[encoders.vision]"))
    return run


@torch.no_grad()
def test_what_a_decoder_says_of_texts_is_bit_for_bit_as_before(text_run) -> None:
    plain, seeing = load(text_run), built(recipe(text_run)).eval()
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(seeing.logits(ids)[..., :300], plain.logits(ids)) and len(seeing.vocabulary) > len(plain.vocabulary) == 300
    held = dict(plain.named_parameters())
    assert all(torch.equal(each, seeing.get_parameter(name)[: len(each)]) for name, each in held.items())
    projector = seeing.projectors["vision"]
    assert [type(each).__name__ for each in projector] == ["Linear", "GELU", "Linear"] and projector[0].in_features == 80
    again = built(recipe(text_run))  # the seed decides what is new
    assert all(torch.equal(each, again.get_parameter(name)) for name, each in seeing.named_parameters())


def test_what_is_frozen_stays_and_what_joins_learns(text_run, seeing_run) -> None:
    first, last = built(recipe(text_run)).state_dict(), read_tensors(Path(seeing_run) / "model.safetensors")
    changed = {name for name, each in last.items() if not torch.equal(each, first[name])}
    assert not any(name.startswith("encoders.") for name in changed) and any(name.startswith("encoders.") for name in last)
    assert {f"projectors.vision.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")} <= changed
    layers = json.loads(Path(f"{seeing_run}/adapter/adapter.json").read_text())["layers"]
    assert {f"{name}.weight" for name in layers} == {name for name in changed if name.startswith("backbone.")} != set()
    lines = [json.loads(line) for line in Path(f"{seeing_run}/log.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(line["skipped"] == 0 for line in lines)


def test_a_run_is_measured_and_answers(seeing_run) -> None:
    found = evaluate(seeing_run)
    assert {"f1_all: scenes, split test", "acc_50: scenes, split compose"} <= found["metrics"].keys()
    some, task, model = load_run(seeing_run)
    records = some.data.test[0].build().everything()[:2]
    assert "8 x 8 patches" in task.shown(records[0])
    assert len(task.predict(model, records)) == 2


def test_a_stage_goes_on_from_the_one_before(text_run, seeing_run) -> None:
    first = read_tensors(Path(seeing_run) / "model.safetensors")
    told = f"backbone.pretrained={seeing_run}"
    for more in ([], ["encoders={}", "projectors={}"], ["projectors={}"]):
        model = built(recipe(text_run, told, *more))
        assert all(torch.equal(each, first[name]) for name, each in model.state_dict().items())
    for more, fault in (
        (["encoders.vision.layer=1"], "encoders.vision: that of backbone.pretrained, .*, is another; leave it out"),
        (["projectors.vision=linear"], "projectors.vision: that of backbone.pretrained, .*, is mlp; leave it out"),
        (["tokenizers.boxes.num_bins=50"], "has the vocabulary .* but the task 'grounded' needs"),
        (
            ["tokenizers.pictures={type: image_patches, patch: 8}"],
            r"reads the features \{'vision': 3\}, but the task 'grounded' gives \{'vision': 192\}",
        ),
    ):
        with pytest.raises(RecipeError, match=fault):
            built(recipe(text_run, told, *more))


def test_parts_that_do_not_fit_are_told_of_before_training(text_run, tmp_path) -> None:
    for more, fault in (
        (["encoders={}", "projectors={}"], "needs an encoder named vision, which .* has not"),
        (["encoders.sight={type: timm}"], "the task 'grounded' reads nothing through sight; leave it out"),
        (["tokenizers.pictures.grid=[4, 4]"], r"whole_images has grid: \[4, 4\], but encoders.vision wants grid: \[8, 8\]"),
        (["encoders.vision={type: patch_stem}"], "encoder patch_stem: 3 numbers are not the pixels of a square and 16 of its place"),
        (["encoders.vision={type: patch_stem, places: 0, channels: [8]}"], "patch_stem: 1 convolutions leave 0 places"),
        (
            ["tokenizers.pictures={type: image_patches, patch: 8}"],
            "timm: reads whole pictures, which the tokenizer whole_images gives, but not 192",
        ),
        (["task.patches=text"], "task.patches: tokenizers.text must be of the type image_patches or whole_images"),
        (["heads.language_model={type: language_model, ranges: [text]}"], "heads: those of backbone.pretrained"),
    ):
        with pytest.raises(RecipeError, match=fault):
            built(recipe(text_run, *more))
    with pytest.raises(RecipeError, match="projectors.sight: there is no encoder of that name; encoders: vision"):
        recipe(text_run, "projectors.sight=mlp")
    with pytest.raises(CheckpointError):
        built(recipe(text_run, f"backbone.pretrained={tmp_path}"))


def test_a_decoder_of_transformers_gains_vision_too(text_run, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    theirs.bfloat16().save_pretrained(tmp_path / "llama")
    shutil.copy(f"{text_run}/tokenizers/text/tokenizer.json", tmp_path / "llama")
    told = [f"backbone.pretrained={tmp_path / 'llama'}", f"tokenizers.text.path={tmp_path / 'llama'}", f"output={tmp_path / 'run'}"]
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(built(recipe(text_run, *told)).logits(ids)[..., :300], theirs.float()(ids).logits, atol=1e-4, rtol=1e-4)
    train(recipe(text_run, *told, "train.steps=1"))
    _, task, model = load_run(tmp_path / "run")
    assert len(task.predict(model, recipe(text_run).data.test[0].build().everything()[:1])) == 1


def test_its_encoder_may_hold_a_block_of_the_decoder_itself(text_run, tmp_path) -> None:
    told = ["tokenizers.pictures={type: whole_images, size: [64, 64], grid: [4, 4], mean: [0.5, 0.5, 0.5], deviation: [0.5, 0.5, 0.5]}"]
    told += ["encoders.vision={type: timm, model: test_vit, image_size: 64, frozen_lm: {path: " + text_run + "}}", f"output={tmp_path}"]
    train(recipe(text_run, *told))
    _, _, model = load_run(tmp_path)
    block, decoder = model.encoders["vision"].model.norm[0].block, load(text_run).backbone
    assert len(block.layers) == 2  # attention and feed-forward are layers of their own there
    for mine, theirs in zip(block.layers, decoder.layers[-2:], strict=True):
        assert all(torch.equal(each, theirs.state_dict()[name]) for name, each in mine.state_dict().items())
