"""Whether speech has the style that was asked for, heard from the sound alone: pitch, tempo and loudness against what training speech has.

Axes: t frames
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.config.styled import LEVELS
from mmlm.data.speech import Utterance
from mmlm.sound import Sound
from mmlm.tokenizers.pitch import follow

FRAMES_A_SECOND = 100.0
QUIET_DB = 30.0  # frames so far below the loudest are no speech
LEAST_DB = -80.0


def traits(sound: Sound, plain_seconds: float) -> dict[str, float]:
    """What is heard of the style of a sound; plain_seconds: length of the plain recording of the same words.

    pitch: median F0 in octaves above 1 Hz, NaN where nothing is voiced.   tempo: octaves by which it is faster than the plain recording;
    both have the same phones, so durations per phone differ by as much.   loudness: mean power of the speech in dB.
    Raises DataError for a sound that is empty.
    """
    pitch_hz, level_db = follow(sound, FRAMES_A_SECOND)
    voiced = pitch_hz[pitch_hz > 0]
    level_db = np.maximum(level_db, LEAST_DB)
    speech = np.flatnonzero(level_db > level_db.max() - QUIET_DB)
    power = float(np.mean(10 ** (level_db[speech] / 10)))
    return {
        "pitch": float(np.log2(np.median(voiced))) if len(voiced) else np.nan,
        "tempo": float(np.log2(plain_seconds / sound.seconds)),
        "loudness": 10 * float(np.log10(power)),
    }


@dataclass(frozen=True)
class StyleScale:
    """Where the levels of each attribute meet: the middle between the medians that training speech of two levels has."""

    edges: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, records: Sequence[Utterance]) -> StyleScale:
        """The scale of recordings with styles, as the source `styled_speech` gives them. Raises DataError for a level that none has."""
        found: dict[tuple[str, str], list[float]] = {}
        for each in records:
            for name, value in traits(each.sound(), each.labels["plain_seconds"]).items():
                found.setdefault((name, each.labels["style"][name]), []).append(value)
        edges = {}
        for name, levels in LEVELS.items():
            for level in levels:
                if (name, level) not in found:
                    raise DataError(f"no recording among {len(records)} has the {name} {level!r}, so nothing can be told by it.")
            low, middle, high = (float(np.nanmedian(found[name, level])) for level in levels)
            edges[name] = ((low + middle) / 2, (middle + high) / 2)
        return cls(edges)

    def levels(self, sound: Sound, plain_seconds: float) -> dict[str, str]:
        """The level of each attribute of a sound; none ("") of the pitch where nothing is voiced."""
        found = {}
        for name, value in traits(sound, plain_seconds).items():
            found[name] = "" if np.isnan(value) else LEVELS[name][int(np.searchsorted(self.edges[name], value))]
        return found


def style_accuracy(sounds: Sequence[Sound], records: Sequence[Utterance], scale: StyleScale) -> dict[str, float]:
    """Share of sounds with the level that the record asks for, of each attribute, and their mean as `style`. Chance is a third."""
    hits: dict[str, list[bool]] = {name: [] for name in LEVELS}
    for sound, record in zip(sounds, records, strict=True):
        heard = scale.levels(sound, record.labels["plain_seconds"])
        for name, level in record.labels["style"].items():
            hits[name].append(heard[name] == level)
    found = {name: float(np.mean(values)) for name, values in hits.items()}
    return {**found, "style": float(np.mean(list(found.values())))}
