"""TransNormer: both forms beside their dense equations, and why there is no denominator."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmlm.backbone.config import TransNormerConfig
from mmlm.layout import Layout

WIDTH = 12


def built(width=WIDTH, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return TransNormerConfig(num_heads=2, **options).build(width).double()


def turned(x, theta):
    """[x cos, x sin] at places 0, 1, ... of one document: [t, h, k]."""
    angle = torch.arange(len(x))[:, None, None] * theta
    return torch.cat([x * angle.cos(), x * angle.sin()], dim=-1)


def by_definition(mixer, x_td, causal):
    """One document from the equations, scores written out."""
    config = mixer.config
    q, k, v, *gate = mixer.input(x_td).unflatten(-1, (-1, 2, mixer.head_size)).unbind(1)
    if config.form == "linear":
        q, k = (x if config.feature == "none" else F.elu(x) + (config.feature == "1+elu") for x in (q, k))
    v = F.silu(v) if gate else v
    if mixer.positions.lrpe:
        q, k = turned(q, mixer.positions.lrpe.theta), turned(k, mixer.positions.lrpe.theta)
    scores = torch.einsum("ihk,jhk->hij", q, k)
    place = torch.arange(len(x_td))
    seen = torch.ones(len(x_td), len(x_td), dtype=torch.bool)
    seen = seen.tril() if causal else seen
    if config.form == "blocks":
        seen &= (place // config.block_size)[:, None] == place // config.block_size
        scores = scores / mixer.head_size**0.5
        scores = scores.masked_fill(~seen, -torch.inf).softmax(-1) if config.scores == "softmax" else F.relu(scores)
    y = torch.einsum("hij,jhv->ihv", scores * seen, v)
    if config.form == "linear" or config.scores == "relu":
        flat = y if config.norm_heads else y.flatten(1)
        y = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + config.norm_eps) * mixer.norm.weight
    y = y.reshape(len(x_td), -1)
    return mixer.out(y * F.silu(gate[0].flatten(1)) if gate else y)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature": "elu", "norm_heads": True, "gate": True, "lrpe": None},
        {"feature": "none", "gate": True},
        {"form": "blocks", "block_size": 4},
        {"form": "blocks", "block_size": 5, "scores": "relu", "gate": True},
        {"form": "blocks", "block_size": 3, "scores": "relu", "norm_heads": True},
    ],
    ids=str,
)
def test_packed_layers_equal_their_equations_with_gradients(options, causal):
    mixer = built(**options)
    document = torch.tensor([[1] * 8 + [0] * 2 + [2] * 7, [0] * 3 + [4] * 14]).int()
    position = torch.zeros(2, 17, 1, dtype=torch.long)
    places = [(0, 1), (0, 2), (1, 4)]
    for row, number in places:
        own = document[row] == number
        position[row, own, 0] = torch.arange(int(own.sum()))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 17, WIDTH, dtype=torch.float64, generator=g, requires_grad=True)
    weight = torch.randn(2, 17, WIDTH, dtype=torch.float64, generator=g)
    y = mixer(x, Layout(document, position, causal=causal))[0]
    wanted = [by_definition(mixer, x[row, document[row] == number], causal) for row, number in places]
    got = [y[row, document[row] == number] for row, number in places]
    for one, want in zip(got, wanted):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-11)
    weights = [weight[row, document[row] == number] for row, number in places]
    tensors = [x, *mixer.parameters()]
    for one, want in zip(*(torch.autograd.grad(sum((a * b).sum() for a, b in zip(ys, weights)), tensors) for ys in (got, wanted))):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["linear", "blocks"])
def test_a_document_far_longer_than_the_blocks_through_any_calls(form):
    """The grid of blocks counts from the document's start, wherever the calls begin."""
    mixer = built(form=form, **({"block_size": 16} if form == "blocks" else {}))
    x = torch.randn(1, 75, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole, state, parts, at = mixer(x, Layout.plain(1, 75))[0], mixer.init_state(1, 0, torch.float64, "cpu"), [], 0
        for size in (1, 7, 16, 1, 23, 1, 1, 25):
            parts.append(mixer(x[:, at : at + size], Layout.plain(1, size, start=at), state)[0])
            at += size
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-11)


def test_a_norm_bounds_the_gradient_of_a_query_where_a_denominator_does_not():
    """Queries nearly orthogonal to the sum of keys, signed features: the paper's section 3.1."""
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 32, 16, dtype=torch.float64, generator=g)
    total = k.sum(0)
    mixer = TransNormerConfig(num_heads=1, feature="none", lrpe=None).build(16).double()
    sizes = {"norm": [], "denominator": []}
    for eps in (1e-1, 1e-2, 1e-3, 1e-4):
        q = torch.randn(16, dtype=torch.float64, generator=g)
        q = (q - total * (q @ total) / (total @ total) + eps * total / total.norm()).requires_grad_()

        def normed(q):
            rows = torch.cat([torch.zeros(31, 16, dtype=torch.float64), q[None]])
            y = mixer._linear(*(x[None, :, None] for x in (rows, k, v)), Layout.plain(1, 32), None, True)
            return mixer._normed(y)[0, -1]

        sizes["norm"].append(float(torch.autograd.functional.jacobian(normed, q).norm()))
        sizes["denominator"].append(float(torch.autograd.functional.jacobian(lambda q: (k @ q) @ v / (k @ q).sum(), q).norm()))
    assert max(sizes["norm"]) <= 3 * min(sizes["norm"]), sizes
    assert sizes["denominator"][-1] > 1e4 * sizes["denominator"][0], sizes
