"""SOLO's stages: a text decoder reads raw patches, names, captions and points; plain text stays beside them; stages follow one another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.data.config import ScenesConfig
from mmlm.data.pictures import Picture, Thing
from mmlm.describing import Describer
from mmlm.encoders.image_patches import PatchMatrix
from mmlm.interop.load import load
from mmlm.joint import PartSamples
from mmlm.model import MultimodalLM
from mmlm.recipe import Recipe
from mmlm.records import Records
from mmlm.run import _learner, build_parts, evaluate, train
from mmlm.tasks.asking import COMMONEST
from mmlm.tasks.grounded import GroundedTask, Said
from mmlm.tokenizers.boxes import Grounded
from mmlm.tokenizers.image_patches import VISION
from mmlm.weights import read_tensors

STAGES = ("stage1", "stage2", "stage3", "sft")
QUICK = ["train.validate_every=0", "train.sample_every=0", "data.validate=[]", "train.log_every=1", "train.steps=2"]


def recipe(stage: str, before: str, *more: str) -> Recipe:
    given = [f"backbone.pretrained={before}", f"tokenizers.text.path={before}/tokenizers/text"]
    few = ["train.batch_size=2"] if stage == "sft" else ["tasks.0.batch_size=3", "tasks.1.batch_size=1", "tasks.1.context=64"]
    return Recipe.read(f"solo/{stage}", [*QUICK, *given, *few, *more])


def built(some: Recipe) -> tuple[list[GroundedTask], MultimodalLM]:
    parts = build_parts(some)
    return [part.task for part in parts], _learner(some, parts)[0].model


@pytest.fixture(scope="module")
def runs(text_run: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two steps of each stage, from the one before."""
    found, before = {}, text_run
    for stage in STAGES:
        found[stage] = str(tmp_path_factory.mktemp("solo") / stage)
        train(recipe(stage, before, f"output={found[stage]}"))
        before = found[stage]
    return found


def test_each_stage_begins_where_the_one_before_ended_and_changes_it(text_run: str, runs: dict[str, str]) -> None:
    before = text_run
    for stage in STAGES:
        _, model = built(recipe(stage, before))
        first, last = read_tensors(Path(before) / "model.safetensors"), read_tensors(Path(runs[stage]) / "model.safetensors")
        now = model.state_dict()
        assert all(torch.equal(each, now[name][: len(each)]) for name, each in first.items())
        new = {name for name in now if name not in first}
        assert new == ({"projectors.vision.weight", "projectors.vision.bias"} if stage == "stage1" else set())
        assert all(not torch.equal(now[name], last[name]) for name in ("projectors.vision.weight", "embedding.weight"))
        before = runs[stage]
    assert isinstance(load(runs["sft"]).encoders[VISION], PatchMatrix)


@torch.no_grad()
def test_what_the_decoder_says_of_texts_is_at_first_bit_for_bit_as_before(text_run: str) -> None:
    _, model = built(recipe("stage1", text_run))
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.eval().logits(ids)[..., :300], load(text_run).logits(ids)) and len(model.vocabulary) > 300


@pytest.mark.parametrize("stage", STAGES)
def test_patches_are_read_from_left_to_right_and_only_words_carry_loss(stage: str, text_run: str) -> None:
    (see, *_), model = built(recipe(stage, text_run))
    kinds = {kind for kind, share in see.config.kinds.items() if share}
    asked = {request.kind for record in ScenesConfig(count=20, max_things=1).build().everything() for request in see.requests(record)}
    assert asked == kinds
    for number, record in enumerate(ScenesConfig(count=6, max_things=1).build().everything()):
        stream = see.example(record, np.random.default_rng(number))
        assert all(not segment.mutual for segment in stream.segments)
        (picture,) = [segment for segment in stream.segments if segment.modality == VISION]
        assert len(picture) == 8 * 8 + 8 + 1 and picture.position is None
        answers = [segment for segment in stream.segments if segment.weight]
        assert answers and all(segment.modality == "answer" for segment in answers)


