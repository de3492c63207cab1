"""DeltaNet beside the gated layer of transformers' Qwen3-Next, and what its options were made for, by hand-set weights."""

from __future__ import annotations

import math

import pytest
import torch

from mmlm.backbone.config import DeltaNetConfig
from mmlm.layout import Layout

WIDTH = 24


def qwen3_next(num_key_heads, num_heads, key_size, value_size):
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config = modeling.Qwen3NextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=num_key_heads,
        linear_num_value_heads=num_heads,
        linear_key_head_dim=key_size,
        linear_value_head_dim=value_size,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-6,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layer = modeling.Qwen3NextGatedDeltaNet(config, 0)
        for parameter in layer.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return config, layer


def ours_with_the_weights_of(layer):
    """Their input rows go by key head, ours by kind."""
    groups, together = layer.num_k_heads, layer.num_v_heads // layer.num_k_heads
    k, v = layer.head_k_dim, layer.head_v_dim * together
    config = DeltaNetConfig(
        num_heads=layer.num_v_heads, num_key_heads=groups, key_size=k, value_size=layer.head_v_dim, gated=True, norm_eps=1e-6, chunk_size=16
    )
    mixer = config.build(WIDTH)
    by_kind = layer.in_proj_qkvz.weight.unflatten(0, (groups, -1)).split([k, k, v, v], dim=1)
    beta, step = layer.in_proj_ba.weight.unflatten(0, (groups, -1)).split([together, together], dim=1)
    weights = {
        "input.weight": torch.cat([part.flatten(0, 1) for part in (*by_kind, beta, step)]),
        "out.weight": layer.out_proj.weight,
        "conv_weight": layer.conv1d.weight[:, 0],
        "step_bias": layer.dt_bias,
        "decay_log": layer.A_log,
        "norm_weight": layer.norm.weight,
    }
    mixer.load_state_dict(weights)
    return mixer


def close(got, wanted):
    """Their float32 is up to 1e-5 of the largest number from the same layer in float64, ours 1.4e-6."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("sizes", [(2, 4, 8, 6), (3, 3, 5, 5)], ids=str)
def test_the_gated_layer_of_qwen3_next_with_its_gradients_state_and_steps(sizes):
    config, theirs = qwen3_next(*sizes)
    ours = ours_with_the_weights_of(theirs)
    x = torch.randn(2, 75, WIDTH, generator=torch.Generator().manual_seed(0))
    found = []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        y = layer(given) if layer is theirs else layer(given, Layout.plain(2, 75))[0]
        found.append((y, torch.autograd.grad(y.square().sum(), given)[0]))
    for wanted, got in zip(*found):
        close(got, wanted)

    from transformers import DynamicCache

    with torch.no_grad():
        cache, state = DynamicCache(config=config), ours.init_state(2, 0, torch.float32, "cpu")
        start = 0
        for size in (70, 1, 1, 1):
            part = x[:, start : start + size]
            wanted = theirs(part, cache=cache)
            got, state, _ = ours(part, Layout.plain(2, size, start=start), state)
            close(got, wanted)
            start += size
        close(state.tensors["state"], cache.get_recurrent_state(0, state_idx=0))
        close(state.tensors["conv"], cache.get_conv_state(0, state_idx=0)[..., -3:])


def hand_set(**options):
    """A bare layer of one head whose values are zero: x = [bit, 1] chooses keys and beta, and the state is what it was given."""
    config = DeltaNetConfig(num_heads=1, key_size=2, conv_size=1, output_norm=False, output_gate=None, negative_eigenvalues=True, **options)
    mixer = config.build(2).double()
    with torch.no_grad():
        mixer.input.weight.zero_()
        mixer.conv_weight.fill_(1)
        mixer.out.weight.copy_(torch.eye(2))
    return mixer


def read_bits(mixer, length, start):
    bits = torch.randint(0, 2, (1, length), generator=torch.Generator().manual_seed(length))
    x = torch.stack([bits.double(), torch.ones(1, length, dtype=torch.float64)], dim=-1)
    state = mixer.init_state(1, 0, torch.float64, "cpu")
    state.tensors["state"] = start.double()
    with torch.no_grad():
        return bits.cumsum(1), mixer(x, Layout.plain(1, length), state)[0]


def test_a_beta_of_two_counts_modulo_two_for_any_length():
    mixer = hand_set()
    with torch.no_grad():
        mixer.input.weight[0, 1] = mixer.input.weight[2, 1] = 30.0  # query and key: the first axis, at every token
        mixer.input.weight[6] = torch.tensor([80.0, -40.0])  # beta: 2 at a one, 0 at a zero
    count, y = read_bits(mixer, 10_000, torch.ones(1, 1, 2, 2))
    assert torch.equal((y[..., 0] < 0).long(), count % 2) and float(y.abs().min() / y.abs().max()) > 0.9


def inverse_silu(wanted):
    """x with x sigmoid(x) = wanted, for wanted above -0.27, on the rising branch."""
    x = torch.tensor(wanted, dtype=torch.float64)
    for _ in range(100):
        value = x.sigmoid()
        x = x - (x * value - wanted) / (value * (1 + x * (1 - value)))
    return float(x)


def test_two_reflections_a_token_count_modulo_three():
    mixer = hand_set(num_micro_steps=2)
    angle = math.pi / 3  # between the mirrors: twice that is the rotation
    rows = mixer.input.weight  # query 0:2, keys 2:6, values 6:10, betas 10:12
    with torch.no_grad():
        rows[0, 1] = 30.0
        rows[2, 1] = 30.0
        rows[4, 1], rows[5, 1] = inverse_silu(10 * math.cos(angle)), inverse_silu(10 * math.sin(angle))
        rows[10] = rows[11] = torch.tensor([80.0, -40.0])
    count, y = read_bits(mixer, 600, torch.eye(2)[None, None])
    turned = torch.atan2(y[..., 1], y[..., 0]) / (2 * math.pi / 3)
    sign = -1 if float(turned[0, int((count == 1).nonzero()[0, 1])]) < 0 else 1
    assert torch.equal((sign * turned).round().long() % 3, count % 3)
    assert float((turned - turned.round()).abs().max()) < 0.05
