"""Discrete speech: how a codebook is used, and how fast a model is beside the clock. Measures of units are in `mmlm.evaluation.units`.

Axes: t frames   u codebooks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmlm.base.errors import DataError
from mmlm.sound import Sound


@dataclass(frozen=True)
class CodebookUse:
    """Of one codebook. used: share of its entries that occur. perplexity: exp of the entropy of what occurs, at most its size.

    bits_per_second: frames a second times log2 of the size. coded_bits_per_second: times the entropy in bits, what an ideal coder of single
    entries needs.
    """

    used: float
    perplexity: float
    bits_per_second: float
    coded_bits_per_second: float


def codebook_use(codes_tu: np.ndarray, sizes: Sequence[int], rate_hz: float) -> list[CodebookUse]:
    """How each codebook is used by codes [t, u] of all clips together. rate_hz: frames a second."""
    codes_tu = np.asarray(codes_tu)
    codes_tu = codes_tu[:, None] if codes_tu.ndim == 1 else codes_tu
    if codes_tu.ndim != 2 or codes_tu.shape[1] != len(sizes) or not len(codes_tu):
        raise DataError(f"codes must be [frames, {len(sizes)} codebooks], but are {list(codes_tu.shape)}.")
    found = []
    for book, size in enumerate(sizes):
        ids = codes_tu[:, book]
        if ids.min() < 0 or ids.max() >= size:
            raise DataError(f"codebook {book} has entries 0 to {size - 1}, but codes reach from {ids.min()} to {ids.max()}.")
        p = np.bincount(ids, minlength=size) / len(ids)
        nats = float(-(p[p > 0] * np.log(p[p > 0])).sum())
        found.append(
            CodebookUse(float((p > 0).mean()), float(np.exp(nats)), rate_hz * float(np.log2(size)), rate_hz * nats / float(np.log(2)))
        )
    return found


@dataclass(frozen=True)
class Speed:
    """Seconds a run took for so much sound. real_time_factor: below 1 is faster than the sound plays."""

    wall_seconds: float
    cpu_seconds: float
    sound_seconds: float

    @property
    def real_time_factor(self) -> float:
        """Seconds by the clock for each second of sound."""
        return self.wall_seconds / self.sound_seconds if self.sound_seconds else float("inf")


def timed(make: Callable[[], Sound | Sequence[Sound]]) -> tuple[Any, Speed]:
    """What a call returns, and how fast it was beside the length of the sound that it made."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = make()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sounds = [found] if isinstance(found, Sound) else list(found)
    return found, Speed(wall, cpu, sum(sound.seconds for sound in sounds))
