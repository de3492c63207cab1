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

    def holds(self) -> str | None:
        """What must not be trained on and validated on at once; None for generators, which are told apart by their random numbers."""
        return None


def true_path(path: str) -> str:
    """A file by the name that is its own alone."""
    return os.path.realpath(path) if os.path.exists(path) else path
