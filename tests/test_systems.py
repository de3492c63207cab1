"""The page of published systems: every system has a name, code, and a test; what it names is there; and how it reads sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmlm.cli.docs import uses
from mmlm.cli.systems import papers, systems
from mmlm.recipe import shipped

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/systems.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def found():
    return systems(ROOT, uses())


def test_every_system_has_a_name_code_and_a_test(found):
    assert len(found) > 120 and len({each.paper for each in found}) == len(found)
    for each in found:
        assert each.name and each.modules and each.tests, each.paper


def test_what_the_page_names_is_there():
    files = set(re.findall(r"\]\(\.\./([^)]+)\)", PAGE))
    assert len(files) > 150 and [file for file in sorted(files) if not (ROOT / file).is_file()] == []
    known = {*shipped(), *(f"comparisons/{name.removeprefix('comparisons/')}" for name in shipped("comparisons"))}
    recipes = {name for name in re.findall(r"`([a-z_]+/[a-z_0-9]+)`", PAGE) if not name.startswith("tests/")}
    assert len(recipes) > 25 and recipes - known == set()


def test_every_component_of_a_paper_and_every_test_of_learning_is_on_the_page(found):
    numbers = set(re.findall(r"arXiv:(\d{4}\.\d{5})", "".join(path.read_text() for path in ROOT.glob("mmlm/*/config.py"))))
    assert numbers <= {each.paper for each in found} and len(numbers) > 40
    for path in ROOT.glob("tests/quality/test_*.py"):
        assert f"[{path.stem}](../tests/quality/{path.name})" in PAGE


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Source: GenSE, arXiv:2502.02942, section 3.2", [("2502.02942", ["GenSE"])]),
        ("SimCodec of GenSE, arXiv:2502.02942; blocks, arXiv:2010.05646", [("2502.02942", ["GenSE"]), ("2010.05646", ["blocks"])]),
        ("Sources: arXiv:2006.11477 (wav2vec 2.0)", [("2006.11477", ["wav2vec 2.0"])]),
        ("bins as in Pix2Seq, arXiv:2109.10852", [("2109.10852", ["Pix2Seq"])]),
        ("eq. 4 of arXiv:1910.07467", [("1910.07467", [])]),
        ("Flamingo's gate, arXiv:2204.14198", [("2204.14198", ["Flamingo"])]),
    ],
)  # fmt: skip
def test_a_name_is_what_stands_before_a_number(text, read):
    assert list(papers(text)) == read
