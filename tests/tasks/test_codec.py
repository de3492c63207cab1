"""Training a codec as a run: stages, resume, samples, evaluation, and the run as a tokenizer of others."""

from __future__ import annotations

import json
import logging
import os
import signal

import numpy as np
import pytest
import torch

from mmlm.base.errors import DataError, RecipeError
from mmlm.data.audio_files import read_sound, write_sound
from mmlm.recipe import Recipe
from mmlm.run import build_task, evaluate, load_run, preview, train
from mmlm.serving.uses import uses_of
from mmlm.sound import Sound
from mmlm.tasks.codec import CodecLearner
from mmlm.tokenizers.config import SmallCodecConfig
from mmlm.training.config import TrainConfig
from mmlm.training.optimizers import build_optimizers
from tests.training.toy import assert_same

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

SIZES = "width: 16, encoder_blocks: 1, decoder_blocks: 1, fine_blocks: 1, latent_size: 8, hop: 160, window: 320, mel_bands: 20"
SMALL = f"{{type: small_codec, num_books: 2, book_size: 8, {SIZES}}}"
SINGLE = f"{{type: single_codec, group_size: 8, kept: [4, 4], {SIZES}}}"
RECIPE = """
schema: 1
name: codec
output: OUTPUT
seed: 3
task: {type: codec, seconds: 0.2, windows: [128, 256]}
data:
  train: [{type: speech_folder, path: FOLDER, hold_out: 0.2, validate_share: 0.2, split_by: utterance}]
  validate_samples: 3
tokenizers:
  codec: CODEC
train:
  steps: 6
  batch_size: 4
  micro_batch_size: 2
  lr: 2e-3
  loss_weights: {mel: 2, complex: 0.5, commitment: 0.5}
  ema_decay: 0.9
  log_every: 2
  checkpoint_every: 3
  keep_last: 9
  validate_every: 3
  sample_every: 6
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve sounds of half a second; one of them is shorter than a training sample."""
    path, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(12):
        size = 1000 if number == 0 else 8000
        time = np.arange(size) / 16000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 40 * number) * time) * (1 + np.sin(30 * time)) / 2 + 0.01 * rng.normal(size=size)
        write_sound(path / f"{number:02}.wav", Sound(wave.astype(np.float32), 16000))
    return path


def recipe(folder, output, codec=SMALL, *overrides):
    text = RECIPE.replace("FOLDER", str(folder)).replace("OUTPUT", str(output)).replace("CODEC", codec)
    return Recipe.read(text, overrides)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "codec"
    train(recipe(folder, path))
    return path


def test_a_sound_comes_back_as_it_is_behind_the_codec_with_its_bits(folder, run):
    (use,) = uses_of(run)
    sound = read_sound(folder / "03.wav").at(8000)
    codec, read = use.task.codec, sound.at(16_000)
    for books, told in ((2, "0.50 s, 50 tokens of 2 books, 600 bits a second; 16 bits a sample are 256000"), (1, "1 books, 300 bits")):
        (found,) = use.answer({"audio": sound, "books": books})
        assert np.array_equal(found["audio"].wave_n, codec.decode(codec.encode(read, books)).wave_n) and told in found["size"]
        assert np.array_equal(found["read"].wave_n, read.wave_n) and len(found["audio"].wave_n) == len(read.wave_n)
    (usual,) = use.answer({"audio": sound})
    assert "2 books" in usual["size"]
    with pytest.raises(DataError, match="books: must be from 1 to 2"):
        list(use.answer({"audio": sound, "books": 3}))


