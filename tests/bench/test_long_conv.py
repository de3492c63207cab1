"""How fast convolutions are beside torch's: ratios of CPU time on one thread, median of interleaved rounds, behind a parity check.

The bars are the goals divided by a margin of 1.3 for the noise of a shared machine.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.dispatch import available
from mmlm.kernels.long_conv.fast import long_conv
from mmlm.kernels.parity import disagreements, with_gradients
from tests.bench.measure import MARGIN, compare

pytestmark = pytest.mark.bench


def normal(*shape, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).requires_grad_()


def both_ways(function, tensors):
    """Forward and backward of a function, as a call without arguments."""
    grads = []

    def run():
        y = function(**tensors)
        if not grads:
            grads.append(torch.ones_like(y))
        torch.autograd.grad(y, list(tensors.values()), grads)

    return run


def show(what, times, goal):
    ratio = times["torch"] / times["ours"]
    print(f"\n{what}: torch {times['torch']:.2f} ms   ours {times['ours']:.2f} ms ({ratio:.2f}x)   goal {goal}x")
    assert ratio >= goal / MARGIN, f"{what}: {ratio:.2f}x, goal {goal}x"


def by_transforms(x_btc, kernel_ck):
    """torch.fft under autograd, from the layout of a layer to the layout of a layer; laid time last first, which is its fastest way."""
    t, size = x_btc.shape[1], 2 * x_btc.shape[1]
    spectrum = torch.fft.rfft(x_btc.transpose(1, 2).contiguous(), n=size) * torch.fft.rfft(kernel_ck, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :t].transpose(1, 2)


def test_long_convolution_with_a_kernel_as_long_as_the_sequence():
    tensors = {"x_btc": normal(1, 2048, 256), "kernel_ck": normal(256, 2048, scale=0.05)}
    document = torch.ones(1, 2048, dtype=torch.int32)

    def ours(x_btc, kernel_ck):
        return long_conv(x_btc, kernel_ck, document)[0]

    assert disagreements(with_gradients(ours, tensors), with_gradients(by_transforms, tensors), 1e-5) == []
    times = compare({"torch": both_ways(by_transforms, tensors), "ours": both_ways(ours, tensors)}, seconds=0.5)
    show("long convolution 2048 x 256, both ways", times, 2)
    fixed = {name: x.detach() for name, x in tensors.items()}
    with torch.no_grad():
        times = compare({"torch": lambda: by_transforms(**fixed), "ours": lambda: ours(**fixed)}, seconds=0.5)
    show("long convolution 2048 x 256, forward with a remembered spectrum", times, 1.5)


@pytest.mark.parametrize(("t", "channels", "taps"), [(1024, 640, 4), (2048, 256, 4), (2048, 256, 31), (2048, 256, 128)])
def test_short_filters(t, channels, taps):
    if "native" not in available("causal_conv1d"):
        pytest.skip("no native code here: the PyTorch form is torch's convolution itself")
    tensors = {"x_btc": normal(1, t, channels), "weight_ck": normal(channels, taps)}
    # torch's convolution gets its own layout, time last, so that no transposition is counted against it
    time_last = {"x_bct": tensors["x_btc"].detach().transpose(1, 2).contiguous().requires_grad_(), "weight_ck": tensors["weight_ck"]}
    document = torch.ones(1, t, dtype=torch.int32)

    def torch_form(x_bct, weight_ck):
        return F.conv1d(x_bct, weight_ck[:, None], groups=channels, padding=taps - 1)[..., :t]

    def ours(x_btc, weight_ck):
        return causal_conv1d(x_btc, weight_ck, None, document, activation=None)[0]

    def plain(x_btc, weight_ck):
        return torch_form(x_btc.transpose(1, 2), weight_ck).transpose(1, 2)

    assert disagreements(with_gradients(ours, tensors), with_gradients(plain, tensors), 1e-5) == []
    times = compare({"torch": both_ways(torch_form, time_last), "ours": both_ways(ours, tensors)}, seconds=0.5)
    show(f"depthwise convolution {t} x {channels}, {taps} taps, both ways", times, 4)
