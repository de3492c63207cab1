"""What tokens look at is what attention layers weigh values by."""

from __future__ import annotations

import pytest
import torch

from mmlm.analysis.attention import attention_maps, most_focused
from mmlm.backbone.attention import Attention
from mmlm.backbone.config import AttentionConfig
from mmlm.layout import Layout
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.stream import Segment, Stream

OPTIONS = {
    "plain": {},
    "gate and grouped heads": {"gate": True, "num_kv_heads": 1},
    "soft cap": {"soft_cap": 0.5, "qk_norm": True},
    "alibi": {"alibi": True, "rope": None, "score_scale": 0.7},
    "window and sinks": {"window": 3, "sinks": 2},
    "both directions": {"causal": False},
}


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_values_weighed_by_what_is_looked_at_are_the_output_of_the_layer(name) -> None:
    g = torch.Generator().manual_seed(0)
    attention = Attention(AttentionConfig(num_heads=2, **OPTIONS[name]), 16).double()
    x = torch.randn(1, 9, 16, dtype=torch.float64, generator=g)
    layout = Layout(torch.ones(1, 9, dtype=torch.int), torch.arange(9)[None, :, None])
    if name == "plain":
        layout.mark, layout.reach = torch.tensor([[0, 1, 2, *[-1] * 6]]), torch.tensor([[[0, 1]] * 9])
    looks = attention.looks(x, layout)
    assert looks.shape == (1, 2, 9, 9) and torch.allclose(looks.sum(-1), torch.ones(1, 2, 9, dtype=torch.float64))
    value = attention._project(x, *attention._angles(layout))[2].transpose(1, 2)
    y = looks @ value.repeat_interleave(2 // value.shape[1], dim=1)
    assert torch.allclose(attention._finish(y.transpose(1, 2).flatten(2), x), attention(x, layout)[0], atol=1e-12)


def model_of(*pattern: dict) -> MultimodalLM:
    backbone = {"width": 16, "pattern": list(pattern)}
    config = {"schema": 1, "vocabulary": {"text": 11}, "backbone": backbone, "heads": {"lm": {"type": "language_model"}}}
    torch.manual_seed(0)
    return MultimodalLM(ModelConfig.model_validate(config)).eval()


def test_all_heads_of_all_attention_layers_are_told_and_the_model_is_left_as_it_was() -> None:
    stream = Stream([Segment("text", torch.arange(7))])
    attention = {"type": "attention", "num_heads": 2}
    model = model_of(attention, {"type": "mamba2", "head_size": 8}, attention)
    maps = attention_maps(model, stream)
    assert maps.shape == (4, 7, 7) and torch.allclose(maps.sum(-1), torch.ones(4, 7)) and not maps.triu(1).any()
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    assert attention_maps(model_of({"type": "mamba2", "head_size": 8}), stream).shape == (0, 7, 7)


def test_the_most_focused_head_is_shown() -> None:
    spread, sharp = torch.full((3, 4), 0.25), torch.eye(3, 4) * 0.9
    assert torch.equal(most_focused(torch.stack([spread, sharp])), sharp)
    assert most_focused(torch.zeros(0, 3, 4)) is None and most_focused(torch.zeros(2, 0, 4)) is None
