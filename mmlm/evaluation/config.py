"""The recipe section `evaluate`. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmlm.base.schema import Strict


class EvaluateConfig(Strict):
    """How a trained model is compared with baselines."""

    split: Literal["valid", "test", "file"] = Field("test", description="held-out tables; file: the held-out rows of data.train's files")
    shots: list[int] = Field([8, 32], min_length=1, description="numbers of example rows; 0 is for text alone")
    seeds: int = Field(3, ge=1, description="draws of example rows a table")
    max_queries: int = Field(64, ge=1, description="most rows to predict in a draw")
    num_bins: int = Field(4, ge=2, le=10, description="bins of a numeric target; edges from the example rows")
    xgboost: Literal["default", "search"] = Field("default", description="default settings, or the best of a random search in each draw")
