"""Training codes of pictures as a run: resume, samples, evaluation, the run as a tokenizer of others and on files."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from mmlm.base.errors import RecipeError
from mmlm.cli import main
from mmlm.data.pictures import Picture
from mmlm.recipe import Recipe
from mmlm.recoding import recode
from mmlm.run import build_task, evaluate, load_run, preview, train
from mmlm.serving.uses import uses_of
from mmlm.tasks.image_codes import MEAN, SMALL, SQUARES, Coded, square_part
from mmlm.tokenizers.config import ImageCodesConfig
from tests.training.toy import assert_same

SIZES = "patch: 4, max_side: 32, width: 16, encoder_blocks: 1, decoder_blocks: 1, latent_size: 6"
RECIPE = """
schema: 1
name: codes
output: OUTPUT
seed: 3
task: {type: image_codes, side: 16}
data:
  train: [{type: picture_folder, path: FOLDER, captions: none, hold_out: 0.25, validate_share: 0.25}]
  validate_samples: 3
tokenizers:
  codes: {type: image_codes, SIZES, quantizer: QUANTIZER}
train: {steps: 6, batch_size: 4, micro_batch_size: 2, lr: 3e-3, ema_decay: 0.5, log_every: 2, checkpoint_every: 3,
  keep_last: 9, validate_every: 3, sample_every: 6}
"""
VQ, LFQ = "{type: vq, num_books: 2, book_size: 8}", "{type: lfq, bits: 4}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen pictures of slow colours, of two shapes."""
    path, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(16):
        small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((28, 20) if number % 2 else (24, 40), Image.Resampling.BICUBIC).save(path / f"{number:02}.png")
    return path


def recipe(folder, output, quantizer=VQ, *overrides):
    text = RECIPE.replace("SIZES", SIZES).replace("QUANTIZER", quantizer)
    return Recipe.read(text.replace("FOLDER", str(folder)).replace("OUTPUT", str(output)), overrides)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "codes"
    train(recipe(folder, path))
    return path


def test_a_run_leaves_a_codec_samples_and_validation(run):
    assert sorted(path.name for path in (run / "tokenizers" / "codes").iterdir()) == ["codec.json", "codec.safetensors"]
    assert sorted(path.name for path in (run / "samples" / "step_000006").iterdir())[:2] == ["1_decoded.png", "1_true.png"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = next(line for line in lines if "validation.psnr" in line)
    assert {"validation.ssim", "validation.perplexity", "validation.used", "validation.loss.absolute"} <= found.keys()
    assert {"validation.loss.squared", "validation.loss.commitment"} <= found.keys()
    card = (run / "README.md").read_text()
    assert f"{{codes: {{type: image_codes, path: {json.dumps(str(run))}}}}}" in card and "--image" in card


@pytest.mark.parametrize("quantizer", [VQ, LFQ], ids=["vq", "lfq"])
def test_a_stopped_run_goes_on_bit_for_bit(folder, tmp_path, quantizer):
    def stop(step, line):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    train(recipe(folder, tmp_path / "whole", quantizer))
    assert train(recipe(folder, tmp_path / "codes", quantizer), progress=stop).reason == "signal"
    train(recipe(folder, tmp_path / "codes", quantizer))
    assert_same(tmp_path / "whole", tmp_path / "codes", 6)


@pytest.mark.parametrize(
    ("quantizer", "names"),
    [(VQ, ["commitment"]), ("{type: fsq, levels: [4, 4]}", []), (LFQ, ["commitment", "entropy"])],
    ids=["vq", "fsq", "lfq"],
)
def test_losses_and_their_weights_agree_for_every_quantizer_and_each_learns(folder, tmp_path, quantizer, names):
    task = build_task(recipe(folder, tmp_path, quantizer))
    learner = task.learner(0).train()
    pixels = np.asarray(Image.open(folder / "01.png"))[:16, :16]
    batch = task.samples(type("Records", (), {"fingerprint": ""})()).collate([pixels, pixels[::-1]])
    losses, weights = learner(batch), learner.loss_weights(batch)
    assert {name: float(weight) for name, (_, weight) in losses.items()} == weights == dict.fromkeys([*names, "absolute", "squared"], 2.0)
    optimizer = torch.optim.Adam(learner.parameters(), lr=5e-3)
    before = float(losses["squared"][0].detach())
    for _ in range(60):
        optimizer.zero_grad()
        sum(value for name, (value, _) in learner(batch).items() if name != "entropy").backward()
        optimizer.step()
    assert float(learner(batch)["squared"][0].detach()) < before / 2


def test_evaluation_measures_what_was_held_out_beside_smaller_pictures(run):
    found = evaluate(run)
    assert found["metrics"].keys() == {"psnr", "ssim", "perplexity", "used"}
    (count,) = found["data"]["records"].values()
    assert 2 <= count <= 6
    assert found["baselines"].keys() == {MEAN, SMALL, SQUARES}
    assert found["baselines"][MEAN]["psnr"] < found["baselines"][SQUARES]["psnr"]
    ((_, curves),) = found["curves"].items()
    assert [books for books, _ in curves["PSNR"]] == [1, 2] and curves["PSNR"][1][1] == pytest.approx(found["metrics"]["psnr"])
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 * min(count, 6) and "Train codes of pictures" in page


def test_the_smaller_picture_has_at_most_the_bits_of_the_codes(folder, tmp_path, monkeypatch):
    sizes = []
    task = build_task(recipe(folder, tmp_path, "{type: vq, book_size: 256}"))
    monkeypatch.setattr("mmlm.tasks.image_codes._through", lambda pixels, height, width: sizes.append((height, width)) or pixels)
    pixels = np.zeros((64, 96, 3), np.uint8)
    task._of_as_many_bits(pixels)  # 16 x 24 codes of 8 bits are 128 pixels of 24
    task._of_squares(pixels)
    assert sizes == [(9, 14), (16, 24)]


def test_figures_are_those_worked_out_by_hand(folder, tmp_path):
    task = build_task(recipe(folder, tmp_path, "{type: vq, num_books: 2, book_size: 4}"))
    black = np.zeros((8, 8, 3), np.uint8)
    codes_tu = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])
    outputs = [Coded(black, codes_tu, black, codes_tu), Coded(black, codes_tu, black + 255, codes_tu)]
    found = task.score(outputs, [])
    assert found["psnr"] == pytest.approx(50) and found["ssim"] == pytest.approx(0.5, abs=1e-3)  # of (100, 0) and (1, 0)
    assert found["perplexity"] == pytest.approx((0.25 + 1) / 2) and found["used"] == pytest.approx((0.25 + 1) / 2)


