"""A table whose columns are a picture, a sound, a molecule and two numbers, and whose target needs all of them.

Each cell says one thing: the picture shows a disc or a square, the sound rises or falls, the molecule is aromatic or not, a number is above
or below 50. The target is what most of the five say. Who lacks one of the columns, and reads the other four without a mistake, still has to
guess wherever these are two against two: in 3 of 8 rows, of which half go wrong. The model has to be right more often than that.
"""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest

from mmlm.analysis.drawing import write_png
from mmlm.data.audio_files import write_sound
from mmlm.data.episodes import Episode
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.sound import Sound

pytestmark = pytest.mark.quality
ROWS, FILES, SIDE, RATE_HZ, MINUTES = 2000, 300, 24, 16_000, 6
COLUMNS = ["drawing", "call", "smiles", "first", "second"]
RINGS = {True: ["c1ccccc1", "c1ccncc1", "c1ccsc1", "c1ccoc1"], False: ["C1CCCCC1", "C1CCNCC1", "C1CCSC1", "C1CCOC1"]}
TAILS = ["C", "O", "N", "F", "S", "Cl"]
RECIPE = """
schema: 1
name: cells-of-any-kind
task:
  type: tabular_text
  packing: row
  rows: {form: list, choices: back}
  episode: {num_rows: 24, min_shots: 1, max_shots: 1, max_columns: 5, max_classes: 2}
  cells: {pictures: patches, sounds: units, molecules: symbols, numbers: digits}
data: {train: [{type: table_file, path: TABLE, target: answer, hold_out: 0.25}]}
tokenizers:
  text: {type: text, vocabulary_size: 320}
  patches: {type: image_patches, patch: 8, max_side: 24, places: true}
  units: {type: units, num_units: 24}
  symbols: {type: molecules}
  digits: {type: numbers, whole_digits: 2, decimals: 0}
encoders: {vision: {type: patch_matrix}}
projectors: {vision: mlp}
heads: {language_model: {type: language_model, ranges: [text]}}
backbone: {width: 96, num_layers: 3, pattern: [{type: attention, num_heads: 4}]}
train:
  steps: 320
  batch_size: 3
  optimizer: {type: muon, num_iterations: 3}
  lr: 3e-3
  warmup: 0.05
  min_lr_ratio: 0.02
  weight_decay: 0.01
  log_every: 20
  checkpoint_every: 1000
"""


def drawing(is_disc: bool, rng: np.random.Generator) -> np.ndarray:
    """A disc or a square of some colour somewhere on another colour, uint8 [y, x, 3]."""
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = rng.uniform(5, 8)
    down, across = np.abs(y - rng.uniform(9, 15)), np.abs(x - rng.uniform(9, 15))
    inside = np.hypot(down, across) < radius * 1.12 if is_disc else np.maximum(down, across) < radius
    ground, colour = rng.integers(0, 100, 3), rng.integers(130, 256, 3)
    return (np.where(inside[..., None], colour, ground) + rng.integers(0, 12, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


def call(rises: bool, rng: np.random.Generator) -> Sound:
    """Three tenths of a second of a tone that rises or falls, in noise."""
    low, high = rng.uniform(250, 400), rng.uniform(1200, 2000)
    hertz = np.geomspace(*((low, high) if rises else (high, low)), num=int(0.3 * RATE_HZ))
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / RATE_HZ) + rng.normal(0, 0.01, len(hertz))
    return Sound(wave.astype(np.float32), RATE_HZ)


def molecule(is_aromatic: bool, rng: np.random.Generator) -> str:
    """A ring between two tails."""
    return f"{rng.choice(TAILS)}C{'C' * rng.integers(0, 3)}{rng.choice(RINGS[is_aromatic])}{rng.choice(TAILS[:3])}"


def number(is_large: bool, rng: np.random.Generator) -> str:
    """50 to 99, or 0 to 49."""
    return str(int(rng.integers(0, 50)) + 50 * is_large)


def write_table(folder, seed: int = 0) -> np.ndarray:
    """Write table.csv and its files; what each cell says, bool [rows, 5]."""
    rng = np.random.default_rng(seed)
    for at in range(FILES):
        for says in (0, 1):
            write_png(folder / f"{at}{'ab'[says]}.png", drawing(bool(says), rng))
            write_sound(folder / f"{at}{'ab'[says]}.wav", call(bool(says), rng))
    says_r5 = rng.random((ROWS, 5)) < 0.5
    with (folder / "table.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*COLUMNS, "answer"])
        for says in says_r5:
            shown, heard = (f"{rng.integers(FILES)}{'ab'[int(one)]}" for one in says[:2])
            cells = [f"{shown}.png", f"{heard}.wav", molecule(says[2], rng), number(says[3], rng), number(says[4], rng)]
            out.writerow([*cells, "yes" if says.sum() > 2 else "no"])
    return says_r5


def best_without(says_r5: np.ndarray, column: int) -> float:
    """Share of rows that are right at best where one column is not known and the others are: the commoner answer of each combination."""
    others, answers = np.delete(says_r5, column, axis=1), says_r5.sum(1) > 2
    _, group = np.unique(others, axis=0, return_inverse=True)
    groups = [answers[group.ravel() == one] for one in np.unique(group)]
    return sum(max(some.sum(), len(some) - some.sum()) for some in groups) / len(answers)


def test_a_target_that_needs_a_picture_a_sound_a_molecule_and_two_numbers(tmp_path):
    begun = time.monotonic()
    says_r5 = write_table(tmp_path)
    recipe = Recipe.read(RECIPE.replace("TABLE", str(tmp_path / "table.csv")), [f"output={tmp_path / 'run'}"])
    train(recipe)
    _, task, model = load_run(tmp_path / "run")
    source = recipe.data.train[0].build()
    rows = np.flatnonzero(source.held_out)
    truth, features = says_r5[rows].sum(1) > 2, source.whole.drop(["answer"]).take(rows)

    def accuracy(names: list[str]) -> float:
        problem = Episode(features.select(names), np.full(len(rows), -1), ["no", "yes"], 0, "answer")
        return float((task.predict_proba(model, problem).argmax(1) == truth).mean())

    found = accuracy(COLUMNS)
    best = {name: best_without(says_r5[rows], at) for at, name in enumerate(COLUMNS)}
    lacking = {name: accuracy([other for other in COLUMNS if other != name]) for name in COLUMNS}
    minutes = (time.monotonic() - begun) / 60
    told = ", ".join(f"{name} {lacking[name]:.3f} (at best {best[name]:.3f})" for name in COLUMNS)
    print(f"\n{len(rows)} held-out rows, {minutes:.1f} minutes: all columns {found:.3f}; without {told}")
    assert {column.medium.kind for column in features.columns if column.medium} == {"picture", "sound", "molecule"}
    assert found >= max(best.values()) + 0.05 and found > max(lacking.values())
    assert minutes <= MINUTES
