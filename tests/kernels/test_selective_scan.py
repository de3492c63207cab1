"""Every form of the selective scan equals the step loop: outputs, last state, all gradients, packed and continued."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients
from mmlm.kernels.selective_scan.fast import selective_scan
from mmlm.kernels.selective_scan.tolerance import TOLERANCE

BACKENDS = available("selective_scan", but="reference")
LAYOUTS = {
    "plain": lambda t: [1] * t,
    "packed": lambda t: [1 + 3 * i // t for i in range(t)],
    "padded": lambda t: [2] * (t - t // 3) + [0] * (t // 3),
    "padding between": lambda t: [(0, 1, 1, 1, 0, 2, 2)[i % 7] if i < 14 else 5 for i in range(t)],
}

CASES = covering(3, forms("selective_scan", TOLERANCE), [1, 15, 37], list(LAYOUTS), ["fresh", "continued", "some continued"])


def inputs(length, dtype, channels=37, n=6, gate=True, state=True, seed=0):
    g = torch.Generator().manual_seed(seed + length)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = {
        "x_bti": normal(3, length, channels),
        "step_bti": normal(3, length, channels),
        "step_bias_i": normal(channels) * 2 - 1,
        "decay_in": -normal(channels, n).exp(),
        "key_btn": normal(3, length, n),
        "query_btn": normal(3, length, n),
        "skip_i": normal(channels),
    }
    if gate:
        tensors["gate_bti"] = normal(3, length, channels)
    if state:
        tensors["state_bin"] = normal(3, channels, n)
    kept = ("step_bias_i", "decay_in", "skip_i", "state_bin")  # float32 in every model
    return {k: v.to(torch.float32 if k in kept and dtype == torch.bfloat16 else dtype).requires_grad_() for k, v in tensors.items()}


def scan(**given):
    return selective_scan(**{"gate_bti": None, **given})


@pytest.mark.parametrize(("form", "length", "layout", "carried"), CASES, ids=str)
def test_every_form_equals_the_step_loop(form, length, layout, carried, nan_filled_memory):
    backend, dtype = form
    tensors = inputs(length, dtype, gate=length != 15, state=carried != "fresh")
    document = torch.tensor([LAYOUTS[layout](length), [1] * length, [0] * length])
    given = {
        "document_bt": document,
        "continues": torch.tensor([True, False, False]) if carried == "some continued" else None,
        "negative": layout == "packed",
    }
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(scan, exact, **given, backend="reference")
    got = with_gradients(scan, tensors, **given, backend=backend)
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("channels", "n", "threads", "negative"), [(48, 16, 5, False), (48, 16, 1, True), (70, 1, 5, True), (5, 19, 5, False)]
)
def test_long_rows_other_sizes_and_several_threads(backend, threads, channels, n, negative, monkeypatch, nan_filled_memory):
    monkeypatch.setattr("mmlm.kernels.native.threads", lambda seconds: threads)
    tensors = inputs(150, torch.float32, channels, n)
    document = torch.tensor([[1] * 65 + [2] * 1 + [3] * 49 + [0] * 35, [1] * 150, [0] * 5 + [3] * 101 + [4] * 44])
    given = {"document_bt": document, "continues": torch.tensor([True, True, False]), "negative": negative}
    exact = with_gradients(scan, {k: v.detach().double().requires_grad_() for k, v in tensors.items()}, **given, backend="reference")
    assert disagreements(with_gradients(scan, tensors, **given, backend=backend), exact, TOLERANCE[torch.float32]) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gate_that_is_a_slice_of_a_wider_tensor_is_read_as_it_lies(backend):
    tensors = inputs(17, torch.float32)
    wide = torch.cat([torch.full((3, 17, 9), 7.0), tensors["gate_bti"].detach(), torch.full((3, 17, 5), 7.0)], dim=2)
    document = torch.tensor([[1] * 10 + [2] * 7] * 3)
    exact = with_gradients(scan, tensors, document_bt=document, backend="reference")
    got = with_gradients(scan, {**tensors, "gate_bti": wide[..., 9:-5].requires_grad_()}, document_bt=document, backend=backend)
    assert disagreements(got, exact, 1e-5) == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_any_split_gives_the_whole(backend):
    tensors = {k: v.detach() for k, v in inputs(72, torch.float32, state=False).items()}
    document = torch.tensor([[1] * 25 + [2] * 47, [1] * 72, [3] * 9 + [4] * 63], dtype=torch.int32)
    whole, last = scan(**tensors, document_bt=document, backend=backend)
    state, parts, at = None, [], 0
    for size in (1, 7, 16, 1, 0, 47):
        part = {k: v[:, at : at + size] if v.ndim == 3 else v for k, v in tensors.items()}
        continues = None if at == 0 or not size else document[:, at] == document[:, at - 1]
        y, state = scan(**part, document_bt=document[:, at : at + size], state_bin=state, continues=continues, backend=backend)
        parts.append(y)
        at += size
    assert relative_error(torch.cat(parts, 1), whole) < 1e-5 and relative_error(state, last) < 1e-5


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("negative", [False, True])
def test_padding_gives_zero_and_leaves_the_state_as_it_is(backend, negative):
    tensors = {k: v.detach() for k, v in inputs(9, torch.float32).items()}
    document = torch.tensor([[0] * 9, [1] * 9, [1] * 5 + [0] * 4])
    given = {"document_bt": document, "negative": negative, "backend": backend}
    y, last = scan(**tensors, **given)
    assert torch.equal(last[0], tensors["state_bin"][0]) and not y[0].any() and not y[2, 5:].any()
    spoiled = {k: v.clone() for k, v in tensors.items()}
    for name in ("x_bti", "step_bti", "key_btn", "query_btn", "gate_bti"):
        spoiled[name][2, 5:] = torch.nan
    again, after = scan(**spoiled, **given)
    assert torch.equal(again, y) and torch.equal(after, last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [-12.0, 20.0])
def test_tiny_and_huge_steps_keep_their_digits(backend, shift):
    tensors = inputs(120, torch.float32, state=False)
    tensors["step_bias_i"] = (tensors["step_bias_i"] + shift).detach().requires_grad_()
    document = torch.ones(3, 120, dtype=torch.int32)
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(scan, exact, document_bt=document, backend="reference")
    assert disagreements(with_gradients(scan, tensors, document_bt=document, backend=backend), wanted, 1e-5) == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_sign_that_flips_is_remembered_exactly_only_with_negative_decays(backend):
    """Parity of a bit string: a step so long that the decay is gone multiplies the state with -1, a step of none with 1."""
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (1, 1000), generator=g)
    bits[0, 0] = 0
    x = torch.zeros(1, 1000, 1)
    x[0, 0] = 1 / torch.nn.functional.softplus(torch.tensor(0.0))
    step = torch.where(bits[..., None] == 1, 60.0, -60.0)
    step[0, 0] = 0.0
    ones = torch.ones(1, 1000, 1)
    given = (x, step, torch.zeros(1), -ones[0, :1], ones, ones, torch.zeros(1), None, torch.ones(1, 1000, dtype=torch.int32))
    parity = 1 - 2 * (bits.cumsum(1) % 2)
    y = selective_scan(*given, negative=True, backend=backend)[0][..., 0]
    torch.testing.assert_close(y, parity.float(), rtol=0, atol=1e-5)
    assert selective_scan(*given, backend=backend)[0].min() >= 0


def test_autocast_changes_nothing_and_the_dtype_of_x_is_kept():
    tensors = {k: v.detach() for k, v in inputs(20, torch.float32).items()}
    document = torch.ones(3, 20, dtype=torch.int32)
    for backend in ("reference", *BACKENDS):
        y, last = scan(**tensors, document_bt=document, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            y_cast, last_cast = scan(**tensors, document_bt=document, backend=backend)
        assert y_cast.dtype == torch.float32 and torch.equal(y, y_cast) and torch.equal(last, last_cast)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("step_bti", (3, 5, 36), r"step must be \[3, 5, 37\] beside x \[3, 5, 37\] and decay \[37, 6\], but is \[3, 5, 36\]"),
        ("step_bias_i", (1,), r"step_bias must be \[37\]"),
        ("decay_in", (36, 6), r"decay must be \[37, 6\]"),
        ("key_btn", (3, 5, 7), r"key must be \[3, 5, 6\]"),
        ("query_btn", (3, 4, 6), r"query must be \[3, 5, 6\]"),
        ("skip_i", (38,), r"skip must be \[37\]"),
        ("gate_bti", (1, 5, 37), r"gate must be \[3, 5, 37\]"),
        ("state_bin", (3, 6, 37), r"state must be \[3, 37, 6\]"),
        ("document_bt", (3, 6), r"document must be \[3, 5\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, shape, message):
    given = {**inputs(5, torch.float32), "document_bt": torch.ones(3, 5, dtype=torch.int32)}
    with pytest.raises(RecipeError, match=f"selective_scan: {message}"):
        scan(**{**given, name: torch.ones(shape)})
