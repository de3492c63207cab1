"""What a source of records is to the code that draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from mmlm.base.errors import DataError

Record = TypeVar("Record")

ENDLESS = 1 << 40  # samples that those which are drawn claim to be
NUMBERS = 1 << 40  # of which records are made


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


class RecordList(Generic[Record]):
    """Records of a list to draw from. where: what they are, in messages. Raises DataError without any."""

    what: ClassVar[str] = "record"

    def __init__(self, records: Sequence[Record], where: str) -> None:
        if not records:
            raise DataError(f"{where}: holds no {self.what}.")
        self.records, self.where = list(records), where

    def draw(self, rng: np.random.Generator, asks: Any) -> Record:
        """One of them, all alike."""
        return self.records[int(rng.integers(len(self.records)))]

    def everything(self) -> list[Record]:
        """All, in the order of the list."""
        return list(self.records)


class Numbered(Generic[Record]):
    """Base of sources that make a record of its number alone. config: its `count` says how many are told one by one."""

    config: Any

    def record(self, number: int) -> Record:
        """The record of a number."""
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, asks: Any) -> Record:
        """The record of any number."""
        return self.record(int(rng.integers(NUMBERS)))

    def everything(self) -> list[Record]:
        """The first ones."""
        return [self.record(number) for number in range(self.config.count)]


class Parted:
    """A source of training records with two further groups of them, each of which is a source of the kind `part`."""

    part: ClassVar[type[Any]]
    groups: Sequence[Sequence[Any]]  # held out | kept back for validation
    where: str

    def held_out_records(self) -> Source | None:
        """Those to measure on."""
        return self._of(0)

    def kept_back(self) -> Source | None:
        """Those for validation."""
        return self._of(1)

    def _of(self, group: int) -> Source | None:
        found: Source | None = self.part(self.groups[group], self.where) if self.groups[group] else None
        return found


class Draws(Protocol):
    """Records to draw from. fingerprint: changes with where they come from and what is made of them."""

    fingerprint: str

    def draw(self, rng: np.random.Generator) -> Any:
        """One record; all randomness comes from rng."""


class Drawn:
    """Base of samples that are drawn without end, to train and to validate on."""

    def __len__(self) -> int:
        return ENDLESS

    def sample(self, index: int, rng: np.random.Generator) -> Any:
        """What `draw` gives beside the record."""
        return self.draw(rng)[1]

    def draw(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """A record and its sample; all randomness comes from rng."""
        raise NotImplementedError
