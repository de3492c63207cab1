"""What is done to clean sound, in a chain: each part with a chance, a seed of its own, and a record of what it drew.

Every augmentation is called with a sound and a random generator and returns the new sound and what was done, as plain values; with the
same seed it does the same again. The chain never drives sound beyond full scale: what would be louder is scaled down as a whole, which is
recorded too (clipping is an augmentation of its own).

Axes: n samples   f frequencies   p packets
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mmlm.base.errors import RecipeError
from mmlm.data.config.augment import (
    AUGMENTATIONS,
    AugmentationConfig,
    BandLimitConfig,
    ClipConfig,
    GainConfig,
    PacketLossConfig,
    TelephoneConfig,
)
from mmlm.sound import Sound

Made = dict[str, Any]
HIGHEST = 0.99  # of full scale, for what would go beyond
EDGE = 0.1  # of an octave, over which a filter closes
PHONE_HZ = 300.0, 3400.0
MU = 255.0


class Augmentation(Protocol):
    """One part of a chain."""

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, Made]:
        """(the new sound, what was drawn for it)."""


class Augment:
    """Augmentations one after the other. configs: in the order in which they are done."""

    def __init__(self, configs: Sequence[AugmentationConfig]) -> None:
        self.configs = list(configs)
        self.parts: list[Augmentation] = [config.build() for config in self.configs]

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, list[Made]]:
        """(the new sound, what each part that was done drew: its type, its seed and its values)."""
        done: list[Made] = []
        for config, part in zip(self.configs, self.parts, strict=True):
            chance, seed = rng.random(), int(rng.integers(1 << 62))  # always drawn, so that one part's chance changes no other part
            if chance < config.chance:
                sound, made = part(sound, np.random.default_rng(seed))
                done.append({"type": config.type, "seed": seed, **made})
        peak = float(np.abs(sound.wave_n).max(initial=0))
        if peak > 1:
            sound = Sound(sound.wave_n * np.float32(HIGHEST / peak), sound.rate_hz)
            done.append({"type": "level", "factor": HIGHEST / peak})
        return sound, done


class Degrade(Augment):
    """A chain whose output is aligned with its input: as many samples, and the direct sound at delay 0.

    Raises RecipeError for an augmentation that changes time or pitch.
    """

    def __init__(self, configs: Sequence[AugmentationConfig]) -> None:
        for config in configs:
            if not config.keeps_time:
                fit = sorted(
                    name for name, each in AUGMENTATIONS.entries.items() if issubclass(each, AugmentationConfig) and each.keeps_time
                )
                raise RecipeError(
                    f"{config.type!r} would move the degraded sound against the clean one. Those that do not: {', '.join(fit)}."
                )
        super().__init__(configs)


def drawn(rng: np.random.Generator, bounds: Sequence[float]) -> float:
    """A number evenly between two."""
    return float(rng.uniform(bounds[0], bounds[1]))


class Gain:
    """A factor for all samples; what would go beyond full scale is made louder by so much less."""

    def __init__(self, config: GainConfig) -> None:
        self.gain_db = config.gain_db

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, Made]:
        """See `Augmentation`."""
        factor = 10 ** (drawn(rng, self.gain_db) / 20)
        peak = float(np.abs(sound.wave_n).max(initial=0))
        if factor > 1 and factor * peak > HIGHEST:
            factor = max(1.0, HIGHEST / peak)
        return Sound(sound.wave_n * np.float32(factor), sound.rate_hz), {"gain_db": 20 * float(np.log10(factor))}


def band(wave_n: np.ndarray, rate_hz: int, low_hz: float, high_hz: float) -> np.ndarray:
    """float32 [n]: what lies between two frequencies, without delay. The edges are cosines of a tenth of an octave."""
    size = 1 << (len(wave_n) + rate_hz // 10).bit_length()  # zeros after the end, into which a filter may ring
    octave_f = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / rate_hz), 1e-3))
    gain_f = _edge((np.log2(high_hz) - octave_f) / EDGE)
    if low_hz > 0:
        gain_f = gain_f * _edge((octave_f - np.log2(low_hz)) / EDGE)
    return np.fft.irfft(np.fft.rfft(wave_n, size) * gain_f, size)[: len(wave_n)].astype(np.float32)


def _edge(place: np.ndarray) -> np.ndarray:
    """0 below -1, 1 above 0, a cosine between."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(place + 1, 0, 1))


