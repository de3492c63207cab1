"""Sound as the code passes it on: samples with the rate they were taken at.

Axes: n samples
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from filelock import FileLock

from mmlm.base.errors import DataError, require
from mmlm.base.files import user_cache_folder

COMPILED = ("librosa.util.utils", "librosa.core.audio", "librosa.core.pitch")  # what librosa compiles when it is imported


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


@functools.cache
def librosa() -> ModuleType:
    """The package librosa, with that compiled which it compiles at import and keeps for the next process.

    One process at a time: files kept by two that compile at once may not fit one another, and whatever reads them then ends in a
    segmentation fault (numba's issue 10128). Raises MissingExtra.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that cannot be written keeps nothing either
            user_cache_folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(user_cache_folder() / "librosa.lock"))
        package = require("librosa", "speech")
        for module in COMPILED:
            importlib.import_module(module)
    return package
