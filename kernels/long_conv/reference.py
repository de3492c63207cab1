"""Long causal convolutions as sums, state-space systems as recurrences, and the kernel of S4 as its paper computes it.

Axes: b rows   t tokens   c channels   k taps, the first one for the current token   m signals that share a kernel   z real state channels
n modes   j frequencies
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmlm.kernels.long_conv.systems import DiagonalPlusLowRank, System


def long_conv_reference(
    x_btc: Tensor, kernel_ck: Tensor, document_bt: Tensor, state_bck: Tensor | None = None, continues_b: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """y_t = sum_j kernel_j x_{t - j} over the tokens of one document; padding is not among them."""
    (b, t, channels), past = x_btc.shape, kernel_ck.shape[1] - 1
    if b == 0:
        return x_btc, state_bck
    exact = torch.promote_types(x_btc.dtype, torch.float32)
    rows, kept = [], []
    for row in range(b):
        outputs: list[Tensor] = [x_btc.new_zeros(channels, dtype=exact)] * t
        before = x_btc.new_zeros(channels, past, dtype=exact) if state_bck is None else state_bck[row].to(exact)
        current, seen = 0, list(before.unbind(1))
        for i in range(t):
            document = int(document_bt[row, i])
            if document <= 0:
                continue
            if document != current and (current or continues_b is None or not bool(continues_b[row])):
                seen = [torch.zeros_like(outputs[0])] * past
            current = document
            seen.append(x_btc[row, i].to(exact))
            outputs[i] = sum((kernel_ck[:, j].to(exact) * seen[-1 - j] for j in range(past + 1)), torch.zeros_like(outputs[0]))
        rows.append(torch.stack(outputs) if t else x_btc[row].to(exact))
        kept.append(torch.stack(seen[len(seen) - past :], dim=1) if past else before)
    return torch.stack(rows).to(x_btc.dtype), None if state_bck is None else torch.stack(kept).to(x_btc.dtype)


def ssm_conv_reference(
    u_btcm: Tensor, system: System, document_bt: Tensor, state_bcmz: Tensor | None = None, continues_b: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """h_t = A h_{t-1} + B u_t;  y_t = C h_t;  h = 0 where a document begins. Padding changes nothing."""
    a_czz, b_cz, c_cz = system.matrices()
    h = u_btcm.new_zeros(len(u_btcm), *u_btcm.shape[2:], a_czz.shape[-1], dtype=a_czz.dtype) if state_bcmz is None else state_bcmz
    h, u = h.to(a_czz.dtype), u_btcm.to(a_czz.dtype)
    current = document_bt.new_zeros(len(document_bt))  # the document that h belongs to; 0: none seen yet
    goes_on = torch.ones_like(current, dtype=torch.bool) if continues_b is None else continues_b.bool()
    outputs = []
    for i in range(u.shape[1]):
        document = document_bt[:, i]
        real = (document > 0)[:, None, None]
        kept = torch.where(current == 0, goes_on, document == current)[:, None, None, None]
        new = torch.einsum("cyz,bcmz->bcmy", a_czz, torch.where(kept, h, 0)) + b_cz[:, None] * u[:, i, ..., None]
        h = torch.where(real[..., None], new, h)
        outputs.append(torch.where(real, (h * c_cz[:, None]).sum(-1), 0))
        current = torch.where(document > 0, document, current)
    y = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(u)
    return y.to(u_btcm.dtype), None if state_bcmz is None else h.to(state_bcmz.dtype)


def cauchy_kernel(system: DiagonalPlusLowRank, length: int) -> Tensor:
    """K [c, l] by the generating function on the circle, c (I - A^L) (I - A z)^-1 B, of Cauchy sums (arXiv:2111.00396, section 3)."""
    size = 1 << max(length - 1, 1).bit_length()
    a, _, c = system.matrices()
    truncated = c - (c[:, None] @ torch.linalg.matrix_power(a, size))[:, 0]
    truncated = (truncated[:, 0::2] - 1j * truncated[:, 1::2]) / 2
    bent = system.p.conj()
    weight = torch.stack([truncated * system.b, truncated * system.p, bent * system.b, bent * system.p], dim=1)  # [c, 4, n]
    return torch.fft.irfft(_generating(weight, system.rate, system.speed, size), n=size)[:, :length]


def _generating(weight_cwn: Tensor, rate_cn: Tensor, speed_c1: Tensor, size: int) -> Tensor:
    """The generating function [c, j] at z = exp(-2 pi i j / size), j = 0 ... size / 2.

    With z = exp(-2 i a) the argument of the Cauchy sums is i speed tan a; numerator and denominator are multiplied by cos a, so nothing is
    divided by zero at z = -1. A mode and its conjugate are one term with real coefficients.
    """
    angle = torch.arange(size // 2 + 1, dtype=torch.float64, device=rate_cn.device) * (math.pi / size)
    sine, cosine = angle.sin(), angle.cos()
    across, along = speed_c1[..., None] * sine, rate_cn.abs()[..., None] * cosine  # [c, 1, j], [c, n, j]
    turn = -2 * rate_cn.real[..., None] * cosine * across
    inverse = torch.complex((along - across) * (along + across), turn).reciprocal()
    flat = torch.cat([inverse.real, inverse.imag], dim=-1)  # [c, n, j twice]
    ahead, damped = (2 * part @ flat for part in (weight_cwn.real, (weight_cwn * rate_cn[:, None].conj()).real))
    ahead, damped = (torch.complex(*part.chunk(2, dim=-1)) for part in (ahead, damped))
    output, left, right, both = (1j * across * ahead - cosine * damped).unbind(1)
    return torch.polar(torch.ones_like(angle), angle) * (output - cosine * left * right / (1 + cosine * both))
