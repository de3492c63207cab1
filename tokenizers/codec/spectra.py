"""Short-time spectra of waveforms, and waveforms from spectra.

Framing keeps a whole number of frames a token: a waveform of m hops gives m frames, each of them centred on its hop (or, where nothing of
the future may be seen, ending with it). Overlap-add is the exact inverse of the centred framing.

Axes: b sounds   n samples   m frames   f frequencies   c mel bands
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-5  # of magnitudes whose logarithm is taken


def _mel(hertz: float) -> float:
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


@lru_cache(maxsize=16)
def mel_filters(rate_hz: int, window: int, bands: int) -> Tensor:
    """Triangles float32 [window // 2 + 1, bands] on the mel scale of HTK from 0 Hz to half the rate, each with its peak at 1.

    A triangle narrower than the distance of two frequencies is widened to reach both, so that no band is empty.
    """
    with torch.inference_mode(False):  # what is kept must also serve training
        return _triangles(rate_hz, window, bands)


def _triangles(rate_hz: int, window: int, bands: int) -> Tensor:
    edges = torch.linspace(0.0, _mel(rate_hz / 2), bands + 2, dtype=torch.float64)
    hertz = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    step = rate_hz / window
    low, peak, high = hertz[:-2], hertz[1:-1], hertz[2:]
    low, high = torch.minimum(low, peak - step), torch.maximum(high, peak + step)
    at = torch.arange(window // 2 + 1, dtype=torch.float64)[:, None] * step
    return torch.minimum((at - low) / (peak - low), (high - at) / (high - peak)).clamp_min(0).float()


def frames(wave_bn: Tensor, window: int, hop: int, *, causal: bool = False) -> Tensor:
    """Windows [b, m, window] of a waveform of m hops; zeros lie before and after it.

    Window number i is centred on samples i * hop to (i + 1) * hop, or ends with them if causal.
    """
    rest = window - hop
    before = rest if causal else rest // 2
    return F.pad(wave_bn, (before, rest - before)).unfold(-1, window, hop)


def spectrum(wave_bn: Tensor, window: int, hop: int, *, causal: bool = False) -> Tensor:
    """Complex spectra [b, m, window // 2 + 1] under a Hann window."""
    return torch.fft.rfft(frames(wave_bn, window, hop, causal=causal) * hann(window, wave_bn))


def magnitude(wave_bn: Tensor, window: int, hop: int, *, causal: bool = False) -> Tensor:
    """Absolute values [b, m, window // 2 + 1] of `spectrum`, a little above them: at least 1e-5, with a gradient everywhere.

    window: a multiple of the hop. Backward goes by the real inverse transform, at a fraction of the cost of torch's own way.
    """
    found: Tensor = _Magnitude.apply(wave_bn, window, hop, causal)
    return found


class _Magnitude(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, wave_bn: Tensor, window: int, hop: int, causal: bool) -> Tensor:
        found_bmf = spectrum(wave_bn, window, hop, causal=causal)
        size_bmf = torch.addcmul(found_bmf.real.square(), found_bmf.imag, found_bmf.imag).add_(FLOOR**2).sqrt_()
        if context.needs_input_grad[0]:
            context.save_for_backward(found_bmf, size_bmf)
        context.about = window, hop, causal, wave_bn.shape[1]
        return size_bmf

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (found_bmf, size_bmf), (window, hop, causal, size) = context.saved_tensors, context.about
        share_bmf = grads[0] / size_bmf * (window / 2)
        share_bmf[..., 0] *= 2  # the frequencies between stand for two each in the inverse transform
        share_bmf[..., -1] *= 2
        back_bmf = torch.empty_like(found_bmf)
        torch.mul(found_bmf.real, share_bmf, out=back_bmf.real)
        torch.mul(found_bmf.imag, share_bmf, out=back_bmf.imag)
        pieces = torch.fft.irfft(back_bmf, n=window) * hann(window, size_bmf)
        before = window - hop if causal else (window - hop) // 2
        return _added(pieces, hop)[:, before : before + size], None, None, None


def log_mel(wave_bn: Tensor, rate_hz: int, window: int, hop: int, bands: int, *, causal: bool = False) -> Tensor:
    """Natural logarithm [b, m, bands] of mel-weighted magnitudes, at least about log(1e-5)."""
    size_bmf = magnitude(wave_bn, window, hop, causal=causal)
    return (size_bmf @ mel_filters(rate_hz, window, bands).to(size_bmf)).log()


def overlap_add(spectrum_bmf: Tensor, window: int, hop: int, mask_bm1: Tensor | None = None) -> Tensor:
    """The waveform [b, m * hop] whose centred spectra are nearest to those given. window: a multiple of hop. mask: 0 at frames of padding.

    Source: Griffin and Lim 1984, equation 6.
    """
    shape = hann(window, spectrum_bmf.real)
    pieces = torch.fft.irfft(spectrum_bmf, n=window) * shape
    count = pieces.shape[1]
    if mask_bm1 is not None:
        pieces = pieces * mask_bm1
    envelope = _added(shape * shape * (pieces.new_ones(1, count, 1) if mask_bm1 is None else mask_bm1), hop)
    before = (window - hop) // 2
    inside = slice(before, before + count * hop)
    return _added(pieces, hop)[:, inside] / envelope[:, inside].clamp_min(1e-8)


def _added(pieces_bmw: Tensor, hop: int) -> Tensor:
    """Pieces added up, each a hop after the one before: [b, (m - 1) * hop + window]."""
    b, m, window = pieces_bmw.shape
    shifts = window // hop
    parts = pieces_bmw.unflatten(-1, (shifts, hop))
    total = parts.new_zeros(b, m + shifts - 1, hop)
    for shift in range(shifts):
        total[:, shift : shift + m] += parts[:, :, shift]
    return total.flatten(1)


def hann(window: int, like: Tensor) -> Tensor:
    """A periodic Hann window [window]."""
    return _hann(window).to(like)


@lru_cache(maxsize=32)
def _hann(window: int) -> Tensor:
    with torch.inference_mode(False):  # what is kept must also serve training
        return torch.hann_window(window, dtype=torch.float32)
