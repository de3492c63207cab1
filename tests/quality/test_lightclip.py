"""Three levels of alignment against one (LightCLIP against CLIP): equal steps, equal exported towers, things that were never trained on.

Stamps and emoji that were held out find their names among those of their kind, and names their pictures; what helps is what they share with
things of the training part. Of each loss it is told what is found without it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmlm.data.cutouts import FONT
from mmlm.data.tuxpaint import STAMPS
from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from mmlm.weights import read_tensors

NAMES = Path(__file__).resolve().parents[3] / "shared" / "data" / "emoji_names" / "emoji_names.jsonl.gz"
pytestmark = [
    pytest.mark.quality,
    pytest.mark.skipif(not STAMPS.is_dir(), reason="needs: apt-get install tuxpaint-stamps-default"),
    pytest.mark.skipif(not FONT.is_file(), reason="needs: apt-get install fonts-noto-color-emoji"),
    pytest.mark.skipif(not NAMES.is_file(), reason="needs the names of emoji, which the checkout does not hold"),
]
SEEDS = (0, 1, 2)
DEALT = "hold_out: 0.15, validate_share: 0.05"
SOURCES = f"data.train=[{{type: stamps, {DEALT}}}, {{type: emoji, path: {NAMES}, {DEALT}}}]"
WITHOUT = {"soft targets": "task.soft_clip.alpha=0", "matching": "task.token_matching=null", "hidden words": "task.caption_mlm=null"}


def found(folder: Path, recipe: str, seed: int, *overrides: str) -> float:
    """R@1 in percent of what was held out: mean of both ways and of stamps and emoji."""
    quiet = ["train.validate_every=0", "train.sample_every=0"]
    train(Recipe.read(f"image_text/{recipe}", [SOURCES, f"seed={seed}", f"output={folder}", *quiet, *overrides]))
    metrics = evaluate(folder)["metrics"]
    print(f"\n{folder.name}: " + ", ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    both = [value for name, value in metrics.items() if name.startswith("mean_r1: held out")]
    assert len(both) == 2
    return float(np.mean(both))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Mean R@1 of both recipes, a number a seed."""
    folder = tmp_path_factory.mktemp("pairs")
    return folder, {recipe: [found(folder / f"{recipe}-{seed}", recipe, seed) for seed in SEEDS] for recipe in ("clip", "lightclip")}


def test_three_levels_find_more_than_one_at_equal_steps(measured) -> None:
    folder, r1 = measured
    print(f"\nR@1 of both ways: {r1}")
    towers = [read_tensors(folder / f"{recipe}-0" / "open_clip_model.safetensors") for recipe in r1]
    assert {name: each.shape for name, each in towers[0].items()} == {name: each.shape for name, each in towers[1].items()}
    assert np.mean(r1["lightclip"]) >= np.mean(r1["clip"]) + 2


def test_what_each_level_is_worth(measured) -> None:
    """Told, not asked for: with one seed a level's share drowns in chance."""
    folder, r1 = measured
    for name, override in WITHOUT.items():
        without = found(folder / name.replace(" ", "_"), "lightclip", SEEDS[0], override)
        print(f"without {name}: {without:.2f}, with: {r1['lightclip'][0]:.2f}")
        assert np.isfinite(without)
