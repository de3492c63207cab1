"""Whether speech has the style that was asked for, heard from the sound alone: pitch, tempo and loudness beside those of a recording.

Axes: t frames
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmlm.data.styled import STEPS
from mmlm.sound import Sound
from mmlm.tokenizers.pitch import follow

FRAMES_A_SECOND = 100.0
QUIET_DB = 30.0  # frames so far below the loudest are no speech
LEAST_DB = -80.0


def traits(sound: Sound) -> dict[str, float]:
    """What is heard of the style of a sound.

    pitch: median F0 in octaves above 1 Hz, NaN where nothing is voiced.   tempo: how short it is, in octaves below 1 s; of two sounds of
    the same words this differs as their durations per phone do.   loudness: mean power of the speech in dB.
    Raises DataError for a sound that is empty.
    """
    pitch_hz, level_db = follow(sound, FRAMES_A_SECOND)
    voiced = pitch_hz[pitch_hz > 0]
    level_db = np.maximum(level_db, LEAST_DB)
    speech = np.flatnonzero(level_db > level_db.max() - QUIET_DB)
    power = float(np.mean(10 ** (level_db[speech] / 10)))
    return {
        "pitch": float(np.log2(np.median(voiced))) if len(voiced) else np.nan,
        "tempo": -float(np.log2(sound.seconds)),
        "loudness": 10 * float(np.log10(power)),
    }


def has_style(sound: Sound, true: Sound, style: Mapping[str, tuple[str, float]]) -> dict[str, bool]:
    """Whether a sound has the levels that were asked for. true: a recording of the same words in that style.   style: {attribute: (level,
    how far apart its levels are)}, as `Heard` has it.

    It has one, if it is less than half a step away from the recording, towards the other levels: nothing is too high for a high voice.
    """
    mine, theirs = traits(sound), traits(true)
    found = {}
    for name, (level, step) in style.items():
        away, side = (mine[name] - theirs[name]) / step, STEPS[level]
        found[name] = bool(abs(away) < 0.5) if side == 0 else bool(side * away > -0.5)
    return found
