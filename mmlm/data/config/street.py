"""Config of generated sweeps of LiDAR. Imports no torch and no numpy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmlm.data.config.base import SOURCES, SourceConfig


@SOURCES.register("mmlm.data.street.source:Streets", source="rays cast from a spinning sensor, as in CARLA, arXiv:1711.03938")
class StreetConfig(SourceConfig):
    """Sweeps of cars, trucks, pedestrians, cyclists and barriers on a plane, as a spinning LiDAR sees them, with their boxes."""

    gives: ClassVar[str] = "sweeps"
    type: Literal["street"] = "street"
    rings: int = Field(32, ge=2, le=256, description="elevations of the rays")
    azimuths: int = Field(512, ge=16, le=4096, description="directions of the rays in a turn")
    lowest_degrees: float = Field(-24.0, gt=-90, lt=90, description="elevation of the lowest ring")
    highest_degrees: float = Field(3.0, gt=-90, lt=90, description="elevation of the highest ring")
    sensor_height: float = Field(1.8, gt=0, description="metres above the ground")
    max_range: float = Field(60.0, gt=0, description="metres beyond which nothing comes back")
    range_noise: float = Field(0.02, ge=0, le=1, description="spread of the measured distance in metres")
    drop_out: float = Field(0.05, ge=0, lt=1, description="share of the rays that do not come back")
    reach: float = Field(24.0, gt=6, description="metres within which things stand")
    min_things: int = Field(3, ge=0, le=40, description="fewest things")
    max_things: int = Field(8, ge=0, le=40, description="most things")
    split: Literal["train", "validate", "test"] = Field("train", description="which sweeps")
    count: int = Field(100, ge=1, description="sweeps that are measured")

    @model_validator(mode="after")
    def _fits(self) -> StreetConfig:
        if self.min_things > self.max_things or self.lowest_degrees >= self.highest_degrees:
            raise ValueError("min_things must be at most max_things, and lowest_degrees below highest_degrees")
        return self

    def holds(self) -> str:
        """The split."""
        return f"the {self.split} split of street"