def test_a_run_leaves_a_codec_samples_and_validation_losses(run):
    assert sorted(path.name for path in (run / "tokenizers" / "codec").iterdir()) == ["codec.json", "codec.safetensors"]
    assert sorted(path.name for path in (run / "samples" / "step_000006").iterdir())[:2] == ["1_decoded.wav", "1_true.wav"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found = next(line for line in lines if "validation.mel_distance" in line)
    assert {"validation.loss.stft", "validation.loss.mel", "validation.loss.complex", "validation.loss.commitment"} <= found.keys()
    assert lines[-1]["step"] == 6 and "network of its own" not in (run / "README.md").read_text()


def test_a_stopped_run_goes_on_bit_for_bit(folder, run, tmp_path):
    def stop(step, line):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(recipe(folder, tmp_path / "codec"), progress=stop).reason == "signal"
    assert not (tmp_path / "codec" / "tokenizers").exists()
    train(recipe(folder, tmp_path / "codec"))
    assert_same(run, tmp_path / "codec", 6)
    texts = [(path / "tokenizers" / "codec" / "codec.safetensors").read_bytes() for path in (run, tmp_path / "codec")]
    assert texts[0] == texts[1]


def test_stage_two_begins_at_its_step_and_goes_on_after_a_resume(folder, tmp_path):
    stages = {}

    def look(step, line):
        stages[step] = line

    plain = recipe(folder, tmp_path / "a", SINGLE, "train.loss_weights={diversity: 0.1}")
    train(plain, progress=look)
    assert "loss.diversity" in stages[2] and "loss.diversity" not in stages[6]

    def stop(step, line):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    again = plain.model_copy(update={"output": str(tmp_path / "b")})
    train(again, progress=stop)
    train(again)
    assert_same(tmp_path / "a", tmp_path / "b", 6)
    _, task, model = load_run(tmp_path / "a")
    assert task.codec.sizes == {"codec.0": 16} and float(model.quantizer.is_single) == 1


def test_muon_takes_the_layers_between_the_two_ends():
    config = SmallCodecConfig(num_books=1, book_size=8, width=16, encoder_blocks=1, decoder_blocks=1, fine_blocks=1, latent_size=8)
    model = config.build().begin()
    muon, _ = build_optimizers(TrainConfig(optimizer="muon"), model)
    own = {parameter: name for name, parameter in model.named_parameters()}
    found = sorted(own[parameter] for group in muon.param_groups for parameter in group["params"])
    blocks = [f"{part}.0.{layer}.weight" for part in ("encoder.blocks", "decoder.blocks", "decoder.fine") for layer in ("up", "down")]
    assert found == sorted([*blocks, "encoder.outer.weight", "decoder.inner.weight", "decoder.split.weight"])


def test_evaluation_measures_what_was_held_out(run):
    (run / "heard" / "before").mkdir(parents=True)
    (run / "heard" / "before" / "1_model.wav").touch()
    found = evaluate(run, ["evaluate.judges=[si_sdr]", "evaluate.num_players=1"])
    assert found["data"]["records"] == {"held out of speech_folder": 2}
    assert found["metrics"].keys() == {"mel_distance", "perplexity", "si_sdr", "real_time_factor"}
    assert np.isfinite(list(found["metrics"].values())).all() and 0 < found["metrics"]["real_time_factor"] < 100
    ((classical, figures),) = found["baselines"].items()
    assert "Griffin-Lim" in classical and figures.keys() == {"mel_distance", "si_sdr"}
    assert found["data"]["judged"] == {"held out of speech_folder": {"sounds": 2, "measured": {"si_sdr": 2}}}
    ((name, curves),) = found["curves"].items()
    assert [books for books, _ in curves["mel distance"]] == [1, 2]
    page = (run / "report.html").read_text()
    assert 'controls preload="none" src="samples/step_000006/1_decoded.wav"' in page and "Train a codec" in page
    played = sorted(path.relative_to(run).as_posix() for path in (run / "heard").rglob("*.wav"))
    assert len(played) == 3 and all(f'src="{place}"' in page for place in played) and page.count("data:image/png;base64,") == 3
    assert "2 sounds were judged (si_sdr of 2)" in page


def test_the_run_is_a_tokenizer_of_other_recipes(run, folder, tmp_path):
    codec = SmallCodecConfig(path=str(run)).build()
    segment = codec.encode(Sound(np.zeros(1234, np.float32), 16000))
    assert codec.sizes == {"codec.0": 8, "codec.1": 8} and len(codec.decode(segment).wave_n) == 1234
    _, task, _ = load_run(run)
    assert task.codec.fingerprint == codec.fingerprint
    goes_on = recipe(
        folder, tmp_path / "more", f"{{type: small_codec, path: {run}}}", "train.steps=1", "train.lr=1e-9", "train.ema_decay=0"
    )
    train(goes_on)
    more = SmallCodecConfig(path=str(tmp_path / "more")).build().model.state_dict()
    for name, tensor in codec.model.state_dict().items():
        if "quantizer" not in name:
            torch.testing.assert_close(more[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_preview_tells_seconds_tokens_and_bits(folder, tmp_path):
    text = preview(recipe(folder, tmp_path))
    assert "0.20 s, 20 tokens of 2 books, 600 bits a second" in text and "a batch of 4: 80 tokens" in text


def test_the_adversary_joins_at_its_step(folder, tmp_path, caplog):
    pytest.importorskip("encodec")
    lines = {}
    own = recipe(folder, tmp_path / "a", SMALL, "task.adversary={after: 0.5, filters: 4}", "train.steps=4", "train.micro_batch_size=4")
    with caplog.at_level(logging.WARNING):
        train(own, progress=lambda step, line: lines.update({step: line}))
    assert "loss.generator" not in lines[2] and {"loss.generator", "loss.discriminator", "loss.features"} <= lines[4].keys()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=causal"], "objective: has no effect: the task 'codec' trains a network of its own"),
        (["backbone.width=32"], "backbone: has no effect"),
        (["task.tokenizer=voice"], "unknown tokenizer 'voice'"),
        (["tokenizers.codec={type: text}"], "task.tokenizer: tokenizers.codec must be of the type small_codec or single_codec"),
        (["task.seconds=0.01"], r"task.seconds: 0.01 s are shorter than the longest of task.windows \(256\)"),
        (["data.train.0={type: python_docs}", "data.validate=[{type: python_docs, split: valid}]"], "the task reads speech"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(folder, tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        train(recipe(folder, tmp_path / "x", SMALL, *overrides))


def test_a_codec_that_is_not_trained_is_no_tokenizer_of_a_run():
    untrained = Recipe.read("tts/plain", [f"tokenizers={{codec: {SMALL}, phonemes: phonemes}}"])
    with pytest.raises(RecipeError, match="tokenizers.codec: 'small_codec' is trained by a run of its own; give that run as its `path`"):
        build_task(untrained)


def test_losses_and_their_weights_agree_in_every_stage(folder):
    from mmlm.data.crops import Waves
    from mmlm.tokenizers.config import SingleCodecConfig

    codec = SingleCodecConfig(group_size=8, kept=[4, 4], width=16, decoder_blocks=1, latent_size=8, hop=160, window=320).build()
    learner = CodecLearner(codec.begin(), 16000, [128, 256], 0.5, None).train()
    batch = Waves(torch.randn(2, 1600), 160)
    for step in (0, 5):
        learner.begin_step(step, 10)
        losses, weights = learner(batch), learner.loss_weights(batch)
        assert {name: float(weight) for name, (_, weight) in losses.items()} == weights
    assert weights["diversity"] == 0
