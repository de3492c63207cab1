"""What every generated sequence is, and the part that all generators share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.config import ProbeConfig

NONE = -100


@dataclass(frozen=True)
class Labelled:
    """A sequence and what is to be said of it. tokens: int64 [t].   labels: int64 [t], NONE where nothing is asked.

    reach: int64 [t], at each label how many tokens back the furthest one stands that decides it; 0 elsewhere.
    """

    tokens: np.ndarray
    labels: np.ndarray
    reach: np.ndarray

    @property
    def asked(self) -> np.ndarray:
        """Places of the labels."""
        return np.flatnonzero(self.labels != NONE)


def blank(length: int) -> Labelled:
    """A sequence of zeros without labels, to be filled in."""
    return Labelled(np.zeros(length, dtype=np.int64), np.full(length, NONE), np.zeros(length, dtype=np.int64))


class Probe:
    """Base of the generators. Subclasses give `generate`; the random generator decides everything."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence with all its labels."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, asks: Any) -> Labelled:
        """One sequence with the labels that count. Raises DataError where `scored_from` leaves none."""
        config: ProbeConfig = self.config
        found = self.generate(rng)
        early = np.arange(len(found.labels)) < config.scored_from
        if early[found.asked].all():
            raise DataError(f"{config.type}: scored_from {config.scored_from} leaves no label in a sequence of {len(found.tokens)} tokens.")
        return replace(found, labels=np.where(early, NONE, found.labels), reach=np.where(early, 0, found.reach))
