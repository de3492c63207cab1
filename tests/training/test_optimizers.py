"""Optimizers: what decays, which rate, whose state; each against its equation or torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmlm.base.errors import CheckpointError
from mmlm.training import optimizers
from mmlm.training.config import OPTIMIZERS, TrainConfig
from mmlm.training.optimizers import (
    Lion,
    build_optimizers,
    load_optimizer_state,
    optimizer_state,
    parameter_groups,
    set_rate,
)

ALL = ["adafactor", "adamw", "lion", "muon"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.ones(4, 1))
        self.scale.no_weight_decay = True
        self.out = nn.Linear(6, 5, bias=False)
        self.out.weight.axes = ("vocab", "residual")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self):
        return self.out(torch.tanh(self.inner(self.table.weight * self.scale[:, 0]))).square().sum()


def step(model, optimizers, rate=1e-2):
    model.zero_grad()
    loss = model()
    loss.backward()
    set_rate(optimizers, rate)
    for optimizer in optimizers:
        optimizer.step()
    return loss.item()


def names(model):
    return {parameter: name for name, parameter in model.named_parameters()}


def test_every_optimizer_is_tried():
    assert sorted(OPTIMIZERS.entries) == ALL


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_lowers_a_loss(name):
    model = Net()
    optimizers = build_optimizers(TrainConfig(optimizer=name), model)
    losses = [step(model, optimizers) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ALL)
def test_matrices_decay_and_vectors_and_exempt_ones_do_not(name):
    model = Net()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizers = build_optimizers(TrainConfig(optimizer=name, weight_decay=0.5), model)
    set_rate(optimizers, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for key, parameter in model.named_parameters():
        factor = 0.95 if key in ("table.weight", "inner.weight", "out.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[key] * factor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_rate_scale_scales_the_step(name):
    moved = []
    for scale in (1.0, 0.25):
        model = Net()
        model.inner.weight.lr_scale = scale
        before = model.inner.weight.detach().clone()
        step(model, build_optimizers(TrainConfig(optimizer=name, weight_decay=0.0), model), 1e-3)
        moved.append(model.inner.weight.detach() - before)
    torch.testing.assert_close(moved[1], moved[0] * 0.25, rtol=1e-3, atol=1e-6)


def test_groups_keep_each_parameter_once():
    model = Net()
    model.inner.weight.lr_scale = 2.0
    groups = parameter_groups(model.parameters(), 0.1)
    assert sorted((group["weight_decay"], group["lr_scale"], len(group["params"])) for group in groups) == [
        (0.0, 1.0, 2),
        (0.1, 1.0, 2),
        (0.1, 2.0, 1),
    ]


def test_muon_takes_the_matrices_inside_and_adamw_the_rest():
    model = Net()
    muon, adamw = build_optimizers(TrainConfig(optimizer="muon"), model)
    own = names(model)
    assert [own[p] for group in muon.param_groups for p in group["params"]] == ["inner.weight"]
    assert {own[p] for group in adamw.param_groups for p in group["params"]} == {"table.weight", "out.weight", "inner.bias", "scale"}
    assert adamw.param_groups[0]["fused"] and type(muon).__name__ == "Muon"


@pytest.mark.parametrize("is_faster", [True, False])
def test_muon_is_torchs_where_bfloat16_is_fast_and_near_it_in_float32_elsewhere(is_faster, monkeypatch):
    monkeypatch.setattr(optimizers, "multiplies_bf16_faster", lambda device: is_faster)
    config = TrainConfig(optimizer={"type": "muon", "momentum": 0.9, "num_iterations": 4}, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for shape in ((24, 40), (40, 24), (32, 32)):
        ours, theirs = (torch.nn.Linear(*shape[::-1], bias=False) for _ in range(2))
        theirs.load_state_dict(ours.state_dict())
        (mine,) = build_optimizers(config, ours)
        plain = torch.optim.Muon(
            theirs.parameters(), lr=1e-2, weight_decay=0.1, momentum=0.9, ns_steps=4, adjust_lr_fn="match_rms_adamw"
        )  # fmt: skip
        set_rate([mine], 1e-2)
        for _ in range(3):
            ours.weight.grad = torch.randn(shape, generator=generator)
            theirs.weight.grad = ours.weight.grad.clone()
            mine.step()
            plain.step()
        if is_faster:
            assert torch.equal(ours.weight, theirs.weight)
        else:
            torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=2e-3)
            assert not torch.equal(ours.weight, theirs.weight)


def test_newton_schulz_brings_singular_values_near_one():
    found = torch.linalg.svdvals(optimizers.orthogonal(torch.randn(30, 50, generator=torch.Generator().manual_seed(0)), 5).float())
    assert found.min() > 0.6 and found.max() < 1.3


def test_adamw_is_torchs():
    ours, theirs = Net(), Net()
    optimizers = build_optimizers(TrainConfig(weight_decay=0.0), ours)
    plain = [torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)]
    for _ in range(5):
        step(ours, optimizers)
        theirs.zero_grad()
        theirs().backward()
        plain[0].step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_lion_follows_its_equation():
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
    optimizer = Lion([{"params": [weight], "weight_decay": 0.2, "lr_scale": 1.0}], betas=(0.9, 0.99))
    expected, momentum = weight.detach().clone(), torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(4):
        gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        weight.grad = gradient.clone()
        set_rate([optimizer], 0.05)
        optimizer.step()
        update = (0.9 * momentum + 0.1 * gradient).sign()
        expected = expected - 0.05 * (update + 0.2 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
        torch.testing.assert_close(weight.detach(), expected)


def test_a_parameter_without_a_gradient_stays():
    for name in ALL:
        model = Net()
        optimizers = build_optimizers(TrainConfig(optimizer=name), model)
        before = model.table.weight.detach().clone()
        model.zero_grad()
        model().backward()
        model.table.weight.grad = None
        set_rate(optimizers, 0.1)
        for optimizer in optimizers:
            optimizer.step()
        assert torch.equal(model.table.weight, before), name


@pytest.mark.parametrize("name", ALL)
def test_states_go_out_by_name_and_come_back(name):
    one, two = Net(), Net()
    first, second = (build_optimizers(TrainConfig(optimizer=name), model) for model in (one, two))
    for _ in range(3):
        step(one, first)
    two.load_state_dict(one.state_dict())
    tensors, numbers = optimizer_state(first, names(one))
    assert all(key.rpartition("/")[0] in dict(one.named_parameters()) for key in [*tensors, *numbers])
    load_optimizer_state(second, names(two), {key: value.clone() for key, value in tensors.items()}, numbers, "x")
    for _ in range(3):
        step(one, first)
        step(two, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_state_of_an_unknown_parameter_is_refused():
    model = Net()
    optimizers = build_optimizers(TrainConfig(), model)
    with pytest.raises(CheckpointError, match=r"opt.safetensors: .*not trained: inner.more, other"):
        tensors = {"other/exp_avg": torch.zeros(1), "inner.more/exp_avg": torch.zeros(1)}
        load_optimizer_state(optimizers, names(model), tensors, {}, "opt.safetensors")


def test_a_state_of_another_optimizer_is_refused():
    model = Net()
    optimizers = build_optimizers(TrainConfig(), model)
    tensors = {f"{name}/momentum_buffer": torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"opt.safetensors: holds states of another optimizer .*'step' is missing"):
        load_optimizer_state(optimizers, names(model), tensors, {}, "opt.safetensors")


@pytest.mark.parametrize("axes", [("vocab", "residual"), ("channels", "sound"), ("pixels", "channels"), ("channels", "taps")])
def test_muon_leaves_the_ends_of_a_network_and_taps_to_adamw(axes):
    model = torch.nn.Module()
    model.inner, model.end = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4, 4))
    model.end.axes = axes
    matrices, others = (
        {id(p) for g in each.param_groups for p in g["params"]} for each in build_optimizers(TrainConfig(optimizer="muon"), model)
    )
    assert (matrices, others) == ({id(model.inner)}, {id(model.end)})
