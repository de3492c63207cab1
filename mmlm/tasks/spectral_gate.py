"""The classical way to less noise, which a trained model has to beat: what is not well above the floor of its frequency is turned down.

The floor is the level that a fifth of the frames of a frequency stay below; so noise must be steady and the sound have pauses.
Source: spectral gating, after spectral subtraction, Boll 1979.

Axes: n samples   m frames   f frequencies
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mmlm.sound import Sound
from mmlm.tokenizers.codec.spectra import overlap_add, spectrum

WINDOW_SECONDS, SHIFTS = 0.032, 4
QUIETEST, ABOVE, FALL, LEAST = 0.2, 4.0, 4.0, 0.1  # share of frames, times the floor, steepness, smallest gain
SMOOTH = 5  # frames and frequencies over which gains are averaged, so that no single cell rings


def spectral_gate(sound: Sound) -> Sound:
    """The sound with each cell of its spectrum turned down by up to 20 dB where it is near the floor."""
    hop = max(1, round(WINDOW_SECONDS * sound.rate_hz / SHIFTS))
    wave_n = torch.from_numpy(sound.wave_n)
    given_bmf = spectrum(F.pad(wave_n, (0, -len(wave_n) % hop))[None], SHIFTS * hop, hop)
    size_mf = given_bmf[0].abs()
    floor_f = size_mf.quantile(QUIETEST, dim=0)
    gain_mf = torch.sigmoid(FALL * (size_mf / (ABOVE * floor_f).clamp_min(1e-9) - 1))
    smooth_mf = F.avg_pool2d(gain_mf[None, None], SMOOTH, 1, SMOOTH // 2, count_include_pad=False)[0, 0]
    made_bn = overlap_add(given_bmf * (LEAST + (1 - LEAST) * smooth_mf), SHIFTS * hop, hop)
    return Sound(made_bn[0, : len(wave_n)].numpy(), sound.rate_hz)
