"""What reads files of sound: libsndfile through soundfile, and FFmpeg's libraries through PyAV. What a container promises is compared with
what it holds.

Axes: n samples   c channels
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, require

BLOCK = 1 << 18  # samples of each channel that are decoded at once
BEFORE_SECONDS = 0.5  # decoded before a part of a compressed stream, until the decoder has settled
SLACK_SECONDS = 0.3  # by which a container's duration may miss that of its sound
LARGEST_PAGE = 2 * 65_307  # bytes; a page of ogg has at most half as many
CONTAINERS = ("wav", "flac", "ogg", "mp3", "aiff", "au", "w64", "caf", "g722", "mov", "matroska", "webm", "aac")  # none names other files
UNKNOWN = 1 << 50  # number of samples from which on a header is taken to name none


@dataclass(frozen=True)
class SoundFacts:
    """What a file says of its sound. num_samples: of each channel."""

    rate_hz: int
    channels: int
    num_samples: int

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.num_samples / self.rate_hz


class Reader:
    """An open file. `facts`: what it says of itself. `slack`: samples by which these may miss."""

    path: Path
    facts: SoundFacts
    slack = 0

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """float32 [n, c] blocks of the samples from `first` to before `last` or the end."""
        raise NotImplementedError

    def check_end(self) -> None:
        """Raise DataError where the end that is promised is not there."""

    def check_length(self, reached: int, last: int | None) -> None:
        """Raise DataError where reading for `last` samples, or all, ended at `reached` though more are promised."""
        promised = self.facts.num_samples
        wanted = promised if last is None else min(last, promised)
        if reached < wanted - self.slack:
            raise _cut_short(self.path, promised / self.facts.rate_hz, reached / self.facts.rate_hz)

    def close(self) -> None:
        """Close the file."""


def _cut_short(path: Path, promised: float, held: float) -> DataError:
    return DataError(f"{path}: is cut short or damaged: its header promises {promised:.2f} s, but it ends after {held:.2f} s.")


def opened(path: Path) -> Reader:
    """A file as what reads it. Raises DataError."""
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a folder, not a sound.")
        size = path.stat().st_size
        with path.open("rb") as raw:
            head = raw.read(16)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if size == 0:
        raise DataError(f"{path}: is empty (0 bytes).")
    if path.suffix.lower() == ".g722":
        for mark, kind in ((b"RIFF", "wav"), (b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mp3")):
            if head.startswith(mark):
                raise DataError(f"{path}: is named .g722 but holds {kind}; name it .{kind}.")
        return _Container(path, "g722")
    if path.suffix.lower() in (".raw", ".pcm", ".sw"):
        raise DataError(f"{path}: raw samples say neither their rate nor their form; turn them into .wav first.")
    if head.startswith((b"RIFF", b"RF64")) and head[8:12] == b"WAVE":
        _check_wav(path, size)
    if head.startswith(b"OggS"):  # where libsndfile seeks to in a vorbis stream may be a packet off
        _check_ogg(path, size)
        return _Container(path, None)
    soundfile = require("soundfile", "speech")
    file: Any = None
    reason = ""
    try:
        file = soundfile.SoundFile(str(path))
    except soundfile.LibsndfileError as error:
        reason = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
    # A flac that was written to a pipe names no length; libsndfile cannot seek in it.
    is_told = file is not None and 0 <= file.frames < UNKNOWN
    found: Reader = _SoundFile(path, file) if is_told else _Container(path, None, reason)
    if found.facts.num_samples < 1:
        found.close()
        raise DataError(f"{path}: holds no samples.")
    return found


def _check_wav(path: Path, size: int) -> None:
    """Raise DataError where the header of a wav file contradicts itself or the size of the file. libsndfile lets both pass."""
    with path.open("rb") as file:
        long_size, place = None, 12
        while place + 8 <= size:
            file.seek(place)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"ds64":
                long_size = struct.unpack("<8xQ", file.read(16))[0]
            elif name == b"fmt ":
                _check_format(path, file.read(16))
            elif name == b"data":
                length = long_size if length == 0xFFFFFFFF and long_size is not None else length
                held = size - place - 8
                if length > held and length < 0xFFFFFF00:  # larger sizes are of programs that wrote to a pipe and knew none
                    raise DataError(f"{path}: is cut short: its header promises {length:,} bytes of samples, but {held:,} are there.")
                if held > length == 0:
                    raise DataError(f"{path}: was never finished: its header tells of no samples, but {held:,} bytes follow.")
                return
            place += 8 + length + length % 2
    raise DataError(f"{path}: is cut short: it is a wav file without samples.")


def _check_ogg(path: Path, size: int) -> None:
    """Raise DataError where the last page of an ogg file is incomplete or not marked as the last; its length is told nowhere else."""
    with path.open("rb") as file:
        file.seek(max(0, size - LARGEST_PAGE))
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    is_whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not is_whole or not page[5] & 4:
        raise DataError(f"{path}: is cut short: its last page is {'not marked as the end' if is_whole else 'incomplete'}.")


def _check_format(path: Path, raw: bytes) -> None:
    if len(raw) < 16:
        raise DataError(f"{path}: is cut short within its header.")
    kind, channels, rate, byte_rate, align, bits = struct.unpack("<HHIIHH", raw)
    if kind in (1, 3, 0xFFFE) and (align != channels * (-(-bits // 8)) or byte_rate != rate * align):
        raise DataError(
            f"{path}: its header contradicts itself: {channels} channels of {bits} bits at {rate} Hz are not {align} bytes a sample "
            f"and {byte_rate} bytes a second."
        )


class _SoundFile(Reader):
    """What libsndfile reads."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.facts = SoundFacts(file.samplerate, file.channels, file.frames)

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """See `Reader`."""
        stop = self.facts.num_samples if last is None else min(last, self.facts.num_samples)
        # soundfile seeks after each read, and the frames of mp3 lean on earlier ones: each block is decoded from a little before it on.
        before = round(BEFORE_SECONDS * self.file.samplerate) if self.file.format == "MP3" else 0
        with _told(self.path, require("soundfile", "speech").LibsndfileError):
            while first < stop:
                lead = min(first, before)
                if self.file.tell() != first - lead:  # seeking in flac costs as much as decoding a while, also to where it is
                    self.file.seek(first - lead)
                block_nc = self.file.read(lead + min(BLOCK, stop - first), dtype="float32", always_2d=True)[lead:]
                if not len(block_nc):
                    return
                yield block_nc
                first += len(block_nc)

    def check_end(self) -> None:
        """See `Reader`."""
        last = self.facts.num_samples - 1
        if not sum(len(block_nc) for block_nc in self.blocks(last, None)):
            raise DataError(
                f"{self.path}: is cut short or damaged: its header promises {self.facts.seconds:.2f} s, but the end is not there."
            )

    def close(self) -> None:
        """See `Reader`."""
        self.file.close()


