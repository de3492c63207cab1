"""Codes of pictures learn to show more than a smaller picture, after minutes of the shipped recipe, on pictures that were never trained.

Three quantizers of 256 codes each, 600 steps each.
"""

from __future__ import annotations

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from mmlm.tasks.image_codes import SMALL, SQUARES

pytestmark = [pytest.mark.quality, pytest.mark.slow]
SCENES = [f"data.{part}=[{{type: scenes, split: {part}}}]" for part in ("train", "validate", "test")]
QUICK = ["train.steps=600", "train.checkpoint_every=600", "train.sample_every=0"]


def figures(folder, *changes):
    """Of the recipe with these changes: PSNR of the model and of the baselines, and the share of codes in use, in effect."""
    train(Recipe.read("image_codes/small", [*QUICK, f"output={folder}", *changes]))
    found = evaluate(folder)
    told = {name: row["psnr"] for name, row in found["baselines"].items()}
    print(f"\n{folder.name}: {found['metrics']}; PSNR of {told}")
    return found["metrics"]["psnr"], told, found["metrics"]["perplexity"]


def test_drawn_scenes_are_shown_better_than_by_the_mean_colour_of_each_square(tmp_path):
    mine, others, used = figures(tmp_path / "scenes", *SCENES)
    assert mine > others[SQUARES] + 2.0 and used > 60 / 256


@pytest.mark.parametrize(
    ("quantizer", "weights"),
    [
        ("{type: vq, book_size: 256, memory: 0.95}", "{squared: 2}"),
        ("{type: fsq, levels: [8, 8, 4]}", "{squared: 2}"),
        ("{type: lfq, bits: 8}", "{squared: 2, commitment: 0.1, entropy: 0.1}"),
    ],
    ids=["vq", "fsq", "lfq"],
)
def test_things_never_seen_are_shown_better_than_by_a_smaller_picture_of_as_many_bits(tmp_path, quantizer, weights):
    changes = [f"tokenizers.codes.quantizer={quantizer}", f"train.loss_weights={weights}"]
    mine, others, used = figures(tmp_path / "things", *changes)
    assert mine > others[SMALL] + 1.0 and used > 60 / 256
