"""A package of somebody else adds a mixer and a tokenizer, and a recipe trains with both."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MIXER = '''
from typing import Literal

from pydantic import Field
from torch import nn

from mmlm.backbone.config import MIXERS
from mmlm.base.registry import Component


@MIXERS.register("their_mixer:Before", source="them, 2026")
class BeforeConfig(Component):
    """Adds a scaled copy of an earlier token."""

    type: Literal["before"] = "before"
    steps: int = Field(1, ge=1)


class Before(nn.Module):
    """Works on the plan of its sequences, so packing changes nothing."""

    def __init__(self, config, width):
        super().__init__()
        self.steps, self.scale = config.steps, nn.Linear(width, width)

    def init_state(self, batch, max_length, dtype, device):
        raise NotImplementedError

    def forward(self, x_btd, layout, state=None):
        x_nd = x_btd.flatten(0, 1)
        y_nd = x_nd.new_zeros(x_nd.shape)
        for bucket in layout.plan(causal=True).buckets:
            late, early = bucket.index[:, self.steps :], bucket.index[:, : -self.steps]
            y_nd = y_nd.index_copy(0, late.flatten(), self.scale(x_nd[early.flatten()]))
        return y_nd.view_as(x_btd), None, {}
'''

TOKENIZER = '''
import json
from pathlib import Path
from typing import Literal

import torch

from mmlm.base.registry import Component
from mmlm.stream import Segment
from mmlm.tokenizers.config import TOKENIZERS


@TOKENIZERS.register("their_tokenizer:Letters", source="them, 2026")
class LettersConfig(Component):
    """One token a byte."""

    type: Literal["letters"] = "letters"


class Letters:
    first = []

    def __init__(self, config):
        self.added = []

    @property
    def sizes(self):
        return {"text": 256 + len(self.added)}

    def add_tokens(self, tokens):
        self.added += [token for token in tokens if token not in self.added]

    def ids(self, texts):
        return [self._ids(text) for text in texts]

    def _ids(self, text):
        found = []
        while text:
            mark = next((token for token in self.added if text.startswith(token)), None)
            found += [256 + self.added.index(mark)] if mark else list(text[0].encode())
            text = text[len(mark or text[0]) :]
        return found

    def encode(self, text):
        return Segment("text", torch.tensor(self._ids(text)), weight=1.0)

    def decode(self, ids):
        return "".join(self.added[i - 256] if i > 255 else chr(i) for i in getattr(ids, "ids", ids))

    def token(self, text):
        return 256 + self.added.index(text)

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "letters.json").write_text(json.dumps(self.added))

    def load(self, folder):
        self.added = json.loads((Path(folder) / "letters.json").read_text())
'''

RECIPE = """
schema: 1
name: theirs
output: run
task: {type: tabular_text, context: 1200, episode: {num_rows: 6, max_shots: 4, max_columns: 2, max_classes: 3}}
data: {train: [{type: structural_tables}]}
tokenizers: {text: {type: letters}}
backbone: {width: 16, num_layers: 2, pattern: [{mixer: {type: before, steps: 2}}, {mixer: {type: attention, num_heads: 2}}]}
train: {steps: 2, batch_size: 2, log_every: 1}
"""


def test_a_recipe_trains_with_a_mixer_and_a_tokenizer_of_another_package(tmp_path):
    (tmp_path / "their_mixer.py").write_text(MIXER)
    (tmp_path / "their_tokenizer.py").write_text(TOKENIZER)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[mmlm.mixers]\nbefore = their_mixer:BeforeConfig\n[mmlm.tokenizers]\nletters = their_tokenizer:LettersConfig\n"
    )
    (tmp_path / "theirs.yaml").write_text(RECIPE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"}

    def call(*words: str) -> str:
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "before" in call("-m", "mmlm", "list", "mixers") and "letters" in call("-m", "mmlm", "list", "tokenizers")
    call("-m", "mmlm", "train", "theirs.yaml")
    code = (
        "from mmlm.run import load_run; _, task, model = load_run('run'); "
        "print(type(model.backbone.layers[0].mixer).__name__, type(task.text).__name__, model.vocabulary.sizes)"
    )
    assert call("-c", code).strip() == "Before Letters {'text': 259}"


def test_the_component_that_the_readme_shows_trains_as_it_stands(tmp_path):
    section = (ROOT / "README.md").read_text().partition("## A component of your own")[2].partition("\n## ")[0]
    config, module, points = (match[1] for match in re.finditer(r"```(?:python|toml)\n(.*?)```", section, re.DOTALL))
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(config)
    (tmp_path / "my_package" / "shift.py").write_text(module)
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points.replace('project.entry-points."mmlm.mixers"', "mmlm.mixers").replace('"', ""))
    pattern = re.search(r"`(pattern: [^`]*)`", section)[1]
    recipe = RECIPE.replace("{text: {type: letters}}", "{text: {type: text, vocabulary_size: 400}}")
    (tmp_path / "theirs.yaml").write_text(re.sub(r"pattern: \[.*\]", pattern, recipe))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)]), "OMP_NUM_THREADS": "1"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "mmlm", *words)
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    assert "shift" in call("list", "mixers").stdout
    done = call("train", "theirs.yaml")
    assert done.returncode == 0 and "2 steps" in done.stdout, done.stderr
    (tmp_path / "my_package" / "shift.py").write_text("")
    done = call("train", "theirs.yaml", "output=other")
    assert done.returncode == 2 and "registered to build my_package.shift:Shift, but my_package.shift has no Shift" in done.stderr