def test_training_parts_are_squares_of_the_picture_and_are_mirrored_as_asked(folder, tmp_path):
    pixels = np.arange(40 * 24 * 3).reshape(40, 24, 3).astype(np.uint8)
    rng = np.random.default_rng(0)
    parts = [square_part(pixels, 16, rng) for _ in range(40)]
    assert {each.shape for each in parts} == {(16, 16, 3)} and len({each.tobytes() for each in parts}) > 20
    small = square_part(pixels[:10, :12], 16, rng)
    assert small.shape == (16, 16, 3)
    whole = np.arange(16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    records = type("Records", (), {"fingerprint": "", "draw": lambda self, rng: Picture("a", "a", 16, 16, lambda: whole)})()
    for flip, seen in ((0.0, {False}), (1.0, {True}), (0.5, {False, True})):
        samples = build_task(recipe(folder, tmp_path, VQ, f"task.flip={flip}")).samples(records)
        found = [samples.sample(number, np.random.default_rng(number)) for number in range(12)]
        assert {np.array_equal(each, whole[:, ::-1]) for each in found} == seen


def test_the_run_is_a_tokenizer_of_other_recipes_and_answers(run, folder):
    codes = ImageCodesConfig(path=str(run)).build()
    pixels = np.asarray(Image.open(folder / "00.png"))
    assert codes.sizes == {"image_code.0": 8, "image_code.1": 8}
    _, task, _ = load_run(run)
    assert task.codec.fingerprint == codes.fingerprint
    (use,) = uses_of(run)
    (found,) = use.answer({"image": pixels})
    segment = codes.encode(pixels)
    assert np.array_equal(found["image"], codes.decode(segment)) and found["codes"]["codes"] == segment.ids.T.tolist()
    assert (found["codes"]["rows"], found["codes"]["columns"]) == (8, 5)


def test_files_are_coded_and_decoded(run, folder, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("00.png", "01.png"):
        (tmp_path / "in" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    assert main(["generate", str(run), "--image", str(tmp_path / "in")]) == 2
    out, err = capsys.readouterr()
    assert "00.png: codes in" in out and "1 of 3 files could not be coded" in err and "bad.png" in err
    told = json.loads((tmp_path / "in.recoded" / "01.png.json").read_text())
    (one,) = told
    assert (one["rows"], one["columns"], len(one["codes"]), len(one["codes"][0])) == (5, 7, 2, 35)
    assert np.asarray(Image.open(tmp_path / "in.recoded" / "01.png.png")).shape == (20, 28, 3)
    assert main(["generate", str(run), "--image", str(folder / "00.png"), "--question", "what?"]) == 2
    assert "--question has no effect" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="is no run of the task image_codes"):
        recode(tmp_path, folder)


def test_a_preview_tells_codes_and_bits(folder, tmp_path):
    text = preview(recipe(folder, tmp_path))
    assert "codes of 2 books" in text and "bits, 0.375 a pixel" in text and "a batch of 4: 64 tokens" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.side=18"], "task.side: 18 pixels are not whole squares of 4, the patch of the tokenizer"),
        (["tokenizers.codes={type: text}"], "task.tokenizer: tokenizers.codes must be of the type image_codes"),
        (["task.tokenizer=other"], "unknown tokenizer 'other'"),
        (["backbone.width=32"], "backbone: has no effect"),
        (["data.train.0={type: python_docs}", "data.validate=[{type: python_docs, split: valid}]"], "the task reads pictures"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(folder, tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        train(recipe(folder, tmp_path / "x", VQ, *overrides))


def test_the_shipped_recipe_is_read_with_every_quantizer_that_it_names():
    for changes in (
        [],
        ["tokenizers.codes.quantizer={type: fsq, levels: [8, 8, 4]}"],
        ["tokenizers.codes.quantizer={type: lfq, bits: 8}", "train.loss_weights={squared: 2, commitment: 0.1, entropy: 0.1}"],
    ):
        own = Recipe.read("image_codes/small", changes)
        task = build_task(own)
        assert task.codec.book_sizes == [256]
        losses = task.learner(0).loss_weights(
            task.samples(type("Records", (), {"fingerprint": ""})()).collate([np.zeros((64, 64, 3), np.uint8)])
        )
        assert own.train.loss_weights.keys() <= losses.keys()
