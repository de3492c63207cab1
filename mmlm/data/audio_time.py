"""Speed without pitch and pitch without speed, by a phase vocoder.

The magnitudes of a spectrogram are read at another pace and the phase of each frequency goes on as fast as it did (Flanagan & Golden 1966).
Another pitch is another speed, played at another rate (Laroche & Dolson 1999). Windows of about 32 ms: 512 samples at 16 kHz.

Axes: n samples   t frames   f frequencies   w samples of a window
"""

from __future__ import annotations

import numpy as np

from mmlm.base.errors import require
from mmlm.data.audio_augment import drawn
from mmlm.data.config.augment import PitchShiftConfig, TimeStretchConfig
from mmlm.sound import Sound

WINDOW_SECONDS = 0.032


def stretched(wave_n: np.ndarray, rate: float, rate_hz: int) -> np.ndarray:
    """float32 [round(n / rate)]: the same sound, `rate` times as fast."""
    length = max(1, round(len(wave_n) / rate))
    if rate == 1 or not len(wave_n):
        return wave_n[:length]
    size = 1 << round(np.log2(WINDOW_SECONDS * rate_hz))
    hop, window_w = size // 4, np.hanning(size + 1)[:-1]
    padded_n = np.pad(wave_n.astype(np.float64), (size // 2, size + hop))
    spectrum_tf = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded_n, size)[::hop] * window_w)
    read_t = np.arange(-(-length // hop) + 1) * rate
    read_t = np.minimum(read_t, len(spectrum_tf) - 2 + 1e-9)
    before_t = np.minimum(read_t.astype(np.int64), len(spectrum_tf) - 2)
    part_t1 = (read_t - before_t)[:, None]
    level_tf, phase_tf = np.abs(spectrum_tf), np.angle(spectrum_tf)
    level_tf = (1 - part_t1) * level_tf[before_t] + part_t1 * level_tf[before_t + 1]
    expected_f = 2 * np.pi * hop * np.arange(size // 2 + 1) / size
    step_tf = phase_tf[before_t + 1] - phase_tf[before_t] - expected_f
    step_tf = step_tf - 2 * np.pi * np.rint(step_tf / (2 * np.pi)) + expected_f
    turned_tf = np.concatenate([phase_tf[:1], phase_tf[0] + np.cumsum(step_tf[:-1], axis=0)])
    frames_tw = np.fft.irfft(level_tf * np.exp(1j * turned_tf), size) * window_w
    return _overlapped(frames_tw, hop, window_w)[size // 2 : size // 2 + length].astype(np.float32)


def _overlapped(frames_tw: np.ndarray, hop: int, window_w: np.ndarray) -> np.ndarray:
    """[n]: windowed frames added up, divided by the squares of the window that lie over each sample."""
    count, size = frames_tw.shape
    parts = size // hop
    sum_n, weight_n = np.zeros((count + parts - 1) * hop), np.zeros((count + parts - 1) * hop)
    for part in range(parts):
        piece = slice(part * hop, (part + 1) * hop)
        sum_n[part * hop : (part + count) * hop] += frames_tw[:, piece].ravel()
        weight_n[part * hop : (part + count) * hop] += np.tile(window_w[piece] ** 2, count)
    return sum_n / np.maximum(weight_n, 1e-3)


def shifted(wave_n: np.ndarray, semitones: float, rate_hz: int, rate: float = 1.0) -> np.ndarray:
    """float32 [round(n / rate)]: the same sound, so many semitones higher, `rate` times as fast. Raises MissingExtra without soxr."""
    ratio, length = 2 ** (semitones / 12), max(1, round(len(wave_n) / rate))
    longer_n = stretched(wave_n, rate / ratio, rate_hz)
    found_n = require("soxr", "speech").resample(longer_n, rate_hz * ratio, rate_hz)[:length]
    return np.pad(found_n, (0, length - len(found_n))).astype(np.float32)


class TimeStretch:
    """Speech at another speed."""

    def __init__(self, config: TimeStretchConfig) -> None:
        self.rate = config.rate

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, dict[str, float]]:
        """(the sound with length / rate samples, the rate)."""
        rate = drawn(rng, self.rate)
        return Sound(stretched(sound.wave_n, rate, sound.rate_hz), sound.rate_hz), {"rate": rate}


class PitchShift:
    """Speech at another pitch."""

    def __init__(self, config: PitchShiftConfig) -> None:
        self.semitones = config.semitones

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, dict[str, float]]:
        """(the sound with as many samples, the semitones)."""
        semitones = drawn(rng, self.semitones)
        return Sound(shifted(sound.wave_n, semitones, sound.rate_hz), sound.rate_hz), {"semitones": semitones}
