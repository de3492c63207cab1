"""Configs of pictures that installed packages bring along. Imports no torch and no numpy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mmlm.data.config.base import SOURCES, PartedConfig, true_path


class CutoutsConfig(PartedConfig):
    """What sources of single things on white have."""

    gives: ClassVar[str] = "pictures"
    side: int = Field(64, ge=8, le=1024, description="pixels along a side of the square pictures")
    kinds: list[str] | None = Field(None, min_length=1, description="only pictures of these kinds; null: all")
    hold_out: float = Field(0.1, ge=0, lt=1, description="share of the pictures that is never trained on; evaluate measures it")


@SOURCES.register("mmlm.data.cutouts:Stamps", source="Tux Paint's stamps, Debian tuxpaint-stamps-default")
class StampsConfig(CutoutsConfig):
    """Tux Paint's stamps, some 780 drawings and photographs cut out, each with a sentence; kinds: animals, food, household, ..."""

    type: Literal["stamps"] = "stamps"

    def holds(self) -> str:
        """All of them."""
        return "the stamps of Tux Paint"


@SOURCES.register("mmlm.data.cutouts:Emoji", source="Noto Color Emoji, Debian fonts-noto-color-emoji; names of Unicode's CLDR")
class EmojiConfig(CutoutsConfig):
    """Emoji as Noto draws them, with their names; kinds: the groups of Unicode, such as food-drink."""

    type: Literal["emoji"] = "emoji"
    path: str = Field(description="the names, .jsonl or .jsonl.gz: objects with emoji, group, label and tags by language")
    language: str = Field("en", description="of the names")
    tags: int = Field(0, ge=0, description="most tags that are told behind a name")

    def holds(self) -> str:
        """The list."""
        return f"the emoji of {true_path(self.path)}"
