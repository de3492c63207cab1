"""Exact resume with the model itself: every mixer, its kernels, adapters, micro-batches, workers."""

from __future__ import annotations

import pytest
import torch

from mmlm.adapt import adapt
from mmlm.backbone.config import MIXERS
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.objectives.causal import Causal
from mmlm.objectives.config import CausalConfig
from mmlm.stream import Segment, Stream, pack
from mmlm.training.config import AdaptConfig, TrainConfig
from mmlm.training.learner import Learner
from mmlm.training.trainer import Trainer

SIZES = {"attention": {"num_heads": 2}, "mamba2": {"head_size": 16, "state_size": 8, "chunk_size": 4}}
OPTIONS = {"steps": 6, "batch_size": 4, "micro_batch_size": 3, "lr": 1e-2, "log_every": 2, "ema_decay": 0.9, "precision": "bf16"}


class Words:
    fingerprint = "words"

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def __len__(self):
        return 9

    def sample(self, index, rng):
        return Stream([Segment("text", torch.from_numpy(rng.integers(0, 20, 3 + index)), weight=1.0)])

    def collate(self, items):
        return pack(items, self.vocabulary)


def learner(mixer, lora):
    backbone = {"width": 16, "num_layers": 2, "pattern": [{"type": mixer, **SIZES.get(mixer, {})}], "dropout": 0.1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MultimodalLM(ModelConfig.model_validate({"schema": 1, "vocabulary": {"text": 20}, "backbone": backbone}))
    if lora:
        adapt(model, AdaptConfig(lora={"rank": 2, "dropout": 0.1}, lr_scale={"backbone": 2.0}, freeze=["embedding"]))
    return Learner(model, Causal(CausalConfig()))


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mixer", sorted(MIXERS.entries))
def test_a_resumed_run_of_the_model_equals_the_whole_one(toy, tmp_path, mixer, workers, lora):
    for name, cuts in (("whole", [6]), ("cut", [1, 4, 6])):
        for cut in cuts:
            part = learner(mixer, lora)
            before = part.model.embedding.weight.detach().clone()
            config = TrainConfig(**OPTIONS, workers=workers)
            Trainer(part, Words(part.model.vocabulary), config, tmp_path / name, seed=3).fit(until=cut)
            assert torch.equal(before, part.model.embedding.weight) == lora
    toy.assert_same(tmp_path / "whole", tmp_path / "cut", step=6, ignore=("window", "logged"))
