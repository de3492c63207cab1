"""What the configs of all data sources share. Imports no torch and no numpy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

from pydantic import Field, model_validator

from mmlm.base.registry import Component, Registry

SOURCES = Registry("data source", "mmlm.sources")


@dataclass(frozen=True)
class Held:
    """What a source reads. kind: of what. names: of files, folders or parts; a name that two sources have gives both the same records.
    below: a folder holds all files below it. only: by key, the values that its records have, where it takes some of them alone."""

    kind: str
    names: frozenset[str]
    below: bool = False
    only: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def meets(self, other: Held) -> bool:
        """Whether a record may be of both."""
        if self.kind != other.kind or any(self.only[key].isdisjoint(other.only[key]) for key in self.only.keys() & other.only.keys()):
            return False
        return not self.names.isdisjoint(other.names) or self._is_above(other) or other._is_above(self)

    def _is_above(self, other: Held) -> bool:
        return self.below and any(name.startswith(os.path.join(folder, "")) for name in other.names for folder in self.names)


class SourceConfig(Component):
    """What every source has. `gives`: the kind of its records."""

    gives: ClassVar[str] = "tables"
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the other sources")
    tasks: list[str] | None = Field(None, min_length=1, description="names of the tasks it is for; null: all that read what it gives")

    def serves(self, name: str, reads: str) -> bool:
        """Whether it is for a task of this name, which reads this kind of records."""
        return self.gives == reads and (self.tasks is None or name in self.tasks)

    def holds(self) -> str | None:
        """What must not be trained on and validated on at once; None for generators, which are told apart by their random numbers."""
        return None

    def held(self) -> Held | None:
        """The same, to be compared with what other sources hold."""
        found = self.holds()
        return None if found is None else Held(found, frozenset([found]))


class PartedConfig(SourceConfig):
    """What sources have of which shares are never trained on."""

    hold_out: float = Field(0.05, ge=0, lt=1, description="share that is never trained on; evaluate measures it")
    validate_share: float = Field(0.0, ge=0, lt=1, description="further share that is never trained on, for validation")

    @model_validator(mode="after")
    def _some_are_left(self) -> Self:
        if self.hold_out + self.validate_share >= 1:
            raise ValueError(f"hold_out ({self.hold_out:g}) + validate_share ({self.validate_share:g}) leave nothing to train on")
        return self


def true_path(path: str) -> str:
    """A file by the name that is its own alone."""
    return os.path.realpath(path) if os.path.exists(path) else path
