"""What a source of records is to the code that draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


class Source(Protocol):
    """Where records come from: tables with rows to predict, passages of text, labelled sequences."""

    def draw(self, rng: np.random.Generator, asks: Any) -> Any:
        """One record; all randomness comes from rng. asks: what the task says of the records it reads, its `asks`."""


@runtime_checkable
class KeepsBack(Protocol):
    """A source of training records that may keep some of its data for validation."""

    def kept_back(self) -> Source | None:
        """Where validation records come from, or None if nothing is kept back."""


@runtime_checkable
class HoldsOut(Protocol):
    """A source of training records that may hold some of its data out, to measure the finished model on."""

    def held_out_records(self) -> Source | None:
        """Where records to measure on come from, or None if nothing is held out."""


@runtime_checkable
class Listed(Protocol):
    """A source whose records can be told one by one, so that all of them are measured once."""

    def everything(self) -> Sequence[Any]:
        """The records, always in the same order."""
