"""Layers: residual sums, parallel form, norms, feed-forwards, recomputation, dropout, learned positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmlm.backbone.config import FEED_FORWARDS, BackboneConfig
from mmlm.backbone.norms import norm
from mmlm.base.errors import RecipeError
from mmlm.layout import Layout
from mmlm.stream import Segment, Stream, pack

ATTENTION = {"type": "attention", "num_heads": 2}
MAMBA = {"type": "mamba2", "state_size": 4, "head_size": 8, "chunk_size": 3}
MOE = {"type": "moe", "num_experts": 3, "hidden": 8}
HYBRID = [{"mixer": MAMBA, "feed_forward": MOE}, {"mixer": ATTENTION, "parallel": True}]


def vectors(length=6, seed=0):
    return torch.randn(2, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("mixer", [ATTENTION, MAMBA])
@pytest.mark.parametrize("place", ["before", "around"])
def test_layers_are_their_formula(tiny, mixer, parallel, kind, place):
    model = tiny([{"mixer": mixer, "parallel": parallel}], norm=kind, num_layers=1, norm_place=place)
    layer, layout, x = model.backbone.layers[0], Layout.plain(2, 6), vectors()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    around = [layer.mixed_norm, layer.fed_norm] if place == "around" else [torch.nn.Identity()] * 2
    n = layer.mixer_norm(x)
    mixed = around[0](layer.mixer(n, layout)[0])
    if parallel:
        assert layer.feed_forward_norm is None
        wanted = x + mixed + around[1](layer.feed_forward(n, layout)[0])
    else:
        middle = x + mixed
        wanted = middle + around[1](layer.feed_forward(layer.feed_forward_norm(middle), layout)[0])
    torch.testing.assert_close(model.backbone(x, layout)[0], model.backbone.norm(wanted), rtol=0, atol=1e-10)


def test_layers_without_a_mixer_or_a_feed_forward(tiny):
    model = tiny([{"mixer": ATTENTION, "feed_forward": None}, {"feed_forward": MOE}])
    first, second = model.backbone.layers
    x, layout = vectors(), Layout.plain(2, 6)
    middle = x + first.mixer(first.mixer_norm(x), layout)[0]
    wanted = middle + second.feed_forward(second.feed_forward_norm(middle), layout)[0]
    torch.testing.assert_close(model.backbone(x, layout)[0], model.backbone.norm(wanted), rtol=0, atol=1e-10)


def test_norms_by_hand():
    x = vectors()
    for kind in ("rms", "layer"):
        made = norm(kind, 16, 1e-3).double()
        with torch.no_grad():
            made.weight.copy_(torch.linspace(-1, 2, 16))
        middle = x if kind == "rms" else x - x.mean(-1, keepdim=True)
        wanted = middle / (middle.square().mean(-1, keepdim=True) + 1e-3).sqrt() * made.weight
        torch.testing.assert_close(made(x), wanted, rtol=0, atol=1e-12)
        y = vectors(seed=1)
        for got, want in zip(made.after(y, x), (made(x + y), x + y), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(FEED_FORWARDS.entries))
def test_every_feed_forward_keeps_the_width_and_looks_at_one_token(name):
    made = FEED_FORWARDS.parse({"type": name}).build(16).double()
    x = vectors().requires_grad_()
    y, aux = made(x, Layout.plain(2, 6))
    assert y.shape == x.shape and set(aux) == set(getattr(made, "aux_names", ()))
    gradient = torch.autograd.grad(y[:, 2].square().sum(), x, retain_graph=True)[0]
    assert gradient[:, 2].abs().max() > 0 and gradient[:, [0, 1, 3, 4, 5]].abs().max() == 0
    (y.square().sum() + sum(aux.values())).backward()
    assert all(p.grad is not None for p in made.parameters())


def test_feed_forwards_by_hand():
    x = vectors()
    for approximate in (True, False):
        made = FEED_FORWARDS.parse({"type": "gelu", "approximate": approximate}).build(16).double()
        assert made.hidden == 64
        wanted = F.gelu(x @ made.up.weight.T + made.up.bias, approximate="tanh" if approximate else "none") @ made.down.weight.T
        torch.testing.assert_close(made(x, None)[0], wanted + made.down.bias, rtol=0, atol=1e-12)
    made = FEED_FORWARDS.parse({"type": "swiglu", "bias": True}).build(16).double()
    assert made.hidden == 64
    gate, up = (x @ made.up.weight.T + made.up.bias).chunk(2, dim=-1)
    wanted = (gate * gate.sigmoid() * up) @ made.down.weight.T + made.down.bias
    torch.testing.assert_close(made(x, None)[0], wanted, rtol=0, atol=1e-12)
    for approximate in (True, False):
        made = FEED_FORWARDS.parse({"type": "geglu", "approximate": approximate}).build(16).double()
        assert made.hidden == 64
        gate, up = (x @ made.up.weight.T).chunk(2, dim=-1)
        wanted = (F.gelu(gate, approximate="tanh" if approximate else "none") * up) @ made.down.weight.T
        torch.testing.assert_close(made(x, None)[0], wanted, rtol=0, atol=1e-12)
    made = FEED_FORWARDS.parse({"type": "relu2"}).build(16).double()
    assert made.hidden == 64
    wanted = (x @ made.up.weight.T).clamp_min(0) ** 2 @ made.down.weight.T
    torch.testing.assert_close(made(x, None)[0], wanted, rtol=0, atol=1e-12)


def test_token_embeddings_are_scaled_and_the_tied_head_is_not(tiny):
    model, plain = tiny([ATTENTION], embedding_scale=3.0), tiny([ATTENTION])
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(model.embedding(ids), 3 * plain.embedding(ids), rtol=0, atol=0)
    x, layout = 3 * plain.embedding.weight[ids], Layout.plain(1, 3)
    wanted = plain.backbone(x, layout)[0] @ plain.embedding.weight.T
    torch.testing.assert_close(model.logits(ids), wanted, rtol=0, atol=1e-12)


def step(model, seed=5):
    g = torch.Generator().manual_seed(0)
    streams = [Stream([Segment("text", torch.randint(0, 20, (size,), generator=g), weight=1.0)]) for size in (7, 3, 5)]
    model.zero_grad()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = model.losses(pack(streams, model.vocabulary))
        sum(total for total, _ in found.values()).backward()
    return {name: total for name, (total, _) in found.items()}, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same_losses_and_gradients(tiny, dropout, monkeypatch):
    from mmlm.backbone import backbone

    calls = []
    monkeypatch.setattr(backbone, "_recomputed", lambda *args, real=backbone._recomputed: (calls.append(1), real(*args))[1])
    found = [step(tiny(HYBRID, recompute=recompute, dropout=dropout).train()) for recompute in (False, True)]
    assert len(calls) == 2 and {"language_model", "balance", "router_z"} == set(found[0][0])
    for mine, theirs in zip(*found, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-12)
    with torch.no_grad():
        tiny(HYBRID, recompute=True).train().logits(torch.tensor([[1, 2]]))
    assert len(calls) == 2


def test_dropout_acts_in_training_only_and_keeps_the_mean(tiny):
    model, plain = tiny([ATTENTION], dropout=0.5), tiny([ATTENTION])
    x, layout = vectors(), Layout.plain(2, 6)
    assert torch.equal(model.backbone(x, layout)[0], plain.backbone(x, layout)[0])
    model.train()
    assert not torch.equal(model.backbone(x, layout)[0], model.backbone(x, layout)[0])
    dropped = model.backbone.layers[0]._drop(torch.ones(100, 100))
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and abs(dropped.mean().item() - 1) < 0.05
    plain.train()
    assert torch.equal(plain.backbone(x, layout)[0], plain.eval().backbone(x, layout)[0])


def test_learned_positions_are_added_and_their_end_is_told(tiny):
    model = tiny([{**ATTENTION, "rope": None}], learned_positions=8)
    x = vectors()
    layout = Layout.plain(2, 6, start=torch.tensor([0, 2]))
    wanted = tiny([{**ATTENTION, "rope": None}]).backbone
    wanted.load_state_dict({k: v for k, v in model.backbone.state_dict().items() if k != "positions.weight"})
    rows = model.backbone.positions.weight[layout.position[..., 0]]
    torch.testing.assert_close(model.backbone(x, layout)[0], wanted(x + rows, layout)[0], rtol=0, atol=1e-12)
    with pytest.raises(RecipeError, match="position 8 is beyond the 8 learned positions"):
        model.backbone(x, Layout.plain(2, 6, start=3))


def test_the_pattern_is_repeated_and_the_default_feed_forward_filled_in():
    config = BackboneConfig.model_validate({"num_layers": 5, "pattern": [ATTENTION, {"mixer": MAMBA, "feed_forward": None}]})
    assert [layer.mixer.type for layer in config.layers] == ["attention", "mamba2", "attention", "mamba2", "attention"]
    assert [getattr(layer.feed_forward, "type", None) for layer in config.layers] == ["swiglu", None, "swiglu", None, "swiglu"]
