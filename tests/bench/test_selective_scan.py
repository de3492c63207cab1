"""Mamba-1 beside transformers' slow path, the only one it has on a CPU: a mixer of width 256 with the same weights, one thread, CPU time.

Goals, each asserted with a margin of 1.3: forward 7 times, forward and backward 60 times at 256 tokens (its backward grows with the square
of the length, so 256 is where it is timed; MMLM_BENCH_LONG=1 takes one pass of it at 1024, some 40 s, for the goal of 500 times), a third
of its memory; the same cost per token at 8192 as at 1024, and at most 80 KB of memory a token and layer.
"""

from __future__ import annotations

import os
import time

import pytest
import torch

from mmlm.backbone.config import Mamba1Config
from mmlm.backbone.mamba1 import Mamba1
from mmlm.kernels.dispatch import available, forced
from mmlm.kernels.parity import relative_error
from mmlm.layout import Layout
from tests.bench.measure import MARGIN, compare, peak_mb

pytestmark = [pytest.mark.bench, pytest.mark.slow]
WIDTH = 256
NAMES = {
    "input.weight": "in_proj.weight", "select.weight": "x_proj.weight", "step.weight": "dt_proj.weight", "step_bias": "dt_proj.bias",
    "out.weight": "out_proj.weight", "conv_bias": "conv1d.bias", "decay_log": "A_log", "skip": "D",
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    """A mixer of transformers and ours with the same weights."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    theirs = MambaMixer(transformers.MambaConfig(hidden_size=WIDTH, num_hidden_layers=1), layer_idx=0)
    ours = Mamba1(Mamba1Config(), WIDTH)
    own = theirs.state_dict()
    ours.load_state_dict({name: own[other] for name, other in NAMES.items()} | {"conv_weight": own["conv1d.weight"].squeeze(1)})
    return theirs, ours


def vectors(length):
    return torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(length)).requires_grad_()


def forward(mixer, x, backend="auto"):
    """A pass of either mixer without gradients, as a call without arguments."""

    @torch.no_grad()
    def run():
        return apply(mixer, x, backend)

    return run


def apply(mixer, x, backend="auto"):
    if not isinstance(mixer, Mamba1):
        return mixer(x)
    with forced(backend):
        return mixer(x, Layout.plain(*x.shape[:2]))[0]


def both(mixer, x, backend="auto"):
    """Forward and backward of either mixer, as a call without arguments."""
    weights = torch.ones_like(x)

    def run():
        return torch.autograd.grad(apply(mixer, x, backend), [x, *mixer.parameters()], weights)

    return run


def check(pair, length):
    """The same output and gradients: what makes the times comparable."""
    x = vectors(length)
    wanted, got = (apply(mixer, x) for mixer in pair)
    assert relative_error(got, wanted) < 1e-5
    (dx, *theirs), (own, *ours) = (both(mixer, x)() for mixer in pair)
    assert relative_error(own, dx) < 1e-4
    found = dict(zip([name for name, _ in pair[1].named_parameters()], ours))
    for (name, _), want in zip(pair[0].named_parameters(), theirs):
        mine = next((other for other, named in NAMES.items() if named == name), "conv_weight")
        assert relative_error(found[mine].view_as(want), want) < 1e-4, name


def ratios(what, times, peer, goals):
    row = "   ".join(f"{name} {ms:.2f} ms ({times[peer] / ms:.1f}x)" for name, ms in times.items())
    print(f"\n{what}: {row}   goals {goals}")
    for name, goal in goals.items():
        assert times[peer] / times[name] >= goal / MARGIN, f"{what}: {name} is {times[peer] / times[name]:.1f}x {peer}, goal {goal}x"


def native_and_torch(make, ours, x):
    return {name: make(ours, x, name) for name in ("native", "torch") if name in available("selective_scan")}


def goal(value):
    return {"native": value} if "native" in available("selective_scan") else {}


def test_a_mixer_at_256_and_1024_beside_transformers(pair):
    theirs, ours = pair
    check(pair, 256)
    x = vectors(256)
    times = compare({"transformers": forward(theirs, x), **native_and_torch(forward, ours, x)})
    ratios("Mamba-1 mixer 1 x 256 x 256, forward", times, "transformers", goal(7))
    contestants = {"transformers": both(theirs, x), **native_and_torch(both, ours, x)}
    ratios("Mamba-1 mixer 1 x 256 x 256, both ways", compare(contestants, rounds=3), "transformers", goal(60))
    memory = {name: peak_mb(run) for name, run in contestants.items()}
    print("   peak memory: " + ", ".join(f"{name} {mb:.0f} MB" for name, mb in memory.items()))
    assert memory["native" if "native" in memory else "torch"] <= memory["transformers"] / 3 * MARGIN

    x = vectors(1024)
    times = compare({"transformers": forward(theirs, x), **native_and_torch(forward, ours, x)})
    ratios("Mamba-1 mixer 1 x 1024 x 256, forward", times, "transformers", goal(7))
    times = compare(native_and_torch(both, ours, x))
    if os.environ.get("MMLM_BENCH_LONG") == "1":
        begin = time.process_time()
        both(theirs, x)()
        times["transformers"] = (time.process_time() - begin) * 1e3
        ratios("Mamba-1 mixer 1 x 1024 x 256, both ways (transformers once)", times, "transformers", goal(500))
    else:
        print("\nMamba-1 mixer 1 x 1024 x 256, both ways: " + "   ".join(f"{name} {ms:.2f} ms" for name, ms in times.items()))


def test_cost_per_token_does_not_grow_with_the_length(pair):
    if "native" not in available("selective_scan"):
        pytest.skip("no compiler here")
    ours = pair[1]
    lengths = (1024, 4096, 8192)
    runs = {length: both(ours, vectors(length)) for length in lengths}
    times = compare(runs, rounds=5, seconds=2.0)
    token = {length: times[length] / length * 1e3 for length in lengths}
    print("\nMamba-1 mixer, both ways, per token: " + "   ".join(f"{length}: {us:.1f} us" for length, us in token.items()))
    memory = {length: peak_mb(runs[length]) for length in lengths}
    kb = {length: mb * 1024 / length for length, mb in memory.items()}
    print("   peak memory per token: " + "   ".join(f"{length}: {each:.0f} KB" for length, each in kb.items()))
    assert kb[8192] <= 80 and memory[8192] - memory[4096] <= 80 * 4096 / 1024
    assert token[8192] <= 1.15 * MARGIN * token[1024]


@torch.no_grad()
def test_a_step_beside_transformers(pair):
    from transformers import DynamicCache, MambaConfig

    theirs, ours = pair
    x, one = vectors(16).detach(), vectors(1).detach()
    cache = DynamicCache(config=MambaConfig(hidden_size=WIDTH, num_hidden_layers=1))
    state = ours.init_state(1, 0, torch.float32, "cpu")
    layout = Layout.plain(1, 1)
    theirs(x, cache=cache)
    ours(x, Layout.plain(1, 16), state)
    assert relative_error(ours(one, layout, state)[0], theirs(one, cache=cache)) < 1e-5
    times = compare({"transformers": lambda: theirs(one, cache=cache), "native": lambda: ours(one, layout, state)})
    ratios("Mamba-1 mixer, one token of a sequence", times, "transformers", {})
