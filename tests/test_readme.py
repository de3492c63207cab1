"""Every command that the README shows is one that the command line takes, and every recipe in them reads."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from mmlm import cli
from mmlm.base import yaml
from mmlm.base.schema import check
from mmlm.compare import cells, read_comparison
from mmlm.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line, comments=True)[1:] for line in TEXT.splitlines() if line.startswith("    mmlm ")]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """What the commands name, in the current folder."""
    (tmp_path / "my/texts").mkdir(parents=True)
    (tmp_path / "my/texts/one.txt").write_text("a text")
    shutil.copy(ROOT / "recipes/tabular/penguins.csv", tmp_path / "my.csv")
    shutil.copy(ROOT / "recipes/tabular/quickstart.yaml", tmp_path / "my_recipe.yaml")
    monkeypatch.chdir(tmp_path)


def test_there_are_as_many_commands_as_seen():
    assert len(COMMANDS) == 27 and {words[0] for words in COMMANDS} == set(cli.VERBS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_taken(words, files):
    verb, *rest = words
    parser = cli.Parser(prog=verb, allow_abbrev=False)
    importlib.import_module(f"mmlm.cli.{cli.VERBS[verb].module}").options(parser)
    given = parser.parse_intermixed_args(rest)
    if verb in ("train", "preview", "validate"):
        assert Recipe.read(given.recipe, given.overrides).name
    if verb == "compare":
        assert len(cells(read_comparison(given.comparison, given.overrides))) > 100


def test_the_recipe_on_the_first_screen_reads():
    raw = re.search(r"```yaml\n(schema: 1.*?)```", TEXT, flags=re.DOTALL)
    assert check(Recipe, yaml.parse(raw[1], "README.md"), "README.md").backbone.num_layers == 6
