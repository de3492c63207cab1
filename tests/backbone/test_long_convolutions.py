"""What S4, H3 and the long convolution are, beyond the contract of every mixer."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from mmlm.backbone.config import MIXERS
from mmlm.backbone.s4 import hippo
from mmlm.base.errors import RecipeError
from mmlm.kernels.long_conv.butterfly import SIZES, block_fft, butterfly_convolution, dft_matrix
from mmlm.layout import Layout
from mmlm.parameters import initialize
from mmlm.training.optimizers import parameter_groups


def build(width, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = MIXERS.parse(config).build(width).double()
        initialize(mixer, 2)
    return mixer


def test_hippo_rates_and_low_rank_give_the_matrix_back():
    """A = V (diag(rate) - p p*) V* with both halves of the modes has the eigenvalues -1 ... -n of the lower triangular HiPPO matrix."""
    size = 8
    rate, p, _ = hippo(size)
    rate, p = torch.cat([rate, rate.conj()]), torch.cat([p, p.conj()])
    found = torch.linalg.eigvals(torch.diag(rate) - p[:, None] * p.conj())
    assert found.imag.abs().max() < 1e-6
    torch.testing.assert_close(found.real.sort().values, -torch.arange(size, 0, -1, dtype=torch.float64), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("form", ["dplr", "diagonal"])
def test_hippo_at_first_follows_the_equation_of_the_continuous_system(form):
    """Impulse response of h' = A h + B u by small steps of the dense HiPPO matrix; S4D-LegS leaves the low rank out."""
    size, step = 6, 1e-3
    mixer = build(1, type="s4", form=form, state_size=size, min_step=step, max_step=step)
    order = torch.arange(size, dtype=torch.float64)
    root = (2 * order + 1).sqrt()
    a = -(root[:, None] * root).tril(-1) - torch.diag(order + 1)
    p = (order + 0.5).sqrt()
    normal_part = a + p[:, None] * p
    frequency, vectors = torch.linalg.eigh(-1j * (normal_part + 0.5 * torch.eye(size)))
    output = torch.view_as_complex(mixer.systems.output)[0]
    modes = vectors.conj().T[size // 2 :]
    dense = a if form == "dplr" else normal_part
    state, wanted = torch.linalg.solve(torch.eye(size) - step / 2 * dense, step * root), []
    advance = torch.linalg.solve(torch.eye(size) - step / 2 * dense, torch.eye(size) + step / 2 * dense)
    for _ in range(300):
        wanted.append(2 * (output * (modes @ state.to(modes.dtype))).real.sum())
        state = advance @ state
    found = mixer.systems.system().kernel(300)[0]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-8 if form == "dplr" else 2e-5)


@torch.no_grad()
def test_h3_recalls_what_followed_a_token_by_construction():
    """Queries, keys and values are the tokens' unit vectors, the shift delays by one, the diagonal system sums for ever:
    the output counts, for each earlier occurrence of the current token, the token that came after it."""
    words = 6
    mixer = build(words, type="h3", head_size=words, shift_size=3, state_size=2, bias=False)
    eye = torch.eye(words, dtype=torch.float64)
    mixer.input.weight.copy_(torch.cat([eye] * 3))
    mixer.out.weight.copy_(eye)
    mixer.shift.copy_(torch.tensor([0.0, 1.0, 0.0]).expand(words, 3))
    mixer.shift_skip.zero_()
    mixer.systems.skip.zero_()
    mixer.systems.damping_log.fill_(-math.inf)  # poles 1
    mixer.systems.frequency.fill_(1e-9)
    mixer.systems.input.copy_(torch.tensor([0.5, 0.0]).double() / mixer.systems.step_log.exp()[:, None, None])
    mixer.systems.output.copy_(torch.tensor([1.0, 0.0]))
    tokens = torch.randint(0, words, (2, 25), generator=torch.Generator().manual_seed(1))
    found = mixer(eye[tokens], Layout.plain(2, 25))[0]
    wanted = torch.zeros_like(found)
    for row in range(2):
        for t in range(25):
            for s in range(1, t + 1):
                if tokens[row, s - 1] == tokens[row, t]:
                    wanted[row, t, tokens[row, s]] += 1
    assert wanted.max() >= 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "scaled"),
    [
        ({"type": "s4"}, {"systems.step_log", "systems.damping_log", "systems.frequency", "systems.low_rank", "systems.input"}),
        ({"type": "long_conv", "num_taps": 8}, {"kernel"}),
    ],
)
def test_the_optimizer_trains_systems_slowly_and_without_decay(config, scaled):
    mixer = build(8, **config)
    names = {id(p): name for name, p in mixer.named_parameters()}
    groups = parameter_groups(mixer.parameters(), 0.1)
    assert {names[id(p)] for group in groups if group["lr_scale"] == 0.1 for p in group["params"]} == scaled
    assert {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]} == {"mix.out.weight"}


@torch.no_grad()
@pytest.mark.parametrize(
    "config", [{"type": "s4", "state_size": 4}, {"type": "h3", "head_size": 2}, {"type": "long_conv", "num_taps": 300}], ids=str
)
def test_what_is_remembered_follows_the_parameters(config):
    """Kernels and systems are kept from call to call in generation, and made anew when an optimizer has changed a parameter."""
    mixer, layout = build(4, **config).float().eval(), Layout.plain(1, 9)
    x = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    before = mixer(x, layout)[0]
    assert torch.equal(mixer(x, layout)[0], before)
    optimizer = torch.optim.AdamW([p for name, p in mixer.named_parameters() if name in ("kernel", "systems.output")], lr=0.1, fused=True)
    with torch.enable_grad():
        mixer(x, layout)[0].square().sum().backward()
    optimizer.step()
    after = mixer(x, layout)[0]
    other = copy.deepcopy(mixer)
    assert not torch.allclose(after, before) and torch.equal(other(x, layout)[0], after)


