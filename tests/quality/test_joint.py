"""One model of five tasks beside five models of one task each: same size, same recipe, as many samples of each task.

The recipe is joint/quickstart with its codec, from nothing: synthesized phrases, generated scenes, real and generated tables, molecules of
MOSES. Test samples of the recipe are measured by each run in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality
QUICK = ["train.validate_every=0", "train.sample_every=0", "evaluate.judges=[words, voice, dnsmos]"]
STEPS = 700  # twelve minutes of two cores
TOKENIZERS = {
    "speak": ["phonemes", "prosody", "codec"],
    "clean": ["codec"],
    "see": ["patches", "text", "boxes"],
    "tables": [],
    "molecules": ["sequence", "numbers"],
}
ENCODERS = {"see": ["vision"], "tables": ["cell"]}
RANGES = {"see": ["text", "special", "obj", "loc"], "tables": ["label"], "molecules": ["number", "molecule"]}


def codec_run(folder: Path) -> Path:
    train(Recipe.read("joint/codec", [f"output={folder / 'codec'}", "train.max_seconds=null", *QUICK[:2]]))
    return folder / "codec"


def joint_recipe(folder: Path) -> Recipe:
    """The recipe, which ends by its steps and not by the clock, as its parts must."""
    ends = [f"train.steps={STEPS}", "train.max_seconds=null"]
    given = [f"output={folder / 'joint'}", f"tokenizers.codec.path={folder / 'codec'}", *ends, *QUICK]
    return Recipe.read("joint/quickstart", given)


def alone(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of one task, without what others read and write."""
    name = recipe.tasks[0].called
    heads = dict(recipe.heads)
    if name in RANGES:
        heads = {"language_model": heads["language_model"].model_copy(update={"ranges": RANGES[name]})}
    else:
        heads.pop("language_model")
    tokenizers = {key: recipe.tokenizers[key] for key in TOKENIZERS[name]}
    encoders = {key: recipe.encoders[key] for key in ENCODERS.get(name, [])}
    own = {"heads": heads, "tokenizers": tokenizers, "encoders": encoders, "output": str(folder / name)}
    return recipe.model_copy(update=own)


def shown(who: str, found: dict) -> dict:
    """What was measured of a task, printed."""
    print(f"{who}: {json.dumps(found['metrics'])}", flush=True)
    return found["metrics"]


def five_in_one(folder: Path) -> dict[str, dict]:
    """What is measured of the joint model, by task."""
    recipe = joint_recipe(folder)
    train(recipe)
    return {name: shown(f"joint {name}", found) for name, found in evaluate(recipe.output)["tasks"].items()}


def one_by_one(folder: Path) -> dict[str, dict]:
    """What is measured of a model of each task."""
    found = {}
    for one in joint_recipe(folder).alone:
        own = alone(one, folder)
        train(own)
        found[own.tasks[0].called] = shown(f"alone {own.tasks[0].called}", evaluate(own.output))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    codec_run(folder)
    return folder


MAIN = {  # what counts of each task, and whether more of it is better
    "speak": ("wer", False),
    "clean": ("dnsmos_ovrl", True),
    "see": ("f1_all", True),
    "tables": ("accuracy_32", True),
    "molecules": ("rmse", False),
}


def gains(together: dict, apart: dict) -> dict[str, float]:
    """By how much the joint model is better, relative, by task; printed."""
    found = {}
    for name, (key, is_more) in MAIN.items():
        joint, single = together[name][key], apart[name][key]
        found[name] = (joint - single) / single * (1 if is_more else -1)
        print(f"{name:<10} {key:<12} joint {joint:.3f}, alone {single:.3f}: {found[name]:+.1%}")
    return found


def test_no_task_is_more_than_a_twentieth_worse_and_one_is_better(folder):
    found = gains(five_in_one(folder), one_by_one(folder))
    assert max(found.values()) > 0 and min(found.values()) >= -0.05
