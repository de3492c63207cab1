"""Three tiny finished runs: one of text, one of pictures, one of tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmlm.recipe import Recipe
from mmlm.run import train

QUIET = [
    "train.steps=2",
    "train.batch_size=2",
    "train.validate_every=0",
    "train.sample_every=0",
    "backbone.width=16",
    "backbone.num_layers=1",
]
TEXT = """
schema: 1
name: words
task: {{type: text, context: 32}}
data: {{train: [{{type: text_files, path: {lines}, hold_out: 0.2}}]}}
tokenizers: {{text: {{type: text, vocabulary_size: 300}}}}
backbone: {{width: 16, num_layers: 1, pattern: [{{type: attention, num_heads: 2}}]}}
heads: {{language_model: {{type: language_model}}}}
"""


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("serving")
    lines = [json.dumps({"text": f"The {number}. line says how many lines came before it: {number}."}) for number in range(24)]
    (home / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (home / "words.yaml").write_text(TEXT.format(lines=home / "lines.jsonl"), encoding="utf-8")
    recipes = {
        "words": (str(home / "words.yaml"), []),
        "scenes": ("grounded_captioning/quickstart", ["encoders.vision.channels=[4, 4, 8]", "task.max_tokens=24", "data.validate=[]"]),
        "tables": ("tabular/quickstart", []),
    }
    for name, (recipe, more) in recipes.items():
        train(Recipe.read(recipe, [*QUIET, *more, f"output={home / 'runs' / name}"]))
    return {name: home / "runs" / name for name in recipes}
