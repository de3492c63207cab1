"""Sweeps as tokens: the points with the view that is asked about, there and back, and through a model's encoder of wholes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.stream import Segment, Stream, pack
from mmlm.tokenizers.config import SweepTokensConfig
from mmlm.tokenizers.sweeps import LIDAR

TOKENS = SweepTokensConfig(num_tokens=5).build()


def points(seed: int, count: int = 200) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(-1, 1, (count, 4)) * [12, 12, 2, 1]).astype(np.float32)


def test_a_sweep_is_a_segment_of_points_with_their_view(tmp_path) -> None:
    segment = TOKENS.encode(points(0), 3)
    assert segment.whole and len(segment) == 5 and segment.features.shape == (200, 5) and bool((segment.features[:, 4] == 3).all())
    assert np.array_equal(TOKENS.decode(segment), points(0))
    assert bool((TOKENS.encode(points(0)).features[:, 4] == -1).all())
    for faulty in (np.zeros((0, 4)), np.zeros((3, 3))):
        with pytest.raises(DataError, match=r"points \[n, 4\]"):
            TOKENS.encode(faulty)
    TOKENS.save(tmp_path)
    assert SweepTokensConfig(num_tokens=5).build().load(tmp_path).sizes == {LIDAR: 1}
    with pytest.raises(CheckpointError, match="is of another config .*num_tokens=5.* than the recipe .*num_tokens=6"):
        SweepTokensConfig(num_tokens=6).build().load(tmp_path)


def test_a_model_reads_sweeps_and_stays_as_it_is_while_only_its_encoder_learns() -> None:
    config = {
        "schema": 1, "vocabulary": {LIDAR: 1, "answer": 3}, "features": {LIDAR: 5},
        "encoders": {LIDAR: {"type": "view_aware", "queries": {"num_queries": 5, "width": 16},
                             "pillars": {"low": [-12.8, -12.8, -3], "high": [12.8, 12.8, 3], "channels": 8}}},
        "backbone": {"width": 16, "num_layers": 1, "pattern": [{"type": "attention", "num_heads": 2}]},
    }  # fmt: skip
    torch.manual_seed(0)
    model = MultimodalLM(ModelConfig.model_validate(config))
    streams = [Stream([TOKENS.encode(points(at), at), Segment("answer", torch.tensor([at]), weight=1.0)]) for at in range(3)]
    batch = pack(streams, model.vocabulary)
    assert batch.whole_sizes[LIDAR].tolist() == [200] * 3 and len(batch.feature_at[LIDAR]) == 15
    trained = ("encoders.", "projectors.")
    for name, each in model.named_parameters():
        each.requires_grad_(name.startswith(trained))
    before = {name: each.clone() for name, each in model.named_parameters()}
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = sum(total / weight for total, weight in model.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 < losses[0]
    changed = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    assert "encoders.lidar.views_vd" in changed and "encoders.lidar.former.queries" in changed
    assert all(name.startswith(trained) for name in changed)
    model.eval()
    packed = model.hidden(batch)[0][0]
    alone = torch.cat([model.hidden(pack([stream], model.vocabulary))[0][0] for stream in streams])
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-3)
