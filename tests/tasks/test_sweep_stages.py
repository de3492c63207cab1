"""Stages of sweeps on a text decoder: each begins where the one before ended; in the first the decoder stays as it is, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from mmlm.data.config.street import StreetConfig
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, train
from mmlm.weights import read_tensors

STAGES = ("align", "ground", "instruct")
QUICK = [
    "train.validate_every=0", "train.sample_every=0", "data.validate=[]", "train.log_every=1", "train.steps=2", "train.batch_size=2",
    "tokenizers.sweep.num_tokens=4", "encoders.lidar.pillars.channels=4", "encoders.lidar.pillars.cell=1.6",
    "encoders.lidar.queries={num_queries: 4, num_layers: 1, num_heads: 2, width: 16}", "task.max_tokens=256",
]  # fmt: skip


def recipe(stage: str, before: str, *more: str) -> Recipe:
    return Recipe.read(f"lidar/{stage}", [*QUICK, f"backbone.pretrained={before}", f"tokenizers.text.path={before}/tokenizers/text", *more])


@pytest.fixture(scope="module")
def runs(text_run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two steps of each stage, from the one before."""
    found, before = {}, text_run
    for stage in STAGES:
        found[stage] = str(tmp_path_factory.mktemp("lidar") / stage)
        train(recipe(stage, before, f"output={found[stage]}"))
        before = found[stage]
    return found


def digest(tensors: dict[str, torch.Tensor], rows: int) -> str:
    """Of all of the decoder, of the embedding only the rows that it had."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith("backbone.") or name == "embedding.weight":
            found.update(
                tensors[name][:rows].contiguous().numpy().tobytes() if name == "embedding.weight" else tensors[name].numpy().tobytes()
            )
    return found.hexdigest()


def weights(run: str) -> dict[str, torch.Tensor]:
    return read_tensors(Path(run) / "model.safetensors")


def test_the_first_stage_leaves_the_decoder_as_it_is_and_the_others_do_not(text_run: str, runs: dict[str, str]) -> None:
    rows = len(weights(text_run)["embedding.weight"])
    before, *after = (digest(weights(run), rows) for run in (text_run, *runs.values()))
    assert after[0] == before and len({before, *after}) == 3
    first, model = weights(runs["align"]), build_model(recipe("align", text_run), build_task(recipe("align", text_run)))
    start = model.state_dict()
    changed = {name.split(".")[0] for name, tensor in first.items() if name in start and not torch.equal(tensor, start[name])}
    assert changed == {"encoders", "projectors"}


def test_the_encoder_goes_on_from_stage_to_stage(text_run: str, runs: dict[str, str]) -> None:
    before = runs["align"]
    for stage in STAGES[1:]:
        some = recipe(stage, before)
        start, last, held = build_model(some, build_task(some)).state_dict(), weights(runs[stage]), weights(before)
        assert all(torch.equal(tensor, start[name]) for name, tensor in held.items())
        assert not torch.equal(held["encoders.lidar.views_vd"], last["encoders.lidar.views_vd"])
        assert (Path(runs[stage]) / "adapter").is_dir()
        before = runs[stage]


def test_stages_ask_what_they_are_for(text_run: str, runs: dict[str, str]) -> None:
    wanted = {
        "align": {"caption"},
        "ground": {"grounded_caption", "expression", "class"},
        "instruct": {"grounded_caption", "expression", "class", "question"},
    }
    records = StreetConfig(count=6, split="test").build().everything()
    before = text_run
    for stage in STAGES:
        task = build_task(recipe(stage, before))
        assert {request.kind for record in records for request in task.requests(record)} == wanted[stage]
        before = runs[stage]
