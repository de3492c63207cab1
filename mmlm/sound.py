"""Sound as the code passes it on: samples with the rate they were taken at.

Axes: n samples
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmlm.base.errors import DataError, require


@dataclass(frozen=True, eq=False)
class Sound:
    """One channel of sound. wave_n: float32 [n], full scale is 1. rate_hz: samples per second."""

    wave_n: np.ndarray
    rate_hz: int

    def __post_init__(self) -> None:
        if self.wave_n.ndim != 1 or self.wave_n.dtype != np.float32:
            raise DataError(f"a sound is float32 [samples], but this is {self.wave_n.dtype} {list(self.wave_n.shape)}.")
        if self.rate_hz < 1:
            raise DataError(f"a sound has at least 1 sample a second, but the rate is {self.rate_hz} Hz.")

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.wave_n) / self.rate_hz

    def at(self, rate_hz: int) -> Sound:
        """The same sound at another rate: ceil(n * rate_hz / self.rate_hz) samples. Raises MissingExtra without soxr."""
        if rate_hz == self.rate_hz:
            return self
        size = -(-len(self.wave_n) * rate_hz // self.rate_hz)
        wave_n = require("soxr", "speech").resample(self.wave_n, self.rate_hz, rate_hz)
        return Sound(np.pad(wave_n[:size], (0, max(0, size - len(wave_n)))).astype(np.float32, copy=False), rate_hz)

    def cut(self, start_seconds: float, seconds: float | None = None) -> Sound:
        """A part of it: from a time on, to the end or as long as told. What lies outside is left out, not filled."""
        start = max(0, round(start_seconds * self.rate_hz))
        end = None if seconds is None else start + round(seconds * self.rate_hz)
        return Sound(self.wave_n[start:end], self.rate_hz)
