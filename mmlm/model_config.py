"""The config of a whole model, as config.json holds it. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmlm.backbone.config import BackboneConfig
from mmlm.base.schema import Strict
from mmlm.encoders.config import ENCODERS, Projector
from mmlm.heads.config import HEADS, LanguageModelHeadConfig


class ChannelConfig(Strict):
    """Values added to the token embeddings."""

    kind: Literal["ids", "values", "number"] = Field(
        "values", description="ids: a learned table; values: a linear map; number: one number, times a fixed row that is not trained"
    )
    size: int = Field(ge=1, description="number of ids, or of values per token")


class ModelConfig(Strict):
    """Everything that fixes the shape of a model."""

    schema_version: int = Field(1, alias="schema")
    vocabulary: dict[str, int] = Field(description="vocabulary ranges and their sizes, in the order of their ids")
    backbone: BackboneConfig = BackboneConfig()
    encoders: dict[str, ENCODERS.choice] = Field({}, description="encoders by the name that segments use")
    features: dict[str, int] = Field({}, description="channels of the features that each encoder reads")
    projectors: dict[str, Projector] = Field({}, description="how vectors of an encoder reach the decoder's width; default: linear")
    channels: dict[str, ChannelConfig] = Field({}, description="values added to the embeddings, by name")
    heads: dict[str, HEADS.choice] = Field({"language_model": LanguageModelHeadConfig()}, description="heads by name")
