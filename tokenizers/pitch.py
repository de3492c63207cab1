"""Fundamental frequency and level of speech over time.

Pitch by YIN (de Cheveigne & Kawahara 2002), voicing by how alike two periods are and how loud they are; or both by pYIN (Mauch & Dixon
2014), which costs several hundred times as much. Both are librosa's.

Axes: n samples   a frames of the analysis   t token frames   w samples of a window
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from mmlm.base.errors import DataError
from mmlm.sound import Sound, librosa

RATE_HZ = 16_000
HOP = 80  # samples: 5 ms
WINDOW, FRAME = 480, 1024  # samples that are compared with the period before; samples that YIN sees
LEAST_LIKENESS = 0.4  # correlation of two periods next to one another
FLOOR_DB, BELOW_LOUDEST_DB = -60.0, 40.0  # quieter frames are unvoiced


class Voice(NamedTuple):
    """pitch_hz: [t], 0 where unvoiced. level_db: [t], mean power in dB of full scale, -inf for silence."""

    pitch_hz: np.ndarray
    level_db: np.ndarray


def num_frames(sound: Sound, rate_hz: float) -> int:
    """Frames that cover a sound, the last one perhaps in part."""
    return int(np.ceil(round(len(sound.wave_n) * rate_hz / sound.rate_hz, 6)))


def follow(
    sound: Sound, rate_hz: float, *, method: Literal["yin", "pyin"] = "yin", lowest_hz: float = 65.0, highest_hz: float = 500.0
) -> Voice:
    """Pitch and level in frames of 1 / rate_hz seconds: the mean of what lies in each frame, over its voiced parts if they are half of it.

    Raises DataError for a sound that is empty or holds NaN.
    """
    if not len(sound.wave_n) or not np.isfinite(sound.wave_n).all():
        raise DataError("pitch needs a sound with finite samples, but it is empty." if not len(sound.wave_n) else "the sound holds NaN.")
    wave_n = sound.at(RATE_HZ).wave_n
    pitch_a = _pyin(wave_n, lowest_hz, highest_hz) if method == "pyin" else _yin(wave_n, lowest_hz, highest_hz)
    power_n = np.pad(wave_n.astype(np.float64) ** 2, (0, -len(wave_n) % HOP))
    sizes_a = np.full(len(power_n) // HOP, HOP)
    sizes_a[-1] = len(wave_n) - HOP * (len(sizes_a) - 1)
    power_a = power_n.reshape(-1, HOP).sum(1)
    pitch_a = pitch_a[: len(power_a)]
    total = num_frames(sound, rate_hz)
    frame_a = np.minimum(((np.arange(len(power_a)) + 0.5) * HOP / RATE_HZ * rate_hz).astype(int), total - 1)
    samples_t = np.bincount(frame_a, sizes_a, minlength=total)
    voiced_a = pitch_a > 0
    parts_t, voiced_t = np.bincount(frame_a, minlength=total), np.bincount(frame_a, voiced_a, minlength=total)
    pitch_t = np.bincount(frame_a, pitch_a, minlength=total) / np.maximum(voiced_t, 1)
    pitch_t[2 * voiced_t < np.maximum(parts_t, 1)] = 0
    with np.errstate(divide="ignore"):
        level_t = 10 * np.log10(np.bincount(frame_a, power_a, minlength=total) / np.maximum(samples_t, 1))
    return Voice(pitch_t, level_t)


def _pyin(wave_n: np.ndarray, lowest_hz: float, highest_hz: float) -> np.ndarray:
    package = librosa()
    twice = 2 * HOP
    pitch_a, _, _ = package.pyin(wave_n, fmin=lowest_hz, fmax=highest_hz, sr=RATE_HZ, frame_length=FRAME, hop_length=twice)
    return np.nan_to_num(np.repeat(pitch_a, 2)[: len(wave_n) // HOP + 1])


def _yin(wave_n: np.ndarray, lowest_hz: float, highest_hz: float) -> np.ndarray:
    package = librosa()
    pitch_a = package.yin(wave_n, fmin=lowest_hz, fmax=highest_hz, sr=RATE_HZ, frame_length=FRAME, hop_length=HOP)
    lag_a = np.rint(RATE_HZ / pitch_a).astype(int)
    longest = int(lag_a.max())
    reach = (WINDOW + longest) // 2 + 1
    padded_n = np.pad(wave_n.astype(np.float64), reach)
    first_a = np.arange(len(pitch_a)) * HOP + reach - (WINDOW + lag_a) // 2  # both periods lie around the centre of the frame
    span_w = np.arange(WINDOW)
    one_aw = padded_n[np.minimum(first_a[:, None] + span_w, len(padded_n) - 1)]
    other_aw = padded_n[np.minimum(first_a[:, None] + lag_a[:, None] + span_w, len(padded_n) - 1)]
    energy_a, energy_later_a = (one_aw**2).sum(1), (other_aw**2).sum(1)
    likeness_a = (one_aw * other_aw).sum(1) / np.sqrt(np.maximum(energy_a * energy_later_a, 1e-20))
    summed_n = np.concatenate([[0.0], np.cumsum(padded_n**2)])
    centre_a = np.minimum(np.arange(len(pitch_a)) * HOP + reach, len(padded_n) - HOP)
    power_a = (summed_n[centre_a + HOP] - summed_n[centre_a - HOP]) / (2 * HOP)  # of the frame itself: its neighbours may be louder
    level_a = 10 * np.log10(np.maximum(power_a, 1e-12))
    voiced_a = (likeness_a > LEAST_LIKENESS) & (level_a > max(FLOOR_DB, float(level_a.max()) - BELOW_LOUDEST_DB))
    return np.where(voiced_a, pitch_a, 0.0)
