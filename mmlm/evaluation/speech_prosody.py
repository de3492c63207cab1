"""How far melody, timbre and timing are from a reference: F0 errors, mel-cepstral distortion after time warping, and durations.

Axes: t frames   m mel bands   i, j frames of the two sounds   c cepstral coefficients   l phones
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.base.errors import DataError
from mmlm.sound import Sound, librosa
from mmlm.tokenizers.pitch import follow

RATE_HZ, HOP, WINDOW, BANDS, COEFFICIENTS = 16_000, 160, 400, 80, 13
FRAMES_A_SECOND = RATE_HZ / HOP
GROSS = 0.2


def cepstra(sound: Sound) -> np.ndarray:
    """[t, 13]: mel cepstra of the log amplitudes of 80 mel bands, 10 ms apart."""
    package = librosa()
    wave_n = sound.at(RATE_HZ).wave_n
    mel = package.feature.melspectrogram(y=wave_n, sr=RATE_HZ, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS, power=1.0)
    return cepstra_of(np.log(np.maximum(mel.T, 1e-5)))


def cepstra_of(log_mel_tm: np.ndarray) -> np.ndarray:
    """[t, 13]: coefficients 1 to 13 of log amplitude = sum of c_k cos(pi k (m + 1/2) / bands), the scale at which MCD is an error in dB."""
    bands = log_mel_tm.shape[1]
    angle_cm = np.pi * np.arange(1, COEFFICIENTS + 1)[:, None] * (np.arange(bands) + 0.5) / bands
    return log_mel_tm.astype(np.float64) @ np.cos(angle_cm).T * (2 / bands)


def warped(one_ic: np.ndarray, other_jc: np.ndarray) -> np.ndarray:
    """[steps, 2]: pairs of frames by dynamic time warping on the distance of their coefficients."""
    _, path = librosa().sequence.dtw(one_ic.T, other_jc.T)
    return path[::-1]


def mel_cepstral_distortion(sound: Sound, reference: Sound) -> float:
    """MCD in dB after time warping: (10 sqrt 2 / ln 10) times the mean distance of coefficients 1 to 13. Source: Kubichek 1993."""
    return cepstral_distortion(cepstra(sound), cepstra(reference))


def cepstral_distortion(one_ic: np.ndarray, other_jc: np.ndarray) -> float:
    """MCD in dB of cepstra."""
    path = warped(one_ic, other_jc)
    gap = np.linalg.norm(one_ic[path[:, 0]] - other_jc[path[:, 1]], axis=1)
    return float(10 * np.sqrt(2) / np.log(10) * gap.mean())


@dataclass(frozen=True)
class PitchErrors:
    """rmse_cents, correlation (of log F0): on frames that are voiced in both. gross: share of these that miss by more than 20 %.

    voicing: share of all frames that are voiced in one alone. frames: all that were compared. both_voiced: of these.
    rmse_cents, correlation and gross are NaN where too few frames are voiced in both.
    """

    rmse_cents: float
    correlation: float
    gross: float
    voicing: float
    frames: int
    both_voiced: int


def pitch_errors_of(found_t: np.ndarray, wanted_t: np.ndarray) -> PitchErrors:
    """Errors of pitch in Hz, 0 where unvoiced, frame by frame."""
    if found_t.shape != wanted_t.shape or not len(found_t):
        raise DataError(f"pitch is compared frame by frame, but there are {len(found_t)} and {len(wanted_t)} frames.")
    both = (found_t > 0) & (wanted_t > 0)
    voicing = float(((found_t > 0) != (wanted_t > 0)).mean())
    if not both.any():
        return PitchErrors(np.nan, np.nan, np.nan, voicing, len(found_t), 0)
    ours, theirs = np.log2(found_t[both]), np.log2(wanted_t[both])
    spread = ours.std() * theirs.std()
    correlation = float(((ours - ours.mean()) * (theirs - theirs.mean())).mean() / spread) if spread > 1e-12 else np.nan
    gross = float((np.abs(found_t[both] / wanted_t[both] - 1) > GROSS).mean())
    rmse = float(1200 * np.sqrt(((ours - theirs) ** 2).mean()))
    return PitchErrors(rmse, correlation, gross, voicing, len(found_t), int(both.sum()))


def pitch_errors(sound: Sound, reference: Sound, *, is_time_locked: bool = False) -> PitchErrors:
    """Errors of the pitch of a sound. is_time_locked: both have the same timing; otherwise frames are paired by warping on the cepstra."""
    found_t, wanted_t = (follow(each, FRAMES_A_SECOND).pitch_hz for each in (sound, reference))
    if is_time_locked:
        size = min(len(found_t), len(wanted_t))
        return pitch_errors_of(found_t[:size], wanted_t[:size])
    path = warped(cepstra(sound), cepstra(reference))
    i, j = np.minimum(path[:, 0], len(found_t) - 1), np.minimum(path[:, 1], len(wanted_t) - 1)
    return pitch_errors_of(found_t[i], wanted_t[j])


def duration_error_ms(found_seconds: Sequence[float], wanted_seconds: Sequence[float]) -> float:
    """Mean over phones of how far their durations are apart, in milliseconds. Both must have the same phones."""
    if len(found_seconds) != len(wanted_seconds) or not len(found_seconds):
        raise DataError(f"durations are compared phone by phone, but there are {len(found_seconds)} and {len(wanted_seconds)} phones.")
    return 1000 * float(np.abs(np.subtract(found_seconds, wanted_seconds)).mean())
