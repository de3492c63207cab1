"""Configs of generated pictures. Imports no torch and no numpy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmlm.data.config.base import SOURCES, SourceConfig


@SOURCES.register("mmlm.data.scenes.source:Scenes", source="CLEVR, arXiv:1612.06890, in the plane")
class ScenesConfig(SourceConfig):
    """Drawn scenes of coloured shapes with captions, boxes, expressions and questions, all of them checked by a small program."""

    gives: ClassVar[str] = "pictures"
    type: Literal["scenes"] = "scenes"
    width: int = Field(64, ge=16, le=2048, description="pixels")
    height: int = Field(64, ge=16, le=2048, description="pixels")
    sides: list[int] | None = Field(
        None, min_length=2, max_length=2, description="instead, both sides are drawn from this range: pictures of mixed sizes"
    )
    min_things: int = Field(1, ge=1, le=9, description="fewest things in a scene")
    max_things: int = Field(3, ge=1, le=9, description="most things in a scene")
    radii: list[float] = Field(
        [0.13, 0.18, 0.24], min_length=3, max_length=3, description="of small, medium and large things, as shares of the shorter side"
    )
    overlap: bool = Field(False, description="things may hide one another, of the box of each at least half is seen")
    noise: float = Field(0.0, ge=0, le=0.5, description="spread of the noise over the whole picture, as a share of full scale")
    split: Literal["train", "validate", "test", "compose"] = Field(
        "train", description="which scenes; compose: each holds a pair of colour and shape that no other split has"
    )
    count: int = Field(120, ge=1, description="scenes that are measured")

    @model_validator(mode="after")
    def _fits(self) -> ScenesConfig:
        if self.min_things > self.max_things:
            raise ValueError(f"min_things ({self.min_things}) must be at most max_things ({self.max_things})")
        if not 0 < self.radii[0] < self.radii[1] < self.radii[2] < 0.5:
            raise ValueError(f"radii ({self.radii}) must rise and lie between 0 and 0.5")
        if self.sides is not None and not 16 <= self.sides[0] <= self.sides[1] <= 2048:
            raise ValueError(f"sides ({self.sides}) is [low, high] within 16 and 2048")
        return self

    def without_effect(self) -> dict[str, str]:
        """Fixed sides beside drawn ones."""
        return {} if self.sides is None else dict.fromkeys(("width", "height"), "sides draws both")

    def holds(self) -> str:
        """The split."""
        return f"the {self.split} split of scenes"
