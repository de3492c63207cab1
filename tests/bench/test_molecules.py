"""What molecules cost before a model sees them: tokens beside the package selfies alone, batches beside the training step they are for.

100,000 SMILES are read and tokenized in tests/tokenizers/test_molecules.py. All on one thread, in CPU time.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from mmlm.data.config import MosesConfig
from mmlm.recipe import Recipe
from mmlm.records import DrawnSamples, Records
from mmlm.run import build_model, build_task
from mmlm.tokenizers.config import MoleculesConfig
from tests.bench.measure import MARGIN, compare

pytestmark = [
    pytest.mark.bench,
    pytest.mark.skipif(importlib.util.find_spec("moses") is None, reason="needs the data of the package molsets"),
]
SMILES, BATCHES = 500, 4


def test_selfies_tokens_cost_hardly_more_than_selfies():
    selfies = pytest.importorskip("selfies")
    texts = MosesConfig(count=SMILES).build().texts
    tokenizer = MoleculesConfig(notation="selfies").build()
    tokenizer.fit(texts)

    def again():
        for text in texts:
            tokenizer.encode(text)

    def first():
        tokenizer.known.clear()
        again()

    def theirs():
        for text in texts:
            list(selfies.split_selfies(selfies.encoder(text)))

    found = compare({"selfies": theirs, "first": first, "again": again})
    told = ", ".join(f"{name} {1e3 * ms / SMILES:.0f}" for name, ms in found.items())
    print(f"\nmicroseconds a molecule: {told}; 100,000 the first time: {found['first'] / SMILES * 100:.0f} s of one core")
    assert found["first"] < 1.25 * MARGIN * found["selfies"] and found["again"] < 0.1 * found["selfies"]


def test_a_batch_of_molecules_costs_a_small_part_of_its_training_step():
    recipe = Recipe.read("molecules/quickstart", ["data.test=[]", f"data.train=[{{type: moses, count: {BATCHES * 32}}}]"])
    task, objective = build_task(recipe), recipe.objective.build()
    torch.manual_seed(0)
    model = build_model(recipe, task).train()
    samples = DrawnSamples(task, objective, model.vocabulary, Records.of_training(recipe, task))

    def data():
        return [
            samples.collate([samples.sample(0, np.random.default_rng([batch, number])) for number in range(recipe.train.batch_size)])
            for batch in range(BATCHES)
        ]

    batches = data()

    def steps(first):
        objective.begin_step(first, recipe.train.steps)
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = objective.losses(model, batch)
            sum(total / weight for total, weight in losses.values()).backward()
            model.zero_grad()

    contestants = {"data": data, "property": lambda: steps(0), "sequence": lambda: steps(recipe.objective.alternate_every)}
    found = {name: ms / BATCHES for name, ms in compare(contestants, rounds=3, seconds=0).items()}
    step = (found["property"] + found["sequence"]) / 2
    told = ", ".join(f"{name} {ms:.0f}" for name, ms in found.items())
    print(f"\nms a batch of 32: {told}; data {found['data'] / step:.0%} of a step")
    assert found["data"] < 0.2 * MARGIN * step
