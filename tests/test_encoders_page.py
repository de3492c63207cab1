"""The page about encoders does what it says: its Python runs from top to bottom, its commands are taken."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm import cli
from mmlm.analysis.drawing import write_png
from mmlm.recipe import Recipe
from mmlm.run import build_task

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/encoders.md").read_text(encoding="utf-8")
RECIPE = """
schema: 1
name: towers
task:
  type: image_text
  towers:
    type: open_clip
    sizes: {size: 12, picture: {image_size: 32, width: 24, layers: 2, heads: 2}, text: {context: 16, width: 16, layers: 2, heads: 2}}
data: {train: [{type: scenes, count: 12}]}
"""


@pytest.mark.slow
def test_the_python_of_the_page_runs(text_folder, tmp_path, monkeypatch) -> None:
    for package in ("open_clip", "faiss", "sklearn", "sentence_transformers"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    Path("pets").mkdir()
    for name in "abc":
        write_png(Path(f"pets/{name}.png"), np.random.default_rng(ord(name)).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    shutil.copytree(text_folder, "runs/words")
    Path("runs/clip").mkdir()
    Path("runs/clip/recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    task = build_task(Recipe.read(RECIPE))
    task.learner(0)
    task.save(Path("runs/clip"))
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["vectors"].shape == (3, 12) and names["bad"] == [] and names["shares"].shape == names["cosines"].shape == (3, 2)
    assert len(names["found"][0]) == 2 and np.allclose(names["states"].shape[0], 2) and Path("passed_on/tokenizer.json").is_file()


def test_the_commands_of_the_page_are_taken() -> None:
    commands = [shlex.split(line)[1:] for line in TEXT.splitlines() if line.startswith("    mmlm ")]
    assert [words[0] for words in commands] == ["encode", "search", "export", "export"]
    for verb, *rest in commands:
        parser = cli.Parser(prog=verb, allow_abbrev=False)
        importlib.import_module(f"mmlm.cli.{verb}").options(parser)
        parser.parse_intermixed_args(rest)
