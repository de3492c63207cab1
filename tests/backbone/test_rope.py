"""Rotary positions: the formula in float64, transformers' scalings, several axes, shares of the channels, norms before turning."""

from __future__ import annotations

import math

import pytest
import torch

from mmlm.backbone.attention import Attention
from mmlm.backbone.config import AttentionConfig, RopeConfig
from mmlm.backbone.rope import Rope, frequencies
from mmlm.base.errors import RecipeError
from mmlm.layout import Layout

YARN = {"type": "yarn", "factor": 8.0, "original_length": 128}
SCALINGS = {
    "none": ({}, {"rope_type": "default"}),
    "part of the channels": ({"fraction": 0.5}, {"rope_type": "default", "partial_rotary_factor": 0.5}),
    "linear": ({"scaling": {"type": "linear", "factor": 3.0}}, {"rope_type": "linear", "factor": 3.0}),
    "yarn": ({"scaling": YARN}, {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}),
    "yarn, all given": (
        {"scaling": {**YARN, "fast_turns": 20.0, "slow_turns": 2.0, "attention_factor": 1.3, "truncate": False}},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "beta_fast": 20.0, "beta_slow": 2.0,
         "attention_factor": 1.3, "truncate": False},
    ),
    "llama3": (
        {"scaling": {"type": "llama3", "factor": 4.0, "low_frequency_factor": 1.0, "high_frequency_factor": 3.0, "original_length": 64}},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 64},
    ),
}  # fmt: skip


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_scale_are_those_of_transformers(name, base):
    transformers = pytest.importorskip("transformers")
    ours, theirs = SCALINGS[name]
    f, scale = frequencies(RopeConfig.model_validate({"base": base, **ours}), 32)
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=1024, rope_parameters={"rope_theta": base, **theirs}
    )
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if theirs["rope_type"] == "default":
        wanted, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        if "fraction" in ours:  # Llama turns all channels: half of them is a head half as wide
            config.head_dim = 16
            wanted, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        wanted, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    torch.testing.assert_close(f.float(), wanted, rtol=1e-5, atol=0)
    assert scale == pytest.approx(factor, rel=1e-6)
    if name not in ("none", "part of the channels"):
        assert not torch.allclose(f, frequencies(RopeConfig(base=base), 32)[0], rtol=1e-3)


def test_ntk_stretches_the_longest_wave_by_the_factor_and_keeps_the_shortest():
    plain, _ = frequencies(RopeConfig(), 32)
    stretched, scale = frequencies(RopeConfig.model_validate({"scaling": {"type": "ntk", "factor": 5.0}}), 32)
    assert scale == 1 and stretched[0] == plain[0]
    assert (plain[-1] / stretched[-1]).item() == pytest.approx(5, rel=1e-9)
    assert ((plain / stretched).diff() > 0).all()


def turned(x, position, pairs, base=10_000.0):
    """Channels of one head turned in float64, a pair after the other, as complex numbers."""
    out = x.clone()
    for j in range(pairs):
        angle = position * base ** (-j / pairs)
        number = torch.complex(x[j], x[j + pairs]) * complex(math.cos(angle), math.sin(angle))
        out[j], out[j + pairs] = number.real, number.imag
    return out


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_queries_and_keys_are_turned_by_the_formula_and_values_are_not(fraction):
    rope = {"fraction": fraction}
    made = Attention(AttentionConfig.model_validate({"num_heads": 2, "num_kv_heads": 1, "rope": rope, "qk_norm": True}), 16).double()
    x = torch.randn(1, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    made.q_norm.weight.data, made.k_norm.weight.data = weight.clone(), weight.clone()
    position = torch.tensor([0, 3, 1, 40, 7])
    layout = Layout(torch.ones(1, 5).int(), position[None, :, None])
    raw = [part.unflatten(-1, (-1, 8))[0] for part in made.qkv(x).split(made.sizes, dim=-1)]
    found = [part[0] for part in made._project(x, *made._angles(layout))]
    for part, (before, after) in enumerate(zip(raw, found, strict=True)):
        if part < 2:  # each head by its root mean square
            norm = made.q_norm if part == 0 else made.k_norm
            assert torch.equal(norm.weight, weight)
            before = before / (before.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        for t in range(5):
            for head in range(before.shape[1]):
                wanted = turned(before[t, head], int(position[t]), int(4 * fraction)) if part < 2 else before[t, head]
                torch.testing.assert_close(after[t, head], wanted, rtol=0, atol=2e-6)  # frequencies are held in float32


def test_each_section_turns_by_its_own_axis():
    rope = Rope(RopeConfig(sections=[3, 1, 4]), 16)
    position = torch.tensor([[5, 2, 9]])
    cos, sin = rope.angles(position)
    f = frequencies(RopeConfig(), 16)[0]
    angle = torch.cat([5 * f[:3], 2 * f[3:4], 9 * f[4:]])
    torch.testing.assert_close(cos[0].double(), angle.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin[0].double(), angle.sin(), rtol=0, atol=1e-6)
    one = Rope(RopeConfig(), 16)
    for mine, theirs in zip(one.angles(torch.tensor([[7]])), rope.angles(torch.tensor([[7, 7, 7]])), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(one.angles(torch.tensor([[7, 1]]))[0], one.angles(torch.tensor([[7]]))[0]), "further axes are not read"


def test_attention_depends_on_differences_of_positions_alone():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Attention(AttentionConfig.model_validate({"num_heads": 2, "rope": {"sections": [2, 2]}}), 16).double()
    x = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    position = torch.randint(0, 9, (1, 6, 2), generator=torch.Generator().manual_seed(1))
    ys = [made(x, Layout(torch.ones(1, 6).int(), position + torch.tensor(shift), ("row", "column")))[0] for shift in ([0, 0], [100, 7])]
    torch.testing.assert_close(*ys, rtol=0, atol=1e-5)
    moved = position.clone()
    moved[0, 3] += 1
    other = made(x, Layout(torch.ones(1, 6).int(), moved, ("row", "column")))[0]
    assert (other - ys[0]).abs().max().item() > 1e-4


def test_faults_are_told():
    with pytest.raises(RecipeError, match="head of 3 channels leaves none to turn at fraction 0.5"):
        frequencies(RopeConfig(fraction=0.5), 3)
    with pytest.raises(RecipeError, match=r"sections \[1, 2\] must sum to 4"):
        Rope(RopeConfig(sections=[1, 2]), 8)
    with pytest.raises(RecipeError, match="sections for 2 axes, but the data has 1"):
        Rope(RopeConfig(sections=[2, 2]), 8).angles(torch.zeros(1, 3, 1))


def test_frequencies_are_made_again_for_a_module_without_memory():
    with torch.device("meta"):
        rope = Rope(RopeConfig(), 8)
    rope.to_empty(device="cpu").reset_buffers()
    assert torch.equal(rope.frequencies, Rope(RopeConfig(), 8).frequencies)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_angles_do_not_depend_on_the_type_of_the_weights(dtype):
    position = torch.arange(0, 5000, 7)[:, None]
    wanted, got = (Rope(RopeConfig(), 64).to(kind).angles(position) for kind in (torch.float32, dtype))
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == torch.promote_types(dtype, torch.float32) and (ours - theirs).abs().max() < 1e-3
