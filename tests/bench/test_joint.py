"""What several tasks in one run cost, beside each of them in a run of its own: at most a tenth more for as many samples."""

from __future__ import annotations

import time
from statistics import median

import pytest

from mmlm.recipe import Recipe
from mmlm.run import train

pytestmark = pytest.mark.bench
STEPS, WARM = 24, 6
TASKS = """
tasks:
  - {type: grounded, name: see, kinds: {grounded_caption: 1, expression: 1}, requests: 3, batch_size: 10}
  - {type: tabular, name: tables, episode: {num_rows: 40, max_shots: 32, max_columns: 8}, batch_size: 4}
  - {type: text, name: write, context: 256, batch_size: 4}
  - {type: regression_transformer, properties: [logp], max_tokens: 64, batch_size: 16, objective: {type: permutation, alternate_every: 1}}
data: {train: [{type: scenes}, {type: structural_tables}, {type: python_docs}, {type: moses, count: 2000}]}
"""
DECODER = f"""
schema: 1
name: joint
tokenizers:
  patches: {{type: image_patches, patch: 8, margin: 4, max_side: 64, places: true}}
  text: {{type: text, vocabulary_size: 400}}
  boxes: {{type: boxes, num_bins: 48}}
  sequence: {{type: molecules}}
  numbers: {{type: numbers, whole_digits: 1, decimals: 2}}
encoders:
  vision: {{type: patch_stem, channels: [32, 64, 96]}}
  cell: {{type: table_cells, hidden: 128}}
heads: {{language_model: {{type: language_model, ranges: [text, special, obj, loc, label, number, molecule]}}}}
backbone: {{width: 128, num_layers: 4, pattern: [{{type: attention, num_heads: 4}}]}}
train: {{steps: {STEPS}, batch_size: 4, log_every: 1000, checkpoint_every: 1000}}
"""
USED = {
    "tabular": ["cell"],
    "text": ["text"],
    "grounded": ["text", "boxes", "patches", "vision"],
    "regression_transformer": ["sequence", "numbers"],
}
WRITTEN = {
    "tabular": ["label"],
    "text": ["text"],
    "grounded": ["text", "special", "obj", "loc"],
    "regression_transformer": ["number", "molecule"],
}


def seconds_a_step(recipe: Recipe, folder) -> float:
    """Median CPU seconds of a step, with its data."""
    clock: list[float] = []
    train(recipe.model_copy(update={"output": str(folder)}), progress=lambda step, line: clock.append(time.process_time()))
    return median(after - before for before, after in zip(clock[WARM:], clock[WARM + 1 :], strict=False))


def test_a_step_of_all_tasks_costs_what_a_step_of_each_costs_together(tmp_path):
    joint = Recipe.read(DECODER + TASKS)
    alone = {}
    for one in joint.alone:
        used = USED[one.tasks[0].type]
        parts = {key: {name: each for name, each in getattr(one, key).items() if name in used} for key in ("tokenizers", "encoders")}
        own = one.model_copy(update={**parts, "heads": _heads(one)})
        alone[one.tasks[0].called] = seconds_a_step(own, tmp_path / one.tasks[0].called)
    together = seconds_a_step(joint, tmp_path / "joint")
    told = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in alone.items())
    print(f"\njoint step {1000 * together:.0f} ms; alone {told}: {together / sum(alone.values()):.2f} of their sum (at most 1.1)")
    assert together <= 1.1 * sum(alone.values())


def _heads(recipe: Recipe):
    """The head of a task alone predicts its own ranges."""
    return {name: head.model_copy(update={"ranges": WRITTEN[recipe.tasks[0].type]}) for name, head in recipe.heads.items()}
