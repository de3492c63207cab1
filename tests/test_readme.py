"""Every command that the README shows is one that the command line takes, and every recipe in them reads."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mmlm import cli
from mmlm.base import yaml
from mmlm.base.schema import check
from mmlm.compare import cells, read_comparison
from mmlm.recipe import Recipe
from tests.pages import commands, parsed

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = commands(TEXT)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """What the commands name, in the current folder."""
    (tmp_path / "my/texts").mkdir(parents=True)
    (tmp_path / "my/texts/one.txt").write_text("a text")
    shutil.copy(ROOT / "recipes/tabular/penguins.csv", tmp_path / "my.csv")
    shutil.copy(ROOT / "recipes/tabular/quickstart.yaml", tmp_path / "my_recipe.yaml")
    monkeypatch.chdir(tmp_path)


def test_there_are_as_many_commands_as_seen():
    assert len(COMMANDS) == 28 and {words[0] for words in COMMANDS} == set(cli.VERBS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_taken(words, files):
    verb, given = words[0], parsed(words)
    if verb in ("train", "preview", "validate"):
        assert Recipe.read(given.recipe, given.overrides).name
    if verb == "compare":
        assert len(cells(read_comparison(given.comparison, given.overrides))) > 100


def test_the_recipe_on_the_first_screen_reads():
    raw = re.search(r"```yaml\n(schema: 1.*?)```", TEXT, flags=re.DOTALL)
    assert check(Recipe, yaml.parse(raw[1], "README.md"), "README.md").backbone.num_layers == 6


def test_every_file_that_the_readme_and_the_pages_link_to_is_there():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))]
    assert len(links) > 300 and [(page.name, link) for page, link in links if not (page.parent / link).is_file()] == []
    pictures = list((ROOT / "docs/pictures").glob("*.png"))
    assert pictures and all(path.stat().st_size < 150_000 for path in pictures)
