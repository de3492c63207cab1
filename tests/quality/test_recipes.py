"""Every shipped recipe as it is, for two steps: data read, tokenizers fitted, trained from the runs that it names, loaded and measured.

A recipe that names a run comes after the recipe that makes it, in one folder, as a person would type them. Tests in the suite hold that
recipes are valid; here each really runs.
"""

from __future__ import annotations

import json
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from PIL import Image

from mmlm.recipe import Recipe, shipped
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality

SHORT = ["train.steps=2", "train.max_seconds=null", "train.log_every=1"]
SMALL = {  # 300 million weights take two steps here too, but not in the memory of a laptop
    "joint/full": ["backbone.width=128", "backbone.num_layers=2", "backbone.pattern=[{type: attention, num_heads: 4}]", "train.workers=2"],
}
OWN = {  # what the comments of a recipe ask a person for
    "text/finetune": [
        "backbone.pretrained=runs/text",
        "tokenizers.text.path=runs/text/tokenizers/text",
        "task.end=null",
    ],
}
NAMED = re.compile(r"^[^#]*?runs/([\w-]+)", re.MULTILINE)


def in_order() -> list[str]:
    """The shipped recipes, those first whose runs others begin from."""
    known = {name: Recipe.read(path) for name, path in shipped().items()}
    made = {Path(recipe.output).name: name for name, recipe in known.items()}
    before = {name: {made[run] for run in NAMED.findall(path.read_text(encoding="utf-8"))} for name, path in shipped().items()}
    before["text/finetune"] = {"probes/text"}
    return list(TopologicalSorter(before).static_order())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the recipes say a person brings."""
    place = tmp_path_factory.mktemp("place")
    (place / "texts").mkdir()
    notes = [f"Line {at} of the notes says that {at} and {at} is {2 * at}." for at in range(400)]
    (place / "texts" / "notes.txt").write_text("\n\n".join(notes))
    places, ways = ("river", "house", "boat", "tower", "garden"), ("old", "near", "small", "white")
    sentences = [f"The {what} {when} {how}.\n" for what in places for when in ("is", "was", "looks", "grows", "stays") for how in ways]
    (place / "sentences.txt").write_text("".join(sentences))
    (place / "cells").mkdir()
    lines = []
    for at in range(40):
        Image.new("RGB", (64, 48), (200, 180, 5 * at)).save(place / "cells" / f"{at}.png")
        lines.append(json.dumps({"image": f"{at}.png", "things": [{"label": "cell", "box": [at, 4, at + 20, 30]}]}))
    (place / "cells" / "pictures.jsonl").write_text("\n".join(lines) + "\n")
    return place


@pytest.mark.parametrize("name", in_order())
def test_a_shipped_recipe_trains_and_is_measured(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    recipe = Recipe.read(name, [*SHORT, *SMALL.get(name, []), *OWN.get(name, [])])
    result = train(recipe)
    assert result.step == 2
    assert (Path(recipe.output) / "recipe.yaml").is_file()
    few = ["evaluate.max_queries=8", "evaluate.seeds=1", "evaluate.shots=[8]"] if name.startswith("tabular/") else ["data.test_samples=2"]
    found = evaluate(recipe.output, few)
    assert found and (Path(recipe.output) / "report.html").stat().st_size > 1000