@torch.no_grad()
def test_a_kernel_is_squashed_and_smoothed():
    mixer = build(3, type="long_conv", num_taps=21, squash=0.005)
    kernel = mixer._regular()
    assert torch.equal(kernel == 0, mixer.kernel.abs() <= 0.005) and (kernel == 0).any()
    torch.testing.assert_close((mixer.kernel - kernel).abs().max(), torch.tensor(0.005).double())
    over_time = build(3, type="long_conv", num_taps=21, squash=0.005, smooth=7)._regular()
    torch.testing.assert_close(over_time[:, 10], kernel[:, 7:14].mean(1))

    def roughness(taps):
        return (taps[:, 1:] - taps[:, :-1]).norm() / taps.norm()

    assert roughness(over_time) < 0.6 * roughness(kernel)
    over_frequency = build(3, type="long_conv", num_taps=21, squash=0.005, smooth=5, smooth_over="frequency")._regular()
    spectrum = torch.fft.fft(kernel)
    wanted = torch.stack([spectrum.roll(shift, dims=1) for shift in range(-2, 3)]).mean(0)
    torch.testing.assert_close(torch.fft.fft(over_frequency), wanted)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "h3", "head_size": 3}, "h3: width 16 is not a multiple of head_size 3"),
        ({"type": "long_conv", "init": "normal", "init_std": 0.002, "squash": 0.1}, "squash 0.1 would leave 0% of the taps"),
        ({"type": "long_conv", "smooth": 4}, "smooth .4. must be odd"),
        ({"type": "long_conv", "smooth_over": "time"}, "smooth_over has no effect with smooth 1"),
        ({"type": "s4", "init": "lin"}, "init 'lin' is diagonal; form dplr must have init 'legs'"),
        ({"type": "s4", "discretization": "zoh"}, "form dplr must have discretization 'bilinear'"),
        ({"type": "s4", "min_step": 0.5}, "min_step .0.5. must be at most max_step .0.1."),
        ({"type": "h3", "min_step": 0.5}, "min_step .0.5. must be at most max_step .0.1."),
    ],
)
def test_settings_that_cannot_work_are_told(config, message):
    with pytest.raises((RecipeError, ValueError), match=message):
        MIXERS.parse(config).build(16)


@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 64, 256, 512, 4096, 8192])
def test_small_matrices_make_the_fourier_transform(size):
    matrices = {n: dft_matrix(n, torch.complex128) for n in SIZES}
    x = torch.randn(3, size, dtype=torch.complex128, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(block_fft(x, matrices), torch.fft.fft(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("length", "taps"), [(1, 5), (7, 7), (40, 6), (33, 100)])
def test_a_product_of_such_spectra_is_the_convolution(length, taps):
    g = torch.Generator().manual_seed(0)
    x, kernel = torch.randn(2, 3, length, dtype=torch.float64, generator=g), torch.randn(3, taps, dtype=torch.float64, generator=g)
    found = butterfly_convolution(x, kernel, {n: dft_matrix(n, torch.complex128) for n in SIZES})
    padded = torch.nn.functional.pad(x, (taps - 1, 0))
    torch.testing.assert_close(found, torch.nn.functional.conv1d(padded, kernel.flip(1)[:, None], groups=3), rtol=0, atol=1e-12)


def test_a_learned_transform_begins_as_fouriers_and_is_learned():
    """At first the layer is the fixed one; a step of gradients changes every matrix that the length has need of."""
    fixed, learned = (build(6, type="long_conv", num_taps=9, learned_transform=which) for which in (False, True))
    assert not fixed.transform and all(torch.equal(a, b) for a, b in zip(fixed.parameters(), learned.parameters()))
    x = torch.randn(1, 20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    document = torch.tensor([[1] * 12 + [0] * 2 + [2] * 6]).int()
    layout = Layout(document, torch.arange(20)[None, :, None], causal=False)
    wanted = fixed(x, Layout(document, torch.arange(20)[None, :, None]))[0]
    y = learned(x, layout)[0]
    torch.testing.assert_close(y[document > 0], wanted[document > 0], rtol=0, atol=1e-10)
    before = {size: matrix.detach().clone() for size, matrix in learned.transform.items()}
    optimizer = torch.optim.AdamW(learned.parameters(), lr=1e-3)
    y.square().sum().backward()
    optimizer.step()
    assert [size for size, matrix in learned.transform.items() if not torch.equal(matrix, before[size])] == ["2", "16"]
    seen = torch.autograd.grad(learned(x.requires_grad_(), layout)[0][0, 3].sum(), x)[0][0].abs().amax(-1)
    assert seen[10] > 1e-9 and not seen[14:].any(), "later tokens of its document, and no other's"


def test_a_learned_transform_wants_whole_documents():
    learned = build(4, type="long_conv", num_taps=5, learned_transform=True)
    with pytest.raises(RecipeError, match="learned_transform sees later tokens and cannot go token by token"):
        learned.init_state(1, 0, torch.float64, "cpu")
    with pytest.raises(RecipeError, match="learned_transform sees later tokens, but the data's layout is causal"):
        learned(torch.zeros(1, 3, 4, dtype=torch.float64), Layout.plain(1, 3))