class BandLimit:
    """A band with drawn ends."""

    def __init__(self, config: BandLimitConfig) -> None:
        self.low_hz, self.high_hz = config.low_hz, config.high_hz

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, Made]:
        """See `Augmentation`."""
        low_hz, high_hz = drawn(rng, self.low_hz), drawn(rng, self.high_hz)
        low_hz = min(low_hz, high_hz / 2)
        return Sound(band(sound.wave_n, sound.rate_hz, low_hz, high_hz), sound.rate_hz), {"low_hz": low_hz, "high_hz": high_hz}


class Telephone:
    """300 to 3400 Hz, each sample rounded to one of the 256 steps of mu-law."""

    def __init__(self, config: TelephoneConfig) -> None:
        self.config = config

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, Made]:
        """See `Augmentation`. Nothing is drawn."""
        wave_n = np.clip(band(sound.wave_n, sound.rate_hz, *PHONE_HZ), -1, 1)
        steps_n = np.rint((np.sign(wave_n) * np.log1p(MU * np.abs(wave_n)) / np.log1p(MU) + 1) / 2 * MU) / MU * 2 - 1
        wave_n = np.sign(steps_n) * np.expm1(np.abs(steps_n) * np.log1p(MU)) / MU
        return Sound(band(wave_n, sound.rate_hz, *PHONE_HZ), sound.rate_hz), {}


class Clip:
    """Peaks cut off."""

    def __init__(self, config: ClipConfig) -> None:
        self.level = config.level

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, Made]:
        """See `Augmentation`. clipped: share of the samples that were cut."""
        level = drawn(rng, self.level)
        height = np.float32(level * np.abs(sound.wave_n).max(initial=0))
        clipped = float(np.mean(np.abs(sound.wave_n) > height)) if len(sound.wave_n) else 0.0
        return Sound(np.clip(sound.wave_n, -height, height), sound.rate_hz), {"level": level, "clipped": clipped}


class PacketLoss:
    """Packets lost in bursts: a packet after a lost one is lost with chance 1 - 1 / burst."""

    def __init__(self, config: PacketLossConfig) -> None:
        self.rate, self.burst, self.packet_seconds, self.fill = config.rate, config.burst, config.packet_seconds, config.fill

    def __call__(self, sound: Sound, rng: np.random.Generator) -> tuple[Sound, Made]:
        """See `Augmentation`. lost: share of the packets that were lost; rate: how often in the long run."""
        rate, size = drawn(rng, self.rate), max(1, round(self.packet_seconds * sound.rate_hz))
        count = -(-len(sound.wave_n) // size)
        begins = min(1.0, rate / (self.burst * max(1 - rate, 1e-9)))  # so that a share `rate` is lost in the long run
        is_lost_p, lost = np.zeros(count, dtype=bool), rng.random() < rate
        for at, chance in enumerate(rng.random(count)):
            is_lost_p[at] = lost
            lost = chance < (1 - 1 / self.burst if lost else begins)
        wave_n = sound.wave_n.copy()
        for at in np.flatnonzero(is_lost_p).tolist():
            here = slice(at * size, (at + 1) * size)
            if self.fill == "repeat" and at:
                wave_n[here] = 0.7 * wave_n[(at - 1) * size : at * size][: len(wave_n[here])]
            else:
                wave_n[here] = 0
        return Sound(wave_n, sound.rate_hz), {"rate": rate, "lost": float(is_lost_p.mean()) if count else 0.0}
