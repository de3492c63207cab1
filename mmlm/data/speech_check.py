"""Every recording of a corpus looked at once: its length, level and clipping, and where the speech in it begins and ends.

What was found is kept in a file of the user's cache folder, under the size and time of change of each recording, so that a corpus is
decoded the first time only. Files are decoded by as many threads as there are cores.

Axes: n samples   f frames
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.audio_files import read_sound, sound_facts
from mmlm.data.config import SpeechConfig
from mmlm.data.listed import Bad
from mmlm.data.remembered import Remembered, key_of
from mmlm.data.speech import Utterance
from mmlm.sound import Sound

VERSION = 1
SILENT_DB = -60.0  # of full scale; a recording whose loudest 20 ms lie below is silent
FRAME_SECONDS = 0.01
FULL_SCALE = 0.999
LONGEST = 4  # times max_seconds: what is longer is left out by its header alone, trimmed or not, so that memory stays bounded
LENGTH_ERROR = 0.1  # seconds by which a list may miss the length of a file


@dataclass(frozen=True)
class Looked:
    """What was found in a recording. seconds: length. level_db: of the loudest 20 ms. clipped: share of samples at full scale.
    begin, end: where speech begins and ends, in seconds from the start of the recording."""

    rate_hz: int
    seconds: float
    level_db: float
    clipped: float
    begin: float
    end: float


def checked(utterances: Sequence[Utterance], config: SpeechConfig, where: str) -> tuple[list[Utterance], list[Bad], Counter[str]]:
    """(those that can be used, with start and end after trimming; bad ones with the reason; how many are too short or too long)."""
    cache = Remembered(Looked, "speech", where, "recordings", VERSION)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) as pool:
        found = list(pool.map(lambda each: _looked_at(each, config, cache), utterances))
    cache.write()
    good: list[Utterance] = []
    bad: list[Bad] = []
    left_out: Counter[str] = Counter()
    for utterance, looked in zip(utterances, found, strict=True):
        if isinstance(looked, str):
            bad.append(Bad(utterance.where, looked))
            continue
        fault = _fault(utterance, looked, config)
        begin, end = (looked.begin, looked.end) if config.trim_silence else (0.0, looked.seconds)
        if fault:
            bad.append(Bad(utterance.where, fault))
        elif end - begin < config.min_seconds:
            left_out[f"shorter than {config.min_seconds:g} s"] += 1
        elif end - begin > config.max_seconds:
            left_out[f"longer than {config.max_seconds:g} s"] += 1
        else:
            start = utterance.start_seconds
            good.append(replace(utterance, start_seconds=start + begin, end_seconds=start + end))
    return good, bad, left_out


def _fault(utterance: Utterance, looked: Looked, config: SpeechConfig) -> str:
    """Why a recording is bad, or nothing. `rate_hz` and `seconds` among the labels are what a list claims of it."""
    claimed_hz, claimed = utterance.labels.get("rate_hz"), utterance.labels.get("seconds")
    if claimed_hz is not None and claimed_hz != looked.rate_hz:
        return f"the list says {claimed_hz} Hz, but {utterance.path} has {looked.rate_hz} Hz."
    if isinstance(claimed, int | float) and abs(claimed - looked.seconds) > LENGTH_ERROR:
        return f"the list says {claimed:.2f} s, but {utterance.path} has {looked.seconds:.2f} s of it."
    if looked.level_db < SILENT_DB:
        return f"{utterance.path} is silent: nothing in it is louder than {looked.level_db:.0f} dB of full scale."
    if looked.clipped > config.max_clipped:
        return f"{utterance.path} is clipped: {looked.clipped:.1%} of its samples are at full scale (max_clipped: {config.max_clipped:g})."
    return ""


def _looked_at(utterance: Utterance, config: SpeechConfig, cache: Remembered[Looked]) -> Looked | str:
    """What is in a recording, or why it cannot be read."""
    try:
        if utterance.held is not None:
            return look(utterance.sound(), config)
        assert utterance.path is not None
        key = _key(utterance, config)
        found = cache.get(key)
        if found is None:
            facts = sound_facts(utterance.path)
            end = facts.seconds if utterance.end_seconds is None else utterance.end_seconds
            if end > facts.seconds + LENGTH_ERROR:
                return f"ends at {end:.2f} s, but {utterance.path} lasts {facts.seconds:.2f} s."
            length = min(end, facts.seconds) - utterance.start_seconds
            if length > LONGEST * config.max_seconds:
                return Looked(facts.rate_hz, length, 0.0, 0.0, 0.0, length)
            part = None if utterance.end_seconds is None else length
            sound = read_sound(utterance.path, start_seconds=utterance.start_seconds, seconds=part, channel=utterance.channel)
            found = look(sound, config)
            cache.put(key, found)
        return found
    except DataError as error:
        return str(error)


def look(sound: Sound, config: SpeechConfig) -> Looked:
    """Length, level and clipping of a sound, and where speech begins and ends: the frames (10 ms, measured over 20 ms) that are at most
    trim_level_db quieter than the loudest, with trim_margin_seconds on both sides."""
    wave_n, size = sound.wave_n, max(1, round(FRAME_SECONDS * sound.rate_hz))
    power_f = np.add.reduceat(np.square(wave_n, dtype=np.float64), np.arange(0, len(wave_n), size)) / size
    pair_f = 0.5 * (power_f + np.append(power_f[1:], power_f[-1]))
    loudest = float(pair_f.max())
    level_db = 10 * np.log10(max(loudest, 1e-20))
    loud_f = np.flatnonzero(pair_f >= loudest * 10 ** (-config.trim_level_db / 10))
    frame, margin = size / sound.rate_hz, config.trim_margin_seconds
    begin = max(0.0, int(loud_f[0]) * frame - margin)
    end = min(sound.seconds, (int(loud_f[-1]) + 2) * frame + margin)
    return Looked(sound.rate_hz, sound.seconds, level_db, float(np.mean(np.abs(wave_n) >= FULL_SCALE)), begin, end)


def _key(utterance: Utterance, config: SpeechConfig) -> str:
    """Changes with the file, the part of it and how it is looked at. Raises DataError without the file."""
    assert utterance.path is not None
    part = (utterance.start_seconds, utterance.end_seconds, utterance.channel)
    trim = (config.trim_level_db, config.trim_margin_seconds)
    return key_of(utterance.path, *part, *trim)


def files_below(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files below a folder that have one of these endings, sorted; hidden ones are left out.

    A link to a folder elsewhere counts as a folder; one to a folder that is found anyway, or that holds this one, does not.
    """
    top = os.path.realpath(folder)
    found: list[Path] = []
    seen = {top}
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(".") and _is_new(os.path.join(place, name), top, seen)]
        paths = (Path(place, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in endings and path.is_file()]
    return sorted(found)


def _is_new(folder: str, top: str, seen: set[str]) -> bool:
    """Whether a folder below `top` is to be gone into; it is seen from then on."""
    true = os.path.realpath(folder)
    if true in seen or os.path.islink(folder) and os.path.commonpath([true, top]) in (true, top):
        return False
    seen.add(true)
    return True
