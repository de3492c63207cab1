"""Learning rates as pure functions of progress: no hidden state, so there is nothing to save.

Progress is the part of the run that lies behind a step, 0 to below 1: steps taken over all steps or, where a run has a limit of time,
whichever of steps and time is ahead. A schedule gives the factor of the full rate.
"""

from __future__ import annotations

import math
from typing import Protocol

from mmlm.training.config import (
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    TrainConfig,
    WarmupStableDecayConfig,
)


class Schedule(Protocol):
    """The course of the rate after warm-up."""

    def factor(self, share: float, warmup: float) -> float:
        """1 (full rate) to 0 (least rate). share: of the part after warm-up; warmup: share of the run that warm-up takes."""


class Constant:
    """The full rate."""

    def __init__(self, config: ConstantConfig) -> None:
        self.config = config

    def factor(self, share: float, warmup: float) -> float:
        """Always 1."""
        return 1.0


class Linear:
    """A straight line."""

    def __init__(self, config: LinearConfig) -> None:
        self.config = config

    def factor(self, share: float, warmup: float) -> float:
        """1 - share."""
        return 1.0 - share


class Cosine:
    """Half a cosine."""

    def __init__(self, config: CosineConfig) -> None:
        self.config = config

    def factor(self, share: float, warmup: float) -> float:
        """(1 + cos(pi share)) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * share))


class WarmupStableDecay:
    """The full rate, then a fall."""

    def __init__(self, config: WarmupStableDecayConfig) -> None:
        self.config = config

    def factor(self, share: float, warmup: float) -> float:
        """1 until the fall begins; then a line or one minus a root."""
        fallen = max(0.0, (share - (1.0 - self.config.decay_share)) / self.config.decay_share)
        return 1.0 - (math.sqrt(fallen) if self.config.shape == "sqrt" else fallen)


class InverseSqrt:
    """One over the root of the step."""

    def __init__(self, config: InverseSqrtConfig) -> None:
        self.config = config

    def factor(self, share: float, warmup: float) -> float:
        """The root of warm-up over progress."""
        return math.sqrt(warmup / (warmup + share * (1.0 - warmup)))


def learning_rate(config: TrainConfig, step: int, seconds: float = 0.0) -> float:
    """The rate of the step that follows `step` taken steps and `seconds` of the run's time (counted only under max_seconds)."""
    timed = seconds / config.max_seconds if config.max_seconds else 0.0
    begun = min(1.0, max((step + 1) / config.steps, timed))
    warmup = min(1.0, config.warmup if config.warmup < 1 else config.warmup / config.steps)
    if begun < warmup:
        return config.lr * begun / warmup
    behind = min(1.0, max(step / config.steps, timed))
    share = max(0.0, behind - warmup) / (1.0 - warmup) if warmup < 1 else 0.0
    factor = config.schedule.build().factor(share, max(warmup, 1.0 / config.steps))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * factor)
