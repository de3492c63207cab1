"""Configs of the tasks. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmlm.base.registry import Component, Registry
from mmlm.data.config import EpisodeConfig
from mmlm.tokenizers.config import CellTokens

TASKS = Registry("task", "mmlm.tasks")


@TASKS.register("mmlm.tasks.tabular:TabularTask", source="prior-data fitted networks, arXiv:2207.01848; cells as tokens, arXiv:2106.11959")
class TabularConfig(Component):
    """Predict a column of a table from a few example rows, in context."""

    type: Literal["tabular"] = "tabular"
    cells: CellTokens = Field(CellTokens(), description="how a cell becomes numbers")
    episode: EpisodeConfig = Field(EpisodeConfig(), description="how training tasks are drawn")
    num_orders: int = Field(4, ge=1, le=64, description="numberings of the classes that a prediction averages over")
    max_columns: int = Field(64, ge=1, description="most feature columns in a prediction; further ones are left out")
