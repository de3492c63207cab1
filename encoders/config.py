"""Configs of the encoders. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmlm.base.registry import Component, Registry

ENCODERS = Registry("encoder", "mmlm.encoders")


@ENCODERS.register("mmlm.encoders.table_cells:CellEncoder", source="FT-Transformer tokenizer, arXiv:2106.11959, extended by text hashes")
class CellEncoderConfig(Component):
    """Features of a table's cell -> one vector, by one hidden layer."""

    type: Literal["table_cells"] = "table_cells"
    hidden: int = Field(128, ge=1, description="channels of the hidden layer, which are the encoder's output")
