"""A text decoder that several tests let see."""

from __future__ import annotations

import pytest

from mmlm.recipe import Recipe
from mmlm.run import train


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two steps of the recipe of a small corpus."""
    run = tmp_path_factory.mktemp("text") / "run"
    quick = ["train.steps=2", "train.batch_size=1", "train.validate_every=0", "train.sample_every=0", "data.validate=[]"]
    small = ["tokenizers.text.vocabulary_size=300", "backbone.width=32", "backbone.pattern=(*-)x2", "task.context=64"]
    train(Recipe.read("probes/text", [*quick, *small, f"output={run}"]))
    return str(run)
