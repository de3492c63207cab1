"""Kernels compiled for processors with 4 and 8 floats in a register, whatever this one has, beside their equations."""

from __future__ import annotations

import pytest
import torch

from mmlm.kernels.attention.fast import attention
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.dispatch import available
from mmlm.kernels.parity import disagreements, with_gradients
from mmlm.kernels.rms_norm.fast import rms_norm
from mmlm.kernels.ssd.fast import ssd
from mmlm.kernels.swiglu.fast import swiglu


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def whole(length):
    return torch.ones(2, length, dtype=torch.int32)


@pytest.mark.slow
@pytest.mark.skipif("native" not in available("attention"), reason="no compiler")
@pytest.mark.parametrize("march", ["x86-64", "haswell"])
def test_every_width_of_a_register_computes_the_same(march, other_flags):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        if march == "haswell" and not {"avx2", "fma"} <= set(file.read().split()):
            pytest.skip("this processor lacks avx2 or fma")
    other_flags(march)
    step = normal(2, 70, 3).detach().exp().mul(0.1).requires_grad_()
    cases = [
        (attention, {name: normal(2, 2, 75, 20) for name in ("q_bhtk", "k_bglk", "v_bglk")}, {"causal": True}),
        (rms_norm, {"x": normal(5, 37), "weight_d": normal(37)}, {}),
        (swiglu, {"gate_up": normal(5, 74)}, {}),
        (causal_conv1d, {"x_btc": normal(2, 40, 21), "weight_ck": normal(21, 4), "bias_c": normal(21)}, {"document_bt": whole(40)}),
        (ssd, {
            "x_bthp": normal(2, 70, 3, 20), "step_bth": step, "decay_h": normal(3).detach().exp().neg().requires_grad_(),
            "key_btgn": normal(2, 70, 1, 13), "query_btgn": normal(2, 70, 1, 13),
        }, {"document_bt": whole(70)}),
    ]  # fmt: skip
    for op, tensors, options in cases:
        exact = with_gradients(op, tensors, backend="reference", **options)
        assert disagreements(with_gradients(op, tensors, backend="native", **options), exact, 1e-5) == [], op.__name__