@pytest.mark.parametrize("stage", STAGES[:3])
def test_plain_text_is_about_30_percent_of_what_is_read_and_all_of_it_carries_loss(stage: str, text_run: str) -> None:
    some = Recipe.read(f"solo/{stage}", [f"tokenizers.text.path={text_run}/tokenizers/text", f"backbone.pretrained={text_run}"])
    parts = build_parts(some)
    learner, made = _learner(some, parts)
    batches = {}
    for part, make in zip(parts, made, strict=True):
        samples = PartSamples(part.name, make(Records.of_training(part.recipe, part.task)))
        batches[part.name] = samples.collate([samples.sample(at, np.random.default_rng(at)) for at in range(part.size)]).batch
    tokens = {name: batch.num_tokens for name, batch in batches.items()}
    assert 0.25 < tokens["read"] / sum(tokens.values()) < 0.35
    documents = int(batches["read"].layout.document.max())
    assert int((batches["read"].weight > 0).sum()) >= tokens["read"] - documents  # but for the token that each begins with
    assert {part.name: learner.weight_of(f"{part.name}.language_model") for part in parts} == {"see": 0.7, "read": 0.3}


def test_both_are_measured_and_logged_by_themselves(runs: dict[str, str]) -> None:
    found = evaluate(runs["stage1"], ["data.test=[{type: scenes, max_things: 1, split: test, count: 4}, {type: python_docs, split: test}]",
                                      "data.test_samples=4"])["tasks"]  # fmt: skip
    assert found["read"]["metrics"].keys() == {"perplexity", "bits_per_byte"} and found["see"]["metrics"].keys() == {"names"}
    lines = [json.loads(line) for line in Path(f"{runs['stage2']}/log.jsonl").read_text().splitlines()]
    for line in lines:
        parts = line["loss.see.language_model"], line["loss.read.language_model"]
        assert line["loss"] == pytest.approx(0.7 * parts[0] + 0.3 * parts[1]) and line["skipped"] == 0


def test_a_name_is_asked_where_there_is_one_thing_and_is_right_or_wrong(text_run: str) -> None:
    (see, _), model = built(recipe("stage1", text_run))
    alone, several = ScenesConfig(count=8, max_things=1).build(), ScenesConfig(count=8, min_things=2).build()
    assert not any(see.requests(record) for record in several.everything() if len(record.things) > 1)
    records = alone.everything()
    (request,) = see.requests(records[0])
    assert request.truth == Grounded(records[0].things[0].label) and not request.question
    assert see.title(records[0]).endswith(request.truth.text)
    outputs = [[Said(each, each.truth) for each in see.requests(record)] for record in records]
    assert see.score(outputs, records) == {"names": 1.0}
    outputs[0] = [Said(request, Grounded("a thing"))]
    outputs[1] = [Said(outputs[1][0].request, Grounded(outputs[1][0].request.truth.text.upper() + "."))]
    assert see.score(outputs, records) == {"names": 7 / 8}
    same = [Picture("a", "a", 8, 8, records[0].read, things=(Thing(label, (0, 0, 1, 1)),)) for label in ("dog", "dog", "cat")]
    assert see.baselines(same)[COMMONEST] == {"names": 2 / 3}
    held = GroundedTask(see.config.model_copy(update={"constrained": True}), see.tokenizers)
    with torch.no_grad():
        assert all(not one.answer.phrases for (one,) in held.predict(model.eval(), records[:2]))


def test_a_run_of_the_first_stage_names_pictures_and_the_last_answers_questions(runs: dict[str, str]) -> None:
    assert [request.kind for request in Describer(runs["stage1"]).requests()] == ["name"]
    last = Describer(runs["sft"])
    assert [request.kind for request in last.requests(question="How many?")] == ["question"]
    with pytest.raises(RecipeError, match="this run has not learned caption; it knows expression, question"):
        last.requests()


def test_a_stage_that_does_not_fit_the_one_before_is_told(text_run: str, runs: dict[str, str]) -> None:
    for more, fault in (
        (["tokenizers.boxes.num_bins=50"], "has the vocabulary .*, but one of the tasks see, read needs"),
        (["tokenizers.patches.patch=16"], r"reads the features \{'vision': 192\}, but one of the tasks see, read gives \{'vision': 768\}"),
        (["encoders={vision: {type: patch_stem}}"], "encoders.vision: that of backbone.pretrained, .*, is another; leave it out"),
    ):
        with pytest.raises(RecipeError, match=fault):
            built(recipe("stage2", runs["stage1"], *more))
    with pytest.raises(RecipeError, match="needs an encoder named vision, which .* has not"):
        built(recipe("stage2", text_run, "encoders={}"))
    with pytest.raises(RecipeError, match="data.train: has no source for the task read"):
        recipe("stage1", text_run, "data.train=[{type: scenes}]", "data.test=[{type: scenes, split: test}]")
