"""Configs of the heads. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmlm.base.registry import Component, Registry

HEADS = Registry("head", "mmlm.heads")


@HEADS.register("mmlm.heads.language_model:LanguageModelHead", source="weight tying arXiv:1608.05859; z-loss PaLM, arXiv:2204.02311")
class LanguageModelHeadConfig(Component):
    """Scores of vocabulary rows at labelled tokens, and their cross-entropy."""

    type: Literal["language_model"] = "language_model"
    tied: bool = Field(True, description="use the rows of the token embedding as output rows")
    ranges: list[str] | None = Field(None, description="vocabulary ranges that can be predicted; null: all")
    soft_cap: float | None = Field(None, gt=0, description="scores become cap * tanh(score / cap) (Gemma 2); null for none")
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log-partition")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


@HEADS.register("mmlm.heads.regression:RegressionHead", source="Huber loss, doi:10.1214/aoms/1177703732")
class RegressionHeadConfig(Component):
    """One number per token that carries a target in the tag `channel` of its segment."""

    type: Literal["regression"] = "regression"
    loss: Literal["squared", "absolute", "huber"] = "squared"
    channel: str = Field("target", description="tag of the segments that holds the numbers, NaN for none")


@HEADS.register(
    "mmlm.heads.codebooks:CodebooksHead",
    source="parallel heads of MusicGen, arXiv:2306.05284, section 2.1; shared rows arXiv:2301.02111, section 4.2.2",
)
class CodebooksHeadConfig(Component):
    """Several predictions at one token, one of each codebook, and their cross-entropy."""

    type: Literal["codebooks"] = "codebooks"
    ranges: list[str] | None = Field(
        None, min_length=1, description="vocabulary ranges that are predicted, each by a softmax of its own; null: all of codebooks"
    )
    tied: bool = Field(True, description="use the rows of the token embedding as output rows")
    z_loss: float = Field(0.0, ge=0, description="weight of the squared log-partition")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
