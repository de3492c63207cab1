"""Configs of the tasks. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmlm.base.registry import Component, Registry
from mmlm.data.config import EpisodeConfig
from mmlm.tokenizers.config import CellTokens, RowText

TASKS = Registry("task", "mmlm.tasks")


@TASKS.register("mmlm.tasks.tabular:TabularTask", source="prior-data fitted networks, arXiv:2207.01848; cells as tokens, arXiv:2106.11959")
class TabularConfig(Component):
    """Predict a column of a table from a few example rows, in context."""

    type: Literal["tabular"] = "tabular"
    cells: CellTokens = Field(CellTokens(), description="how a cell becomes numbers")
    episode: EpisodeConfig = Field(EpisodeConfig(), description="how training tasks are drawn")
    num_orders: int = Field(4, ge=1, le=64, description="numberings of the classes that a prediction averages over")
    max_columns: int = Field(64, ge=1, description="most feature columns in a prediction; further ones are left out")


@TASKS.register("mmlm.tasks.tabular_text:TabularTextTask", source="TabuLa-8B, arXiv:2406.12031")
class TabularTextConfig(Component):
    """Predict a column of a table whose rows are written as text, from none to many example rows."""

    type: Literal["tabular_text"] = "tabular_text"
    tokenizer: str = Field("text", description="which of the recipe's tokenizers reads the rows")
    rows: RowText = Field(RowText(), description="how a row is written")
    packing: Literal["table", "row", "plain"] = Field(
        "table", description="what a token may look back at: the rows of its table | its row alone | whatever lies before it in the batch"
    )
    context: int = Field(2048, ge=32, description="most tokens of a table or prompt; further rows are left out, the oldest examples first")
    episode: EpisodeConfig = Field(EpisodeConfig(), description="how training tasks are drawn")
    max_choices: int = Field(8, ge=2, le=10, description="most answers listed with a training row; the true one is among them")
    score: Literal["sum", "mean", "first"] = Field("sum", description="log-probability of an answer: all its tokens, per token, the first")
    calibration: Literal["none", "contextual", "temperature", "prior"] = Field(
        "none", description="mend probabilities by content-free rows, or by examples that are each left out of their own prompt"
    )
    rows_at_once: int = Field(32, ge=1, description="rows to predict that are read together")
