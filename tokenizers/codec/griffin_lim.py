"""Sound from log-mel frames alone, by the classical method: what a codec of as many frames has to beat.

Source: Griffin and Lim 1984; with momentum, Perraudin et al. 2013.
Axes: b sounds   n samples   m frames   f frequencies
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmlm.sound import Sound
from mmlm.tokenizers.codec.spectra import FLOOR, log_mel, mel_filters, overlap_add, spectrum

ITERATIONS, MOMENTUM, BANDS = 32, 0.99, 80


def mel_griffin_lim(sound: Sound, hop: int) -> Sound:
    """A sound made again from its log-mel frames, one a hop, under windows of four hops."""
    window = 4 * hop
    wave_n = torch.from_numpy(sound.wave_n)
    wave_bn = F.pad(wave_n, (0, -len(wave_n) % hop))[None]
    mel_bmc = log_mel(wave_bn, sound.rate_hz, window, hop, BANDS).exp()
    filters_fc = mel_filters(sound.rate_hz, window, BANDS)
    size_bmf = (mel_bmc @ torch.linalg.pinv(filters_fc)).clamp_min(FLOOR)
    return Sound(_griffin_lim(size_bmf, window, hop)[0, : len(wave_n)].numpy(), sound.rate_hz)


def _griffin_lim(size_bmf: Tensor, window: int, hop: int) -> Tensor:
    """The waveform whose magnitudes are near the given ones, from random phases that are the same every time."""
    angle = torch.rand(size_bmf.shape, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    phase, before = torch.polar(torch.ones_like(size_bmf), angle), torch.zeros_like(size_bmf, dtype=torch.complex64)
    for _ in range(ITERATIONS):
        again = spectrum(overlap_add(size_bmf * phase, window, hop), window, hop)
        phase = again + MOMENTUM * (again - before)
        phase, before = phase / phase.abs().clamp_min(1e-12), again
    return overlap_add(size_bmf * phase, window, hop)
