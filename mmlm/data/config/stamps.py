"""Configs of pictures made of cut-outs of real things. Imports no torch and no numpy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmlm.data.config.base import SOURCES, SourceConfig

Folder = Literal[
    "animals", "cartoon", "clothes", "food", "hobbies", "household", "medical", "military", "naturalforces", "people", "plants", "seasonal",
    "space", "sports", "symbols", "town", "vehicles",
]  # fmt: skip


@SOURCES.register("mmlm.data.tuxpaint:TuxPaint", source="the stamps of Tux Paint, Debian tuxpaint-stamps-default, GPL-2")
class TuxPaintConfig(SourceConfig):
    """Cut-outs of real things on plain grounds, with captions, expressions and exact boxes: the stamps of the drawing program Tux Paint.
    Things of one name are all of one split, so that those of `test` are never seen in training."""

    gives: ClassVar[str] = "pictures"
    type: Literal["tuxpaint"] = "tuxpaint"
    width: int = Field(96, ge=16, le=2048, description="pixels")
    height: int = Field(96, ge=16, le=2048, description="pixels")
    min_things: int = Field(1, ge=1, le=9, description="fewest things in a picture")
    max_things: int = Field(3, ge=1, le=9, description="most things in a picture")
    sizes: list[float] = Field(
        [0.3, 0.55],
        min_length=2,
        max_length=2,
        description="longer side of a thing, drawn between these shares of the picture's shorter side",
    )
    names: Literal["caption", "class", "both"] = Field(
        "caption",
        description="what things are called: red apple, from the stamp's caption | food, by its folder | either, drawn for each text",
    )
    classes: list[Folder] | None = Field(None, min_length=1, description="only stamps of these folders")
    split: Literal["train", "validate", "test"] = Field("train", description="which stamps: about 75, 10 and 15 % of the names")
    count: int = Field(120, ge=1, description="pictures that are measured")

    @model_validator(mode="after")
    def _fits(self) -> TuxPaintConfig:
        if self.min_things > self.max_things:
            raise ValueError(f"min_things ({self.min_things}) must be at most max_things ({self.max_things})")
        if not 0 < self.sizes[0] <= self.sizes[1] <= 1:
            raise ValueError(f"sizes ({self.sizes}) is [low, high] within 0 and 1")
        return self

    def holds(self) -> str:
        """The split."""
        return f"the {self.split} split of tuxpaint"
