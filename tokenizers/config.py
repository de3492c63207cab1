"""Configs of the tokenizers. Imports no torch and no numpy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict

TOKENIZERS = Registry("tokenizer", "mmlm.tokenizers")

_HEADER_ONCE = "form csv names the columns once for all rows"


class RowText(Strict):
    """How a row of a table is written as text."""

    form: Literal["template", "list", "json", "markdown", "csv", "structured"] = Field(
        "template", description="sentences | lines | a JSON object | a small table | cells under one header | marked keys and values"
    )
    choices: Literal["front", "back", "both"] = Field("both", description="where the possible answers are listed")
    missing: Literal["omit", "word", "nan"] = Field("omit", description="missing cells: left out, the word missing, or nan")
    shuffle_columns: bool = Field(False, description="another order of columns for each row")
    feature_dropout: float = Field(0.0, ge=0, lt=1, description="chance that a cell is left out; one always stays")
    metafeatures: bool = Field(False, description="rank and scale of a number among the example rows, beside its name")
    max_precision: int | None = Field(None, ge=0, le=17, description="digits after the point; null: as many as the number has")
    max_cell_characters: int = Field(64, ge=3, description="longer cells lose their middle")
    expand_dates: bool = Field(False, description="year, month, weekday and days since the first example beside a date")
    dictionary: dict[str, dict[str, str]] = Field({}, description="column: {code as written: what it means}")

    def without_effect(self) -> dict[str, str]:
        """Cells under one header can be neither reordered nor named anew in each row."""
        if self.form != "csv":
            return {}
        return {"shuffle_columns": _HEADER_ONCE, "metafeatures": _HEADER_ONCE}


class CellTokens(Strict):
    """How a cell of a table becomes numbers for the cell encoder."""

    text_hash: int = Field(32, ge=1, le=1024, description="channels of the hashed text of a category")
    name_hash: int = Field(32, ge=1, le=1024, description="channels of the hashed name of the column")
    clip: float = Field(4.0, gt=0, description="standard scores are cut off at this size")
    evidence: list[float] = Field(
        [0.05, 0.2], max_length=4, description="bandwidths (shares of the ranks) at which a column alone is asked for the class; []: none"
    )


@TOKENIZERS.register("mmlm.tokenizers.text:TextTokenizer", source="byte-level BPE, GPT-2; arXiv:1508.07909")
class TextConfig(Component):
    """Text as tokens of a byte-level BPE."""

    type: Literal["text"] = "text"
    path: str | None = Field(None, description="tokenizer.json, or a folder, run or hub id with one; null: fitted on the training texts")
    vocabulary_size: int = Field(4096, ge=260, le=1 << 20, description="most tokens when it is fitted")
