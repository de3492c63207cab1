"""Long convolutions and state-space systems: every form equals the sum or the recurrence, in any split, packed and continued."""

from __future__ import annotations

import math

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.dispatch import available
from mmlm.kernels.long_conv import transform
from mmlm.kernels.long_conv.fast import long_conv
from mmlm.kernels.long_conv.passes import NativePasses, TorchPasses
from mmlm.kernels.long_conv.reference import cauchy_kernel
from mmlm.kernels.long_conv.ssm import ssm_conv
from mmlm.kernels.long_conv.systems import Diagonal, DiagonalPlusLowRank, powers
from mmlm.kernels.long_conv.tolerance import TOLERANCE
from mmlm.kernels.parity import covering, disagreements, forms, relative_error, with_gradients

BACKENDS = available("long_conv", but="reference")
LAYOUTS = {
    "plain": lambda t: [1] * t,
    "packed": lambda t: [1 + 4 * i // t for i in range(t)],
    "one token each": lambda t: [1 + i for i in range(t)],
    "padded": lambda t: [2] * (t - t // 3) + [0] * (t // 3),
    "padding between": lambda t: [(0, 1, 1, 1, 0, 2, 2)[i % 7] if i < 14 else 5 for i in range(t)],
}
FORMS = forms("long_conv", TOLERANCE)
SIZES = [(1, 4), (5, 2), (15, 21), (21, 7)]  # length and taps
CARRIED = ["fresh", "continued", "some continued"]


def normal(g, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()


def complex_parts(g, *shape):
    return torch.view_as_complex(torch.randn(*shape, 2, generator=g, dtype=torch.float64))


def inputs(length, dtype, taps, state=True, channels=5):
    g = torch.Generator().manual_seed(length)
    tensors = {"x_btc": normal(g, 3, length, channels, dtype=dtype), "kernel_ck": normal(g, channels, taps, dtype=dtype)}
    if state:
        tensors["state_bck"] = normal(g, 3, channels, taps - 1, dtype=dtype)
    return tensors


def given(layout, length, carried):
    return {
        "document_bt": torch.tensor([LAYOUTS[layout](length), [1] * length, [0] * length]),
        "continues": torch.tensor([True, False, False]) if carried == "some continued" else None,
    }


def convolved(**named):
    y, last = long_conv(**named)
    return [y] if last is None else [y, last]


@pytest.mark.parametrize(("form", "size", "layout", "carried"), covering(3, FORMS, SIZES, list(LAYOUTS), CARRIED), ids=str)
def test_every_form_equals_the_sum(form, size, layout, carried, nan_filled_memory):
    (backend, dtype), (length, taps) = form, size
    tensors = inputs(length, dtype, taps, state=carried != "fresh")
    options = given(layout, length, carried)
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    wanted = with_gradients(convolved, exact, **options, backend="reference")
    got = with_gradients(convolved, tensors, **options, backend=backend)
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("length", [70, 129, 200, 1000])
def test_blocks_that_overlap_by_the_kernel_equal_one_transform(length, monkeypatch):
    tensors = inputs(length, torch.float64, 7)
    options = {"document_bt": torch.ones(3, length, dtype=torch.int32), "backend": "torch"}
    in_blocks = with_gradients(convolved, tensors, **options)
    monkeypatch.setattr(transform, "BLOCK_OF_TAPS", 1 << 20)
    assert disagreements(in_blocks, with_gradients(convolved, tensors, **options), 1e-12) == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("taps", [4, 50])
def test_any_split_gives_the_whole(backend, taps):
    tensors = {k: v.detach() for k, v in inputs(43, torch.float32, taps).items()}
    state = tensors.pop("state_bck") * 0
    document = torch.tensor([[1] * 11 + [2] * 32, [1] * 43, [3] * 2 + [4] * 41], dtype=torch.int32)
    whole, last = long_conv(**tensors, document_bt=document, state_bck=state, backend=backend)
    parts, at = [], 0
    for size in (1, 2, 13, 5, 1, 21):
        continues = None if at == 0 else document[:, at] == document[:, at - 1]
        part = {**tensors, "x_btc": tensors["x_btc"][:, at : at + size]}
        y, state = long_conv(**part, document_bt=document[:, at : at + size], state_bck=state, continues=continues, backend=backend)
        parts.append(y)
        at += size
    assert relative_error(torch.cat(parts, 1), whole) < 1e-6 and torch.equal(state, last)


@torch.no_grad()
def test_a_remembered_spectrum_follows_its_kernel():
    tensors = {k: v.detach() for k, v in inputs(40, torch.float64, 30, state=False).items()}
    options = {"document_bt": torch.ones(3, 40, dtype=torch.int32), "backend": "torch"}
    first = long_conv(**tensors, **options)[0]
    assert torch.equal(long_conv(**tensors, **options)[0], first)
    tensors["kernel_ck"].mul_(2)
    torch.testing.assert_close(long_conv(**tensors, **options)[0], 2 * first)


@pytest.mark.parametrize("shape", [(2, 19, 3, 70), (1, 33, 1, 5), (1, 1, 1, 1)], ids=str)
def test_passes_in_cpp_equal_those_in_torch(shape, nan_filled_memory):
    g = torch.Generator().manual_seed(0)
    n, c, m, length = shape
    laid = torch.randn(n, length, m, c, generator=g)
    for x in (laid.permute(0, 3, 2, 1), laid.permute(0, 3, 2, 1).contiguous(), torch.randn(1, 1, 1, 1).expand(shape)):
        for lead, size in ((0, length), (3, length + 10)):
            assert torch.equal(NativePasses().padded(x, lead, size), TorchPasses().padded(x, lead, size))
    a, b, shared = (torch.randn(*of, dtype=torch.complex64, generator=g) for of in (shape, shape, (1, c, 1, length)))
    for other in (b, shared):
        for conjugate in (False, True):
            wanted = TorchPasses().times(a, other, conjugate=conjugate)
            torch.testing.assert_close(NativePasses().times(a, other, conjugate=conjugate), wanted)
            torch.testing.assert_close(NativePasses().times(a.clone(), other, conjugate=conjugate, inplace=True), wanted)


def test_sizes_of_transforms_hold_what_they_must():
    for least in range(1, 300):
        size = transform.fast_size(least)
        assert least <= size and (least < 3 or size < 1.51 * least) and (size & (size - 1) == 0 or (size // 3) & (size // 3 - 1) == 0)


def diagonal(pole_angle, pole_log, gain):
    return Diagonal(torch.polar((-pole_log.exp()).exp(), pole_angle), torch.view_as_complex(gain))


def low_rank(damping, frequency, p, b, c, step_log):
    rate = torch.complex(-damping.exp(), frequency)
    return DiagonalPlusLowRank(rate, *(torch.view_as_complex(x) for x in (p, b, c)), step_log.exp())


def system_parameters(form, channels=3, modes=4):
    g = torch.Generator().manual_seed(modes)
    if form == "diagonal":
        shapes = {"pole_angle": (channels, modes), "pole_log": (channels, modes), "gain": (channels, modes, 2)}
    else:
        shapes = {"damping": (channels, modes), "frequency": (channels, modes)}
        shapes |= dict.fromkeys("pbc", (channels, modes, 2)) | {"step_log": (channels,)}
    found = {name: normal(g, *shape).detach() for name, shape in shapes.items()}
    for name, value in found.items():
        if name in ("pole_log", "step_log"):
            value.sub_(3)
    return {name: value.requires_grad_() for name, value in found.items()}


SYSTEMS = {"diagonal": diagonal, "low rank": low_rank}


def through_system(form, backend, options, u_btcm, state_bcmz=None, **parameters):
    y, last = ssm_conv(u_btcm, SYSTEMS[form](**parameters), state_bcmz=state_bcmz, backend=backend, **options)
    return [y] if last is None else [y, last]


def through(form, backend, options, tensors):
    return with_gradients(lambda **named: through_system(form, backend, options, **named), tensors)


@pytest.mark.parametrize(("form", "length", "layout", "carried"), covering(2, list(SYSTEMS), [1, 2, 21, 65], list(LAYOUTS), CARRIED))
def test_a_system_convolves_as_its_recurrence_runs(form, length, layout, carried, nan_filled_memory):
    if length < 21 and layout == "padding between":
        length += 13
    if carried == "fresh":
        length = max(length, 2)  # a first token alone has no past, and its output no gradient for A
    g = torch.Generator().manual_seed(length)
    tensors = {"u_btcm": normal(g, 3, length, 3, 2), **system_parameters(form)}
    if carried != "fresh":
        tensors["state_bcmz"] = normal(g, 3, 3, 2, 8)
    options = given(layout, length, carried)
    assert disagreements(through(form, "torch", options, tensors), through(form, "reference", options, tensors), 1e-12) == []


@pytest.mark.parametrize("backend", available("ssm_conv"))
def test_no_tokens_leave_the_state_of_a_system_as_it_is(backend):
    state = normal(torch.Generator().manual_seed(0), 3, 3, 2, 8).detach().float()
    options = {"document_bt": torch.ones(3, 0, dtype=torch.int32)}
    y, last = through_system("diagonal", backend, options, torch.zeros(3, 0, 3, 2), state, **system_parameters("diagonal"))
    assert y.shape == (3, 0, 3, 2) and torch.equal(last, state)


@pytest.mark.parametrize("form", SYSTEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_system_is_exact_enough_in_less_than_float64(form, dtype):
    g = torch.Generator().manual_seed(1)
    tensors = {"u_btcm": normal(g, 3, 100, 3, 2, dtype=dtype), **system_parameters(form)}
    tensors["state_bcmz"] = normal(g, 3, 3, 2, 8, dtype=torch.float32)
    exact = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
    options = given("packed", 100, "continued")
    got, wanted = through(form, "torch", options, tensors), through(form, "reference", options, exact)
    assert got["output 0"].dtype == dtype and got["output 1"].dtype == torch.float32
    assert disagreements(got, wanted, TOLERANCE[dtype]) == []


@pytest.mark.parametrize("length", [1, 2, 3, 64, 65, 100])
def test_cauchy_sums_and_products_give_the_powers_of_the_dense_bilinear_system(length):
    """With all matrices written out in the complex domain, conjugates included, independent of the code's real form."""
    channels, modes = 2, 8
    g = torch.Generator().manual_seed(3)
    frequency = torch.rand(channels, modes, generator=g, dtype=torch.float64) * 40
    rate = torch.complex(-torch.rand(channels, modes, generator=g, dtype=torch.float64) - 0.05, frequency)
    p, b, c = (complex_parts(g, channels, modes) for _ in range(3))
    step = torch.tensor([0.003, 0.09], dtype=torch.float64)
    system = DiagonalPlusLowRank(rate, p, b, c, step)

    def full(x):
        return torch.cat([x, x.conj()], dim=1)

    rate, p, b, c = map(full, (rate, p, b, c))
    a = torch.diag_embed(rate) - p[:, :, None] * p.conj()[:, None]
    eye, half = torch.eye(2 * modes), step[:, None, None] / 2
    left = torch.linalg.inv(eye - half * a)
    advance, enter = left @ (eye + half * a), (left @ (2 * half * b[..., None]))
    powers_of_a = [enter]
    for _ in range(length - 1):
        powers_of_a.append(advance @ powers_of_a[-1])
    wanted = torch.stack([(c[:, None] @ h)[:, 0, 0] for h in powers_of_a], dim=1)
    assert wanted.imag.abs().max() < 1e-12
    for found in (cauchy_kernel(system, length), system.kernel(length)):
        assert relative_error(found, wanted.real) < 1e-12


@pytest.mark.parametrize("length", [1, 2, 50, 257])
def test_a_diagonal_kernel_is_its_closed_form(length):
    g = torch.Generator().manual_seed(2)
    rate = torch.complex(-torch.rand(3, 5, generator=g, dtype=torch.float64), torch.rand(3, 5, generator=g, dtype=torch.float64) * 30)
    gain = complex_parts(g, 3, 5)
    lags = torch.arange(length, dtype=torch.float64)
    wanted = 2 * (gain[..., None] * (0.1 * rate[..., None] * lags).exp()).real.sum(1)
    assert relative_error(Diagonal((0.1 * rate).exp(), gain).kernel(length), wanted) < 1e-12


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13])
def test_powers_by_doubling(count):
    base = torch.tensor([0.9 + 0.1j, -0.3j], dtype=torch.complex128)
    torch.testing.assert_close(powers(base, count), base[:, None] ** torch.arange(count))


@pytest.mark.parametrize("form", SYSTEMS)
@torch.no_grad()
def test_a_system_with_slow_modes_is_exact_in_one_step_and_in_thousands(form):
    """A mode that keeps 97 % over the whole kernel: c (I - A^L) nearly vanishes, which float32 would not bear."""
    length = 2048
    g = torch.Generator().manual_seed(5)
    rate = torch.tensor([[-0.01 + 2j, -0.5 + 300j]], dtype=torch.complex128)
    b, c, step = complex_parts(g, 1, 2), complex_parts(g, 1, 2), torch.tensor([0.0015])
    if form == "diagonal":
        system = Diagonal((step.double() * rate).exp(), c * b)
    else:
        system = DiagonalPlusLowRank(rate, 0.1 * complex_parts(g, 1, 2), b, c, step)
    u = torch.zeros(1, length, 1, 1, dtype=torch.float64)
    u[0, 0] = 1
    wanted = ssm_conv(u, system, torch.ones(1, length, dtype=torch.int32), backend="reference")[0][0, :, 0, 0]
    assert relative_error(system.kernel(length)[0], wanted) < 1e-10 and math.isfinite(float(wanted.sum()))


def test_sequences_beside_each_other_copy_no_matrices():
    """Bytes that are asked for grow with the sequences by their states and sounds, not by the matrices of each channel."""
    g = torch.Generator().manual_seed(0)
    rate = torch.complex(-torch.rand(8, 16, generator=g).double() - 0.1, torch.randn(8, 16, generator=g).double())
    low_rank, given, output = (torch.randn(8, 16, 2, generator=g, dtype=torch.float64) * 0.1 for _ in range(3))
    system = DiagonalPlusLowRank(rate, *(torch.view_as_complex(each) for each in (low_rank, given, output)), torch.full((8,), 0.05))

    def asked(sequences: int) -> int:
        u, state = torch.randn(sequences, 8, 1, 130, generator=g), torch.randn(sequences, 8, 1, 32, generator=g)
        system.absorbed(u, state, torch.full((sequences,), 130))
        with torch.profiler.profile(profile_memory=True) as found, torch.no_grad():
            system.absorbed(u, state, torch.full((sequences,), 130))
            system.carried(state, 130)
        return sum(max(event.self_cpu_memory_usage, 0) for event in found.events())

    matrices = 8 * 32 * 32 * 8  # bytes of one power of the system
    assert asked(33) - asked(1) < 3 * 32 * matrices  # copied for each product it would be 27 times 32


def test_a_back_end_that_cannot_serve_says_why():
    for taps in (3, 300):
        with pytest.raises(RecipeError, match="'native' cannot serve long_conv: .*float64"):
            long_conv(**inputs(3, torch.float64, taps), document_bt=torch.ones(3, 3, dtype=torch.int32), backend="native")
