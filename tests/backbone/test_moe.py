"""Mixture of experts is a weighted sum over a few experts, and its losses are those of their papers."""

from __future__ import annotations

import pytest
import torch

from mmlm.backbone.config import MoeConfig
from mmlm.backbone.moe import MixtureOfExperts
from mmlm.layout import Layout

B, T, D, E = 2, 7, 12, 4


def layer(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = MixtureOfExperts(MoeConfig(num_experts=E, hidden=10, **options), D).double()
        torch.nn.init.normal_(made.router.weight)
    return made


def inputs(document=None):
    x = torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    layout = Layout.plain(B, T)
    if document is not None:
        layout.document = document
    return x, layout


def by_loop(made, x):
    """Every token through every chosen expert on its own."""
    config, rows = made.config, []
    for token in x.flatten(0, 1):
        scores = made.router(token).softmax(-1)
        chosen = sorted(range(E), key=lambda e: -float(scores[e].detach()))[: config.top_k]
        total = sum(scores[e] for e in chosen) if config.renormalize else 1
        rows.append(sum(scores[e] / total * made.experts[e](token[None, None], None)[0][0, 0] for e in chosen))
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, E])
def test_the_output_is_the_loop_over_tokens_and_experts_with_gradients(top_k, renormalize):
    made, (x, layout) = layer(top_k=top_k, renormalize=renormalize), inputs()
    y, wanted = made(x, layout)[0], by_loop(made, x)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
    tensors = [x, made.router.weight, *made.experts[0].parameters()]
    for got, want in zip(*(torch.autograd.grad(out.square().sum(), tensors, retain_graph=True) for out in (y, wanted)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("renormalize", [True, False])
def test_with_all_experts_chosen_it_is_the_weighted_sum_of_all(renormalize):
    made, (x, layout) = layer(top_k=E, renormalize=renormalize), inputs()
    p = made.router(x).softmax(-1)
    wanted = sum(p[..., e, None] * made.experts[e](x, layout)[0] for e in range(E))
    torch.testing.assert_close(made(x, layout)[0], wanted, rtol=0, atol=1e-12)


def test_losses_by_hand_and_padding_does_not_count():
    made = layer(top_k=2, balance_weight=0.3, router_z_weight=0.7)
    document = torch.tensor([[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0]]).int()
    x, layout = inputs(document)
    _, losses = made(x, layout)
    real = x[document > 0]
    p = made.router(real).softmax(-1)
    shares = torch.zeros(E, dtype=torch.float64)
    for token in p.detach():
        for e in sorted(range(E), key=lambda e: -float(token[e]))[:2]:
            shares[e] += 1 / (2 * len(real))
    balance = E * (shares * p.mean(0)).sum()
    z = torch.log(made.router(real).exp().sum(-1)).square().mean()
    torch.testing.assert_close(losses["balance"], 0.3 * balance, rtol=0, atol=1e-7)
    torch.testing.assert_close(losses["router_z"], 0.7 * z, rtol=0, atol=1e-12)
    spoiled = torch.where(document[..., None] > 0, x, 1e3)
    for name, value in made(spoiled, layout)[1].items():
        assert torch.equal(value, losses[name])
    assert set(losses) == set(made.aux_names)


def test_even_use_of_all_experts_has_the_smallest_balance():
    made, (x, layout) = layer(top_k=1, balance_weight=1.0), inputs()
    torch.nn.init.zeros_(made.router.weight)
    assert abs(made(x, layout)[1]["balance"].item() - 1) < 1e-6
    made.router.weight.data[0] = 50 * x[0, 0].detach()
    same = x[:, :1].detach()[:1].expand(B, T, D)
    assert abs(made(same, layout)[1]["balance"].item() - E) < 1e-3


def test_a_batch_of_padding_has_finite_losses_and_gradients():
    made, (x, layout) = layer(), inputs(torch.zeros(B, T, dtype=torch.int32))
    _, losses = made(x, layout)
    assert all(value.item() == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert bool(made.router.weight.grad.isfinite().all())


def test_choices_do_not_depend_on_the_rest_of_the_batch():
    made, (x, layout) = layer(), inputs()
    y = made(x, layout)[0]
    for row in range(B):
        for at in range(T):
            alone = made(x[row : row + 1, at : at + 1], Layout.plain(1, 1))[0][0, 0]
            torch.testing.assert_close(y[row, at], alone, rtol=0, atol=1e-12)


def test_experts_that_all_share_are_added():
    made, (x, layout) = layer(top_k=1, num_shared=2), inputs()
    alone = layer(top_k=1)
    alone.load_state_dict(made.state_dict(), strict=False)
    wanted = alone(x, layout)[0] + sum(expert(x, layout)[0] for expert in made.shared)
    torch.testing.assert_close(made(x, layout)[0], wanted, rtol=0, atol=1e-12)


def test_a_gate_weighs_what_shared_experts_of_their_own_width_add():
    made, (x, layout) = layer(top_k=1, num_shared=2, shared_hidden=6, shared_gate=True), inputs()
    torch.nn.init.normal_(made.shared_gate.weight)
    assert made.shared[0].hidden == 6 and made.experts[0].hidden == 10
    alone = layer(top_k=1)
    alone.load_state_dict(made.state_dict(), strict=False)
    gate = torch.sigmoid(x @ made.shared_gate.weight.T)
    wanted = alone(x, layout)[0] + gate * sum(expert(x, layout)[0] for expert in made.shared)
    torch.testing.assert_close(made(x, layout)[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("priority", ["order", "probability"])
@pytest.mark.parametrize("factor", [0.3, 0.75, 1.0, 4.0])
def test_a_full_expert_takes_no_more_tokens_in_training_and_all_of_them_in_use(factor, priority):
    document = torch.tensor([[1, 1, 1, 1, 2, 2, 2], [0, 1, 1, 1, 0, 0, 1]]).int()
    made, (x, layout) = layer(top_k=2, capacity_factor=factor, priority=priority).train(), inputs(document)
    p = made.router(x).softmax(-1).flatten(0, 1).detach()
    real = [n for n in range(B * T) if document.flatten()[n]]
    room = -(-int(factor * 2 * len(real) * 100) // (E * 100))
    wanted, dropped = torch.zeros(B * T, D, dtype=torch.float64), 0
    for e in range(E):
        asks = [n for n in real if e in p[n].topk(2).indices.tolist()]
        if priority == "probability":
            asks.sort(key=lambda n, e=e: -float(p[n, e]))
        dropped += max(0, len(asks) - room)
        for n in asks[:room]:
            share = p[n, e] / p[n].topk(2).values.sum()
            wanted[n] += (share * made.experts[e](x.flatten(0, 1)[n, None, None], None)[0][0, 0]).detach()
    torch.testing.assert_close(made(x, layout)[0].flatten(0, 1)[real], wanted[real], rtol=0, atol=1e-12)
    assert (dropped > 0) == (factor < 1.5)
    free = layer(top_k=2)
    torch.testing.assert_close(made.eval()(x, layout)[0], free(x, layout)[0], rtol=0, atol=1e-12)
