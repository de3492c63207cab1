"""Rows as text: only a model that looks at the earlier rows of its table can learn these tables.

In each table a column of four values decides the label, by a permutation drawn for that table alone. The best possible loss of a label,
mean over ten rows, is 0.317 nats; the best accuracy after 0 to 9 examples .25 .50 .69 .83 .91 .95 .98 .99 .99 1.00 (each value seen before
tells its label, and labels seen with other values are ruled out).
"""

from __future__ import annotations

import json
import math
from typing import Literal

import numpy as np
import pytest
import torch

from mmlm.base.registry import Component
from mmlm.data.config import SOURCES, EpisodeConfig
from mmlm.data.episodes import Episode
from mmlm.data.tables import Column, Table
from mmlm.generation import score_options
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.tokenizers.table_rows import completion

pytestmark = pytest.mark.quality
VALUES, LABELS, ROWS = ["p", "q", "r", "s"], ["a", "b", "c", "d"], 10

RECIPE = """
schema: 1
name: permuted
task:
  type: tabular_text
  packing: PACKING
  rows: {form: csv, choices: front}
  episode: {num_rows: 10, min_shots: 1, max_shots: 9}
data: {train: [{type: permuted_labels}]}
tokenizers: {text: {type: text, vocabulary_size: 500}}
backbone: {width: 64, num_layers: LAYERS, pattern: [{mixer: MIXER}]}
train: {steps: 3000, batch_size: 64, lr: 2e-3, warmup: 0.05, min_lr_ratio: 0.02, log_every: 50, checkpoint_every: 3000}
"""
MIXERS = {
    "attention": "{type: attention, num_heads: 4}",
    "mamba2": "{type: mamba2, head_size: 16, state_size: 64}",
}


@SOURCES.register("tests.quality.test_tabula:PermutedLabels", source="the decisive check of row-causal packing")
class PermutedLabelsConfig(Component):
    """Tables whose labels are a fresh permutation of a column's values."""

    type: Literal["permuted_labels"] = "permuted_labels"
    weight: float = 1.0

    def build(self) -> PermutedLabels:
        """The source."""
        return PermutedLabels()


class PermutedLabels:
    """Tasks from such tables."""

    def draw(self, rng: np.random.Generator, config: EpisodeConfig) -> Episode:
        """One table of ten rows."""
        codes, meaning = rng.integers(4, size=ROWS), rng.permutation(4)
        table = Table("permuted", [Column("x", "category", codes.astype(float), VALUES)])
        return Episode(table, meaning[codes], LABELS, ROWS - 1, "y")


def last_loss(folder) -> float:
    """Mean loss of a label over the last 200 steps; the log's mean counts the end token too, which is always the same."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return 2 * float(np.mean([line["loss"] for line in lines[-4:]]))


def accuracy_by_shots(folder, packing: str, tables: int = 400) -> np.ndarray:
    """Accuracy after 0 to 9 examples, scored as predictions are."""
    _, task, model = load_run(folder)
    rng = np.random.default_rng(12345)
    options = [torch.tensor(ids) for ids in task.text.ids([completion(label) for label in LABELS])]
    right = np.zeros(ROWS)
    for _ in range(tables):
        episode = PermutedLabels().draw(rng, EpisodeConfig())
        segments = task.example(episode, rng).segments
        prompts = []
        for row in range(ROWS):
            seen = [] if packing == "row" else [segment.ids for segment in segments[:row]]
            prompts.append(torch.cat([*seen, segments[row].ids[segments[row].weight == 0]]))
        scores = score_options(model, prompts, [options] * ROWS)
        right += [int(score.argmax()) == label for score, label in zip(scores, episode.labels, strict=True)]
    return right / tables


def run(tmp_path, mixer: str, packing: str, layers: int, *overrides: str):
    """A finished run and its folder."""
    text = RECIPE.replace("MIXER", MIXERS[mixer]).replace("PACKING", packing).replace("LAYERS", str(layers))
    recipe = Recipe.read(text, [f"output={tmp_path / 'run'}", *overrides])
    torch.set_num_threads(1)
    train(recipe)
    return tmp_path / "run"


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_that_see_their_table_learn_the_permutation_from_the_examples(tmp_path, mixer):
    folder = run(tmp_path, mixer, "table", 3)
    loss, accuracy = last_loss(folder), accuracy_by_shots(folder, "table")
    print(f"\n{mixer}: loss {loss:.3f}, accuracy after 0 to 9 examples", np.round(accuracy, 3).tolist())
    assert loss <= 0.40 and accuracy[9] >= 0.95
    assert accuracy[9] > accuracy[3] > accuracy[1] > accuracy[0] and abs(accuracy[0] - 0.25) < 0.08


def test_rows_alone_can_only_guess(tmp_path):
    folder = run(tmp_path, "attention", "row", 3, "train.steps=1000")
    loss, accuracy = last_loss(folder), accuracy_by_shots(folder, "row")
    print(f"\nrows alone: loss {loss:.3f}, accuracy {accuracy.mean():.3f}")
    assert abs(accuracy.mean() - 0.25) < 0.03 and abs(loss - math.log(4)) < 0.1
