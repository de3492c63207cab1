"""Speech to learn from: recordings with what is known of them, and drawing from them.

A record is an `Utterance`; its sound is read when it is asked for, and of a long file only the part that it is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.audio_files import read_sound, sound_facts
from mmlm.data.base import RecordList
from mmlm.sound import Sound


class Change(Protocol):
    """What is done to a recording whenever it is read. Its repr tells all of it."""

    @property
    def rate(self) -> float:
        """How many times as fast it becomes."""

    def __call__(self, sound: Sound) -> Sound:
        """The changed sound."""


class Kept(Protocol):
    """The sound of an utterance, decoded before, at one rate."""

    @property
    def rate_hz(self) -> int:
        """Samples a second."""

    def sound(self) -> Sound:
        """All of it."""

    def part(self, start_seconds: float, seconds: float) -> Kept:
        """A part of it, at most up to its end."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """A recording of somebody, or a part of one.

    id: its own within its source. where: file and line that tell of it, for messages. path: the file of the sound, and start_seconds and
    end_seconds its part, None for the end of the file; or held: the sound itself. text, speaker, language: empty where unknown. labels:
    whatever else is known. change: what is done to its sound; times are those before it. kept: the sound
    that need not be decoded where it is asked for at that rate.
    """

    id: str
    where: str
    path: Path | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    channel: int | None = None
    text: str = ""
    speaker: str = ""
    language: str = ""
    labels: Mapping[str, Any] = field(default_factory=dict)
    held: Sound | None = None
    change: Change | None = None
    kept: Kept | None = None

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self._unchanged_seconds / self._rate

    @property
    def _rate(self) -> float:
        return 1.0 if self.change is None else self.change.rate

    @property
    def _unchanged_seconds(self) -> float:
        if self.end_seconds is not None:
            return self.end_seconds - self.start_seconds
        if self.held is None and self.path is not None:
            return sound_facts(self.path).seconds - self.start_seconds
        return self._unchanged(None).seconds

    def sound(self, rate_hz: int | None = None) -> Sound:
        """Its sound, at its own rate or another. Raises DataError that names `where`."""
        if self.kept is not None and rate_hz == self.kept.rate_hz:
            return self.kept.sound()
        if self.change is None:
            return self._unchanged(rate_hz)
        sound = self.change(self._unchanged(None))
        return sound if rate_hz is None else sound.at(rate_hz)

    def _unchanged(self, rate_hz: int | None) -> Sound:
        length = None if self.end_seconds is None else self.end_seconds - self.start_seconds
        if self.held is not None:
            part = self.held.cut(self.start_seconds, length)
            return part if rate_hz is None else part.at(rate_hz)
        if self.path is None:
            raise DataError(f"{self.where}: has neither a file nor a sound.")
        try:
            return read_sound(self.path, rate_hz=rate_hz, start_seconds=self.start_seconds, seconds=length, channel=self.channel)
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from None

    def part(self, start_seconds: float, seconds: float) -> Utterance:
        """A part of it, counted from its own start. Of its text nothing is known."""
        start = self.start_seconds + start_seconds * self._rate
        end = start + seconds * self._rate
        last = self.end_seconds if self.end_seconds is not None else self.start_seconds + self._unchanged_seconds
        kept = None if self.kept is None else self.kept.part(start_seconds, seconds)
        return replace(self, start_seconds=start, end_seconds=min(end, last), text="", kept=kept)


class Speech(RecordList[Utterance]):
    """Utterances to draw from. where: what they are, in messages. Raises DataError without any."""

    what = "recording"

    def draw(self, rng: np.random.Generator, asks: float | None) -> Utterance:
        """An utterance, all alike; or where `asks` is a number, a part of at most so many seconds from an even place of all sound."""
        if asks is None:
            return self.records[int(rng.integers(len(self.records)))]
        ends = self._ends()
        found = self.records[min(int(np.searchsorted(ends, rng.random() * ends[-1], side="right")), len(ends) - 1)]
        if found.seconds <= asks:
            return found
        return found.part(float(rng.uniform(0, found.seconds - asks)), asks)

    def _ends(self) -> np.ndarray:
        if not hasattr(self, "_cumulated"):
            self._cumulated = np.cumsum([utterance.seconds for utterance in self.records])
        return self._cumulated