class _Container(Reader):
    """What FFmpeg's libraries read: the first audio stream of a container. Nothing but the file itself is opened."""

    def __init__(self, path: Path, kind: str | None, reason: str = "") -> None:
        self.path, self.kind, self.reason = path, kind, reason
        self.is_exact = kind is not None
        with self._container() as container:
            if not container.streams.audio:
                raise DataError(f"{path}: holds no sound.")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise DataError(f"{path}: is not audio that can be read: its codec is not known.")
            rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
            if not rate or not channels:
                raise DataError(f"{path}: is not audio that can be read: it names no rate or no channels.")
            self.facts = SoundFacts(rate, channels, UNKNOWN)
            if kind is not None:
                count = 2 * path.stat().st_size
            elif stream.duration is not None:
                count, self.is_exact = round(stream.duration * stream.time_base * rate), stream.time_base == Fraction(1, rate)
            elif container.duration is not None and len(container.streams) == 1:
                count = round(container.duration * rate / 1e6)
            else:
                count, self.is_exact = sum(len(block_nc) for block_nc in self.blocks(0, None)), True
        self.facts = SoundFacts(rate, channels, count)
        self.slack = 0 if kind is not None else round(SLACK_SECONDS * rate)

    def _container(self) -> Any:
        av = require("av", "speech")
        options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
        try:
            return av.open(f"file:{self.path}", format=self.kind, options=options, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError) as error:
            reasons = "; ".join(text for text in (self.reason, getattr(error, "strerror", None) or str(error)) if text)
            raise DataError(f"{self.path}: is not audio that can be read ({reasons}).") from None

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """See `Reader`."""
        av, rate = require("av", "speech"), self.facts.rate_hz
        if self.is_exact:
            last = self.facts.num_samples if last is None else min(last, self.facts.num_samples)
        with _told(self.path, av.error.FFmpegError, ValueError), self._container() as container:
            planar = av.AudioResampler(format="fltp")
            at, frames = 0, container.decode(audio=0)
            if self.kind is None and first > 2 * BEFORE_SECONDS * rate:
                at, frames = self._sought(container, frames, first / rate - BEFORE_SECONDS)
            for frame in frames:
                if frame.sample_rate != rate:
                    raise DataError(f"{self.path}: its header says {rate} Hz, but its sound has {frame.sample_rate} Hz.")
                for part in planar.resample(frame):
                    block_nc = part.to_ndarray().T
                    inside_nc = block_nc[max(0, first - at) : None if last is None else max(0, last - at)]
                    at += len(block_nc)
                    if len(inside_nc):
                        yield inside_nc
                if last is not None and at >= last:
                    return

    def _sought(self, container: Any, frames: Iterator[Any], seconds: float) -> tuple[int, Iterator[Any]]:
        """(number of the first sample, frames) from a little before a time on.

        Where the container counts in milliseconds, frames of one size tell the sample: all but the first of the file follow in its steps.
        """
        stream, rate = container.streams.audio[0], self.facts.rate_hz
        begin = next(frames, None)
        if begin is None:
            return 0, iter(())
        lead = begin.samples
        container.seek((stream.start_time or 0) + int(seconds / stream.time_base), stream=stream)
        frames = container.decode(stream)
        found = next(frames, None)
        if found is None:
            return self.facts.num_samples, iter(())
        at = round((found.pts - (stream.start_time or 0)) * found.time_base * rate)
        stepped = lead + round((at - lead) / found.samples) * found.samples
        if abs(stepped - at) <= found.time_base * rate:
            at = stepped
        return at, chain([found], frames)

    def check_end(self) -> None:
        """See `Reader`."""
        if self.slack:
            first = max(0, self.facts.num_samples - 2 * self.slack)
            self.check_length(first + sum(len(block_nc) for block_nc in self.blocks(first, None)), None)


@contextmanager
def _told(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of a decoder as DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except kinds as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise DataError(f"{path}: is damaged or cut short: {reason}.") from None
