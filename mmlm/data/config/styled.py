"""Config of speech in styles. Imports no torch and no numpy."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmlm.data.config.base import SOURCES, Held, SourceConfig

LEVELS = {"pitch": ("low", "plain", "high"), "tempo": ("slow", "plain", "fast"), "loudness": ("soft", "plain", "loud")}
PLAIN = "plain"


@SOURCES.register(
    "mmlm.data.styled:StyledSpeech", source="styled speech from plain speech; instructions as in VoxInstruct, arXiv:2408.15676"
)
class StyledSpeechConfig(SourceConfig):
    """Recordings of another source, higher or lower, faster or slower, louder or softer, each with instructions that ask for it."""

    gives: ClassVar[str] = "speech"
    type: Literal["styled_speech"] = "styled_speech"
    speech: SOURCES.choice = Field(
        description="the plain recordings, which need texts: a source such as {type: asterisk}; it decides what is held out"
    )
    copies: int = Field(4, ge=1, le=27, description="styles of each recording; which ones, the seed decides")
    semitones: float = Field(4.0, ge=0, le=12, description="high and low are so far above and below the recording; 0: the pitch stays")
    rate: float = Field(
        1.3, ge=1, le=2, description="fast is so many times as fast as the recording, slow as much slower; 1: the pace stays"
    )
    gain_db: float = Field(8.0, ge=0, le=20, description="loud and soft are so far above and below level_db; 0: all are as loud")
    level_db: float = Field(-26.0, ge=-50, le=-12, description="mean power of plainly loud speech in dB of full scale")
    wordings: int = Field(4, ge=1, le=64, description="instructions of each recording, of which a sample has one")
    seed: int = Field(0, ge=0, description="decides styles and wordings")

    @model_validator(mode="after")
    def _speech_is_spoken(self) -> StyledSpeechConfig:
        if (gives := getattr(self.speech, "gives", None)) != "speech":
            raise ValueError(f"speech: {self.speech.type!r} gives {gives}, not speech")
        if isinstance(self.speech, StyledSpeechConfig):
            raise ValueError("speech: 'styled_speech' is in styles already")
        most = 1
        for levels in self.levels.values():
            most *= len(levels)
        if self.copies > most:
            raise ValueError(f"copies ({self.copies}) must be at most {most}, as many as there are styles")
        return self

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """The levels of each attribute that occur."""
        changes = {"pitch": self.semitones > 0, "tempo": self.rate > 1, "loudness": self.gain_db > 0}
        return {name: levels if changes[name] else (PLAIN,) for name, levels in LEVELS.items()}

    @property
    def steps(self) -> dict[str, float]:
        """How far neighbouring levels of each attribute that changes are apart: octaves of pitch and pace, decibels."""
        found = {"pitch": self.semitones / 12, "tempo": math.log2(self.rate), "loudness": self.gain_db}
        return {name: step for name, step in found.items() if step}

    @property
    def hold_out(self) -> float:
        """What the plain source holds out."""
        return float(self.speech.hold_out)

    @property
    def validate_share(self) -> float:
        """What the plain source keeps back."""
        return float(self.speech.validate_share)

    def holds(self) -> str | None:
        """What the plain source holds."""
        found: str | None = self.speech.holds()
        return found

    def held(self) -> Held | None:
        """The same."""
        found: Held | None = self.speech.held()
        return found
