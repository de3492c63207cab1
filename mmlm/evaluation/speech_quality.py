"""How good a sound is beside its reference (SI-SDR, PESQ, STOI), and by itself (DNSMOS).

The first three compare sample by sample: what is generated and not aligned with its reference gets low figures whatever it sounds like.
DNSMOS P.835 (Reddy et al. 2022) guesses what listeners would say: signal, background and overall, 1 to 5; P.808 overall alone.

Axes: n samples
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mmlm.base.errors import DataError, MissingExtra, require
from mmlm.objectives.audio import si_sdr as scale_invariant_ratio
from mmlm.sound import Sound, librosa

WIDE_HZ, NARROW_HZ, STOI_HZ = 16_000, 8_000, 10_000
DNSMOS_INSTALL = "pip install --no-deps speechmos && pip install onnxruntime librosa"


def _pair(sound: Sound, reference: Sound, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Both at one rate and of one length. Raises DataError where the lengths differ by more than 50 ms, or one is empty or not finite."""
    if abs(sound.seconds - reference.seconds) > 0.05:
        raise DataError(f"a sound of {sound.seconds:.2f} s cannot be compared with a reference of {reference.seconds:.2f} s.")
    one_n, other_n = sound.at(rate_hz).wave_n, reference.at(rate_hz).wave_n
    size = min(len(one_n), len(other_n))
    if not size or not (np.isfinite(one_n).all() and np.isfinite(other_n).all()):
        raise DataError("a sound to be measured is empty or holds samples that are not finite.")
    return one_n[:size].astype(np.float64), other_n[:size].astype(np.float64)


def si_sdr(sound: Sound, reference: Sound) -> float:
    """Scale-invariant signal-to-distortion ratio in dB. Raises DataError for a silent reference."""
    found_n, wanted_n = _pair(sound, reference, reference.rate_hz)
    if not np.any(wanted_n - wanted_n.mean()):
        raise DataError("SI-SDR needs a reference that is not silent.")
    return float(scale_invariant_ratio(torch.from_numpy(found_n), torch.from_numpy(wanted_n)))


def pesq(sound: Sound, reference: Sound, *, is_wide: bool = True) -> float | None:
    """PESQ (P.862.2 at 16 kHz, P.862 at 8 kHz), about 1 to 4.64; None where it finds no speech or too little sound."""
    rate_hz = WIDE_HZ if is_wide else NARROW_HZ
    package = require("pesq", "judges")
    found_n, wanted_n = _pair(sound, reference, rate_hz)
    if not found_n.any() or not wanted_n.any():
        return None
    try:
        return float(package.pesq(rate_hz, wanted_n, found_n, "wb" if is_wide else "nb"))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return None


def stoi(sound: Sound, reference: Sound, *, is_extended: bool = False) -> float | None:
    """Short-time objective intelligibility, 0 to 1 (or its extended form); None for a silent reference, less than about half a second, or
    less than 0.4 s that are not quiet beside the rest."""
    found_n, wanted_n = _pair(sound, reference, STOI_HZ)
    if not wanted_n.any() or len(wanted_n) < 5000:
        return None
    package = require("pystoi", "judges")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)  # with which the package returns 1e-5
        try:
            return float(package.stoi(wanted_n, found_n, STOI_HZ, extended=is_extended))
        except RuntimeWarning:
            return None


def dnsmos(sound: Sound) -> dict[str, float]:
    """DNSMOS of one sound: ovrl, sig, bak, p808. Raises MissingExtra with the command that installs it, DataError for an empty sound."""
    try:
        librosa()  # by which the package hears
        package = require("speechmos.dnsmos", "judges")
    except MissingExtra as error:
        raise MissingExtra(f"DNSMOS needs the package speechmos: {DNSMOS_INSTALL} ({error})") from None
    wave_n = sound.at(WIDE_HZ).wave_n
    if not len(wave_n) or not np.isfinite(wave_n).all():
        raise DataError("a sound to be measured is empty or holds samples that are not finite.")
    found = package.run(np.clip(wave_n, -1, 1), WIDE_HZ)
    return {name: float(found[f"{name}_mos"]) for name in ("ovrl", "sig", "bak", "p808")}


@dataclass
class Quality:
    """Means over clips. values: {measure: mean}. not_measured: {measure: clips for which it is not defined}. clips: all of them.
    seconds: CPU time by measure. sound_seconds: of sound."""

    values: dict[str, float] = field(default_factory=dict)
    not_measured: dict[str, int] = field(default_factory=dict)
    clips: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    sound_seconds: float = 0.0


PAIRED: dict[str, Callable[[Sound, Sound], float | None]] = {
    "si_sdr": si_sdr,
    "pesq_wb": pesq,
    "pesq_nb": lambda sound, reference: pesq(sound, reference, is_wide=False),
    "stoi": stoi,
    "estoi": lambda sound, reference: stoi(sound, reference, is_extended=True),
}


def quality(sounds: Sequence[Sound], references: Sequence[Sound] | None = None, measures: Sequence[str] | None = None) -> Quality:
    """The means of measures over sounds. references: of each sound; without them DNSMOS alone is measured.

    measures: names out of PAIRED, and dnsmos; None for all. A clip for which a measure is not defined (silence; a perfect copy, whose
    SI-SDR has no end) is counted and left out.
    """
    paired = PAIRED if references is not None else {}
    names = list(measures if measures is not None else [*paired, "dnsmos"])
    if unknown := [name for name in names if name not in paired and name != "dnsmos"]:
        why = "" if references is not None else " (no references were given)"
        raise DataError(f"unknown measure {unknown[0]!r}{why}; known: {', '.join([*paired, 'dnsmos'])}.")
    if references is not None and len(references) != len(sounds):
        raise DataError(f"{len(sounds)} sounds have {len(references)} references; there must be one for each.")
    found = Quality(clips=len(sounds), sound_seconds=sum(sound.seconds for sound in sounds))
    for name in names:
        began = time.process_time()
        if name == "dnsmos":
            rows = [dnsmos(sound) for sound in sounds]
            found.values |= {f"dnsmos_{key}": float(np.mean([row[key] for row in rows])) for key in (rows[0] if rows else ())}
        else:
            values = [paired[name](sound, reference) for sound, reference in zip(sounds, references or (), strict=True)]
            kept = [value for value in values if value is not None and np.isfinite(value)]
            found.not_measured[name] = len(values) - len(kept)
            if kept:
                found.values[name] = float(np.mean(kept))
        found.seconds[name] = time.process_time() - began
    return found
