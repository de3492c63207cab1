"""One model of five tasks beside five models of one task each: same size, same recipe, as many samples of each task.

The recipe is joint/quickstart with its codec, from nothing: synthesized phrases, generated scenes, real and generated tables, molecules of
MOSES. Test samples of the recipe are measured by each run in the same way. A fifth of the phrases is held out, as words of a few sounds
scatter by more than is asked, and all is trained twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality
QUICK = [
    "train.validate_every=0",
    "train.sample_every=0",
    "evaluate.judges=[words, dnsmos]",
    "evaluate.max_sounds=36",
    "data.test_samples=128",
]
STEPS, SEEDS = 700, (0, 1)
HELD_OUT = {"hold_out": 0.2}  # of 360 phrases
TOKENIZERS = {
    "speak": ["phonemes", "prosody", "codec"],
    "clean": ["codec"],
    "see": ["patches", "text", "boxes"],
    "tables": [],
    "molecules": ["sequence", "numbers"],
}
JUDGES = {"speak": ["words"], "clean": ["dnsmos"]}  # each hears more than was made, for what it is compared with
ENCODERS = {"see": ["vision"], "tables": ["cell"]}
RANGES = {"see": ["text", "special", "obj", "loc"], "tables": ["label"], "molecules": ["number", "molecule"]}


def codec_run(folder: Path) -> Path:
    train(Recipe.read("joint/codec", [f"output={folder / 'codec'}", "train.max_seconds=null", *QUICK[:2]]))
    return folder / "codec"


def joint_recipe(folder: Path, seed: int) -> Recipe:
    """The recipe, which ends by its steps and not by the clock, as its parts must."""
    ends = [f"train.steps={STEPS}", "train.max_seconds=null", f"seed={seed}"]
    given = [f"output={folder / str(seed) / 'joint'}", f"tokenizers.codec.path={folder / 'codec'}", *ends, *QUICK]
    recipe = Recipe.read("joint/quickstart", given)
    train_on = [each.model_copy(update=HELD_OUT) if each.type == "synthesized" else each for each in recipe.data.train]
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": train_on})})


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
    judged = recipe.evaluate.model_copy(update={"judges": JUDGES.get(name, [])})
    own = {
        "heads": heads,
        "tokenizers": tokenizers,
        "encoders": encoders,
        "evaluate": judged,
        "output": str(folder / str(recipe.seed) / name),
    }
    return recipe.model_copy(update=own)


def shown(who: str, found: dict) -> dict:
    """What was measured of a task, printed."""
    print(f"{who}: {json.dumps(found['metrics'])}", flush=True)
    return found["metrics"]


def five_in_one(folder: Path, seed: int) -> dict[str, dict]:
    """What is measured of the joint model, by task."""
    recipe = joint_recipe(folder, seed)
    train(recipe)
    return {name: shown(f"joint {name}", found) for name, found in evaluate(recipe.output)["tasks"].items()}


def one_by_one(folder: Path, seed: int) -> dict[str, dict]:
    """What is measured of a model of each task."""
    found = {}
    for one in joint_recipe(folder, seed).alone:
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


def gains(together: list[dict], apart: list[dict]) -> dict[str, float]:
    """By how much the joint models are better, relative, by task, means of the seeds; printed."""
    found = {}
    for name, (key, is_more) in MAIN.items():
        joint, single = (mean(one[name][key] for one in measured) for measured in (together, apart))
        found[name] = (joint - single) / single * (1 if is_more else -1)
        print(f"{name:<10} {key:<12} joint {joint:.3f}, alone {single:.3f}: {found[name]:+.1%}")
    return found


def test_no_task_is_more_than_a_twentieth_worse_and_one_is_better(folder):
    found = gains(*zip(*((five_in_one(folder, seed), one_by_one(folder, seed)) for seed in SEEDS), strict=True))
    assert max(found.values()) > 0 and min(found.values()) >= -0.05
