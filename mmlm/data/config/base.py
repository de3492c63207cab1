"""What the configs of all data sources share. Imports no torch and no numpy."""

from __future__ import annotations

import os
from typing import ClassVar

from pydantic import Field

from mmlm.base.registry import Component, Registry

SOURCES = Registry("data source", "mmlm.sources")


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


def true_path(path: str) -> str:
    """A file by the name that is its own alone."""
    return os.path.realpath(path) if os.path.exists(path) else path
