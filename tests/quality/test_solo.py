"""SOLO's stages: with 30 % plain text beside the pictures a decoder keeps what it knew of texts, without it forgets; and what naming single
things first is worth to captions afterwards.

Each from the shipped recipes: the whole first stage against texts, fewer steps for the order of stages. Texts are documentation of Python
that was never trained on.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.data.config import PythonDocsConfig, ScenesConfig
from mmlm.data.scenes.objects import COLORS, SHAPES
from mmlm.interop.load import load
from mmlm.model import MultimodalLM
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.stream import NO_LABEL, pack

pytestmark = pytest.mark.quality
STEPS = 900  # of a stage that is compared with and without texts: the whole first one, as few steps shake both
STAGED = 75  # of each of two stages, against twice as many of the second alone
CAPTIONS = 100
QUIET = ["train.validate_every=0", "train.sample_every=0", "data.validate=[]", "train.max_seconds=null"]
CAPTION = ["tasks.0.kinds={caption: 1}", "tasks.0.requests=1"]
PICTURES = [
    "tasks=[{type: grounded, kinds: {name: 1}, mask: causal, batch_size: 28}]",
    "data.train=[{type: scenes, max_things: 1}]",
    "data.test=[]",
]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> str:
    run = tmp_path_factory.mktemp("text") / "run"
    train(Recipe.read("probes/text", [*QUIET, f"output={run}"]))
    return str(run)


def trained(stage: str, before: str, output: Path, steps: int, *more: str) -> str:
    """A stage from the run before it."""
    given = [f"backbone.pretrained={before}", f"tokenizers.text.path={before}/tokenizers/text", f"train.steps={steps}", f"output={output}"]
    train(Recipe.read(f"solo/{stage}", [*QUIET, *given, *more]))
    return str(output)


def perplexity(text_run: str, model: MultimodalLM) -> float:
    """Of a token of the held-out texts."""
    _, task, _ = load_run(text_run, ["task.test_context=null"])
    records = PythonDocsConfig(split="test").build().everything()
    return task.score(task.predict(model, records), records)["perplexity"]


def test_a_stage_with_plain_text_keeps_what_was_known_of_texts_and_one_without_does_not(text_run, tmp_path) -> None:
    found = {"before": perplexity(text_run, load(text_run))}
    found["with text"] = perplexity(text_run, load(trained("stage1", text_run, tmp_path / "with", STEPS)))
    found["without"] = perplexity(text_run, load(trained("stage1", text_run, tmp_path / "without", STEPS, *PICTURES)))
    print("\nperplexity of held-out text: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    assert found["with text"] < 1.05 * found["before"] < found["without"]


@torch.no_grad()
def word_loss(run: str) -> float:
    """Nats of a token of the words for colours and shapes, in captions of unseen scenes."""
    _, see, model = load_run(run)
    word = re.compile(rf"\b({'|'.join([*COLORS, *SHAPES])})\b")
    found: list[float] = []
    for record in ScenesConfig(split="test").build().everything()[:CAPTIONS]:
        batch = pack([see.example(record, np.random.default_rng(0))], model.vocabulary)
        h_btd, _ = model.hidden(batch)
        at = batch.labels[0] != NO_LABEL
        nats = torch.nn.functional.cross_entropy(
            model.heads["language_model"].predict(h_btd[0][at]).float(), batch.labels[0][at], reduction="none"
        )
        text = record.captions[0].text
        ids = see.text.ids([text])[0]
        ends = [len(see.text.decode(ids[: place + 1])) for place in range(len(ids))]
        spans = [each.span() for each in word.finditer(text.lower())]
        assert ends[-1] == len(text) and spans and len(nats) == len(ids) + 1
        for place, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if any(start < stop and first < end for first, stop in spans):
                found.append(float(nats[place]))
    return float(np.mean(found))


@pytest.mark.parametrize("seed", range(3))
def test_what_naming_single_things_first_is_worth_to_captions(text_run, tmp_path, seed) -> None:
    first = trained("stage1", text_run, tmp_path / "first", STAGED, f"seed={seed}")
    staged = word_loss(trained("stage2", first, tmp_path / "staged", STAGED, *CAPTION, f"seed={seed}"))
    alone = word_loss(trained("stage2", text_run, tmp_path / "alone", 2 * STAGED, *CAPTION, f"seed={seed}"))
    print(f"\nseed {seed}, nats of a token of colours and shapes: names, then captions {staged:.3f}; captions alone {alone:.3f}")
    assert 0 < staged < np.log(len(COLORS) * len(SHAPES)) and 0 < alone < np.log(len(COLORS) * len(SHAPES))  # better than a guess
