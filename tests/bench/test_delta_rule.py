"""The delta rule beside its step loop and its chunked form, and its cost per token as rows grow. One thread, CPU time, parity first."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.delta_rule.tolerance import TOLERANCE
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import disagreements, with_gradients
from tests.bench.measure import MARGIN, compare

pytestmark = pytest.mark.bench
GATED = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def inputs(length, gated, heads=4, size=64):
    g = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(1, length, heads, size, generator=g) for _ in range(3))
    tensors = {
        "query_btgk": F.normalize(query, dim=-1) * size**-0.5,
        "key_btgk": F.normalize(key, dim=-1),
        "value_bthv": value,
        "beta_bth": 2 * torch.rand(1, length, heads, generator=g),
    }
    if gated:
        tensors["decay_bth"] = -torch.rand(1, length, heads, generator=g)
    return {name: x.requires_grad_() for name, x in tensors.items()}


def forms(tensors, backends, both_ways):
    length = tensors["beta_bth"].shape[1]
    document = torch.ones(1, length, dtype=torch.int32)
    if not both_ways:
        tensors = {name: x.detach() for name, x in tensors.items()}
    grads = [torch.ones_like(tensors["value_bthv"]), torch.ones(1, 4, 64, 64)]

    def run(backend):
        if backend == "loop":
            y, last = step_loop(**tensors)
        else:
            y, last = delta_rule(**{"decay_bth": None, **tensors}, document_bt=document, backend=backend)
        if both_ways:
            torch.autograd.grad([y, last], list(tensors.values()), grads)

    return {backend: functools.partial(run, backend) for backend in backends}


def step_loop(query_btgk, key_btgk, value_bthv, beta_bth, decay_bth=None):
    """The loop as one writes it where there are no documents."""
    s, outputs = 0.0 * key_btgk[:, 0, :, :, None] * value_bthv[:, 0, :, None], []
    for i in range(key_btgk.shape[1]):
        key = key_btgk[:, i, :, :, None]
        if decay_bth is not None:
            s = s * decay_bth[:, i, :, None, None].exp()
        error = value_bthv[:, i] - (s * key).sum(-2)
        s = s + key * (beta_bth[:, i, :, None] * error)[:, :, None]
        outputs.append((s * query_btgk[:, i, :, :, None]).sum(-2))
    return torch.stack(outputs, dim=1), s


def ratio(what, times, peer, goal=None):
    found = times[peer] / times["native"]
    row = "   ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    print(f"\n{what}: {row}   native is {found:.1f}x {peer}" + (f", goal {goal}x" if goal else ""))
    assert not goal or found >= goal / MARGIN, f"{what}: {found:.1f}x {peer}, goal {goal}x"


@GATED
@pytest.mark.parametrize("length", [512, 2048])
def test_native_beside_the_step_loop_and_the_chunked_form(length, gated):
    backends = available("delta_rule", but="reference")
    small = inputs(200, gated)
    given = {"document_bt": torch.ones(1, 200, dtype=torch.int32)}
    exact = {name: x.detach().double().requires_grad_() for name, x in small.items()}
    rule = delta_rule if gated else functools.partial(delta_rule, decay_bth=None)
    wanted = with_gradients(rule, exact, **given, backend="reference")
    for backend in backends:
        assert disagreements(with_gradients(rule, small, **given, backend=backend), wanted, TOLERANCE[torch.float32]) == [], backend
    assert disagreements(with_gradients(step_loop, small), wanted, TOLERANCE[torch.float32]) == []
    tensors = inputs(length, gated)
    for both_ways, loop_goal, chunk_goal in ((False, 40, 4), (True, 50, 2)):
        what = f"{'gated ' if gated else ''}delta rule 1 x {length}, 4 heads of 64, {'both ways' if both_ways else 'forward'}"
        ratio(what, compare(forms(tensors, ["torch", "native"], both_ways), rounds=5), "torch", chunk_goal)
        loops = compare(forms(tensors, ["loop", "native"], both_ways), rounds=3)
        ratio(what, loops, "loop", loop_goal if length == 2048 else None)  # the length that the goal names


@GATED
def test_cost_of_a_token_at_8192_is_within_15_percent_of_that_at_1024(gated):
    runs = {}
    for length in (1024, 8192):
        runs |= {(length, both): forms(inputs(length, gated), ["native"], both)["native"] for both in (False, True)}
    times = compare(runs, rounds=7, seconds=1.0)
    for both in (False, True):
        short, long = (times[length, both] / length * 1e3 for length in (1024, 8192))
        what = f"{'gated ' if gated else ''}delta rule, {'both ways' if both else 'forward'}"
        print(f"\n{what}: {short:.2f} us a token at 1024, {long:.2f} at 8192, {long / short:.2f}x, goal 1.15x")
        assert long / short <= 1.15 * MARGIN
