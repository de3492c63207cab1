"""Sound in files: read whole or in part, written, and looked at without decoding.

soundfile reads wav, flac, mp3, aiff and their like; PyAV the rest: ogg, g722, m4a, webm and the sound of videos. A part of a file is found
by seeking, so that time and memory follow the part and not the file; g722 alone is decoded from its start, as each of its samples follows
from all before it. What a container promises is compared with what it holds, so that a file that was cut short is told, not used.

Axes: n samples   c channels
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from math import gcd
from pathlib import Path

import numpy as np

from mmlm.base.errors import DataError, require
from mmlm.data.audio_readers import Reader, SoundFacts, opened
from mmlm.sound import Sound

logger = logging.getLogger(__name__)

ENDINGS = (
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64", ".caf", ".g722"),
    *(".m4a", ".aac", ".mp4", ".mkv", ".webm", ".mov"),
)
WRITES = {".wav": "WAV", ".flac": "FLAC"}
MOST_SAMPLES = 1 << 26  # that are held at once, at the rate of the file or the one asked for: 256 MiB
MARGIN_SECONDS = 0.1  # read on both sides of a part that is resampled, for the filter


def read_sound(
    path: Path | str,
    *,
    rate_hz: int | None = None,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    channel: int | None = None,
) -> Sound:
    """The sound in a file, or a part of it, as one channel: the mean of all, or the one that is named (counted from 0).

    rate_hz: None keeps the file's own. seconds: None reads to the end; of a part that reaches beyond the end, what is there.
    Raises DataError for a file that is missing, empty, no audio, cut short or damaged, holds no samples or NaN, or contradicts itself, for
    a part that begins after the end, and, before anything is decoded, for more than MOST_SAMPLES.
    """
    path = Path(path)
    if start_seconds < 0 or seconds is not None and seconds <= 0:
        raise DataError(
            f"{path}: a part begins at 0 s or later and is longer than 0 s, but {start_seconds:g} s and {seconds} s were asked."
        )
    with closing(opened(path)) as file:
        facts = file.facts
        if channel is not None and not 0 <= channel < facts.channels:
            raise DataError(f"{path}: channel {channel}: the file has {facts.channels}, counted from 0.")
        target_hz = rate_hz or facts.rate_hz
        _check_size(path, facts, start_seconds, seconds, target_hz)
        first = round(start_seconds * target_hz)
        last = None if seconds is None else first + max(1, round(seconds * target_hz))
        if target_hz == facts.rate_hz:
            found_n = _mono(file, first, last, channel)
        else:
            found_n = _resampled_part(file, first, last, channel, target_hz)
    if not len(found_n):
        raise DataError(f"{path}: a part from {start_seconds:.2f} s on was asked, but the file lasts {facts.seconds:.2f} s.")
    return Sound(found_n, target_hz)


def _check_size(path: Path, facts: SoundFacts, start_seconds: float, seconds: float | None, target_hz: int) -> None:
    left = max(0.0, facts.seconds - start_seconds)
    asked = left if seconds is None else min(seconds, left)
    if asked * max(facts.rate_hz, target_hz) > MOST_SAMPLES:
        raise DataError(
            f"{path}: {asked:,.0f} s at {max(facts.rate_hz, target_hz)} Hz are more than the {MOST_SAMPLES:,} samples that are read at "
            "once; cut it into parts."
        )


def sound_facts(path: Path | str) -> SoundFacts:
    """Rate, channels and samples of a file, from its header and its end; counted by decoding where the container does not say.

    Raises DataError as `read_sound` does, but for what only the samples between would show.
    """
    with closing(opened(Path(path))) as file:
        file.check_end()
        return file.facts


def write_sound(path: Path | str, sound: Sound, *, as_float: bool = False) -> None:
    """A .wav (16-bit, or float32 as told) or .flac file (16-bit), complete or not at all.

    With 16 bits, samples beyond full scale are clipped with a warning. Raises DataError for another ending, no samples or NaN.
    """
    if not len(sound.wave_n):
        raise DataError(f"{path}: a sound without samples is not written.")
    with writing(path, sound.rate_hz, 1, as_float=as_float) as write:
        write(sound.wave_n[:, None])


@contextmanager
def writing(path: Path | str, rate_hz: int, channels: int, *, as_float: bool = False) -> Iterator[Callable[[np.ndarray], None]]:
    """A file to be written block by block, float32 [n, c]: there, and whole, when the context ends without an error. See `write_sound`."""
    path, soundfile = Path(path), require("soundfile", "speech")
    kind = WRITES.get(path.suffix.lower())
    if kind is None or as_float and kind != "WAV":
        raise DataError(f"{path}: sound is written as {' or '.join(WRITES)}{', floats as .wav alone' if as_float else ''}.")
    highest = 0.0

    def write(block_nc: np.ndarray) -> None:
        nonlocal highest
        if not np.isfinite(block_nc).all():
            raise DataError(f"{path}: a sound that holds NaN or infinity is not written.")
        if not as_float:
            highest = max(highest, float(np.abs(block_nc).max(initial=0)))
            block_nc = np.clip(np.rint(block_nc * 32768.0), -32768, 32767).astype(np.int16)
        file.write(block_nc)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as made:
        try:
            with soundfile.SoundFile(made, "w", rate_hz, channels, "FLOAT" if as_float else "PCM_16", format=kind) as file:
                yield write
            made.flush()
            os.chmod(made.name, 0o666 & ~_umask())
            os.replace(made.name, path)
        except BaseException:
            Path(made.name).unlink(missing_ok=True)
            raise
    if highest > 1:
        logger.warning("%s: samples beyond full scale are clipped; the largest is %.2f.", path, highest)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _mono(file: Reader, first: int, last: int | None, channel: int | None) -> np.ndarray:
    """float32 [n]: samples `first` to `last` of the file at its own rate, as one channel."""
    parts, at = [], first
    for block_nc in file.blocks(first, last):
        part_n = _one_channel(block_nc, channel)
        if not np.isfinite(part_n @ part_n) and not np.isfinite(part_n).all():  # the square sum is a fast first look
            bad = at + int(np.flatnonzero(~np.isfinite(part_n))[0])
            raise DataError(f"{file.path}: holds {part_n[bad - at]} at {bad / file.facts.rate_hz:.3f} s (sample {bad}).")
        parts.append(part_n)
        at += len(part_n)
    file.check_length(at, last)
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.float32), *parts])


def _one_channel(block_nc: np.ndarray, channel: int | None) -> np.ndarray:
    """float32 [n]: one channel, or the mean of all; added up channel by channel, which is much faster than a mean over short rows."""
    if channel is not None or block_nc.shape[1] == 1:
        return np.ascontiguousarray(block_nc[:, channel or 0])
    sum_n = block_nc[:, 0] + block_nc[:, 1]
    for place in range(2, block_nc.shape[1]):
        sum_n += block_nc[:, place]
    sum_n *= np.float32(1 / block_nc.shape[1])
    return sum_n


def _resampled_part(file: Reader, first: int, last: int | None, channel: int | None, target_hz: int) -> np.ndarray:
    """Samples `first` to `last` of the file as it is at another rate, whatever part is read.

    A margin is read on both sides, from a sample on that both rates share.
    """
    own_hz = file.facts.rate_hz
    step_in, step_out = own_hz // gcd(own_hz, target_hz), target_hz // gcd(own_hz, target_hz)
    margin = -(-round(MARGIN_SECONDS * own_hz) // step_in)  # in shared samples
    begin = max(0, first // step_out - margin)
    end = None if last is None else (-(-last // step_out) + margin) * step_in
    wide = Sound(_mono(file, begin * step_in, end, channel), own_hz).at(target_hz)
    shift = begin * step_out
    return wide.wave_n[first - shift : None if last is None else last - shift]
