"""Every form of the selective scan equals the step loop: outputs, last state, all gradients, packed and continued."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import covering, disagreements, forms, with_gradients
from mmlm.kernels.selective_scan.fast import selective_scan
from mmlm.kernels.selective_scan.tolerance import TOLERANCE
from tests.kernels.recurrences import LAYOUTS, as_double

BACKENDS = available("selective_scan", but="reference")
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
    exact = as_double(tensors)
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
    exact = with_gradients(scan, as_double(tensors), **given, backend="reference")
    assert disagreements(with_gradients(scan, tensors, **given, backend=backend), exact, TOLERANCE[torch.float32]) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gate_that_is_a_slice_of_a_wider_tensor_is_read_as_it_lies(backend):
    tensors = inputs(17, torch.float32)
    wide = torch.cat([torch.full((3, 17, 9), 7.0), tensors["gate_bti"].detach(), torch.full((3, 17, 5), 7.0)], dim=2)
    document = torch.tensor([[1] * 10 + [2] * 7] * 3)
    exact = with_gradients(scan, tensors, document_bt=document, backend="reference")
    got = with_gradients(scan, {**tensors, "gate_bti": wide[..., 9:-5].requires_grad_()}, document_bt=document, backend=backend)
    assert disagreements(got, exact, 1e-5) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [-12.0, 20.0])
def test_tiny_and_huge_steps_keep_their_digits(backend, shift):
    tensors = inputs(120, torch.float32, state=False)
    tensors["step_bias_i"] = (tensors["step_bias_i"] + shift).detach().requires_grad_()
    document = torch.ones(3, 120, dtype=torch.int32)
    exact = as_double(tensors)
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
