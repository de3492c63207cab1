"""Tokens of recordings, and recordings at one rate, made once and read through a memory map from then on.

Tokens are kept under the fingerprint of their tokenizer, each array under the identity of its sound: file, size, time of change, and the
part of it. Another tokenizer, a file that has changed or another trimming is something else and is made anew. Several processes with one
thread each make what is missing; a run that is killed loses what they had in hand, and at most a 64th of the rest, and goes on from there.

Axes: n samples   t tokens   u codebooks
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmlm.base.errors import DataError, MmlmError
from mmlm.base.files import parse_json, user_cache_folder
from mmlm.data.array_shards import DIGEST, Array, ArrayShards, Kind, Place, write_shard
from mmlm.data.speech import Utterance
from mmlm.sound import Sound
from mmlm.stream import Segment

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Found = tuple[np.ndarray, Mapping[str, np.ndarray]]
SHARD_SECONDS = 600.0  # of sound in a shard, at most
AT_ONCE_SECONDS = 60.0  # of sound that is given to a tokenizer at once
SHARDS_EACH = 4  # shards that a process makes at least, so that all end at about the same time


def identity(utterance: Utterance, *, with_text: bool = False) -> bytes:
    """A digest of the sound of an utterance: its file as it is now and the part of it, or the samples that it holds.

    with_text: and of its text.

    Raises DataError where the file is gone.
    """
    part: list[Any] = [utterance.start_seconds, utterance.end_seconds, utterance.channel]
    if with_text:
        part.append(utterance.text)
    if utterance.change is not None:
        part.append(repr(utterance.change))
    if utterance.held is not None:
        made_of = json.dumps([utterance.held.rate_hz, *part]).encode() + utterance.held.wave_n.tobytes()
    else:
        if utterance.path is None:
            raise DataError(f"{utterance.where}: has neither a file nor a sound.")
        try:
            state = os.stat(utterance.path)
        except OSError as error:
            raise DataError(f"{utterance.where}: {utterance.path}: {error.strerror}.") from None
        made_of = json.dumps([os.path.abspath(utterance.path), state.st_size, state.st_mtime_ns, *part]).encode()
    return hashlib.blake2b(made_of, digest_size=DIGEST).digest()


def fingerprint(tokenizer: Any) -> str:
    """A digest that changes with what a tokenizer makes: its own `fingerprint`, or that of all it saves."""
    own = getattr(tokenizer, "fingerprint", None)
    kind = f"{type(tokenizer).__module__}:{type(tokenizer).__qualname__}"
    digest = hashlib.blake2b(f"{kind} {own}".encode(), digest_size=DIGEST)
    if own is None:
        with TemporaryDirectory() as folder:
            tokenizer.save(folder)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size} ".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


class TokenShards:
    """The tokens of utterances by one tokenizer. with_text: it reads their texts as well."""

    def __init__(self, arrays: ArrayShards, *, with_text: bool = False) -> None:
        self.arrays, self.with_text = arrays, with_text
        about = parse_json(arrays.kind.about) if arrays.kind is not None else {}
        self.modality: str = about.get("modality", "")
        self.weight: float = about.get("weight", 0.0)
        self.rate_hz: tuple[int, int] | None = tuple(about["rate_hz"]) if about.get("rate_hz") else None

    def ids(self, utterance: Utterance) -> np.ndarray:
        """int16 or int32 [t] or [t, u], a view of the file. Raises DataError where they have not been made."""
        return _kept(self.arrays, utterance, self.with_text).ids

    def segment(self, utterance: Utterance) -> Segment:
        """What the tokenizer made of the utterance. Raises DataError where it has not been made."""
        found = _kept(self.arrays, utterance, self.with_text)
        tags = {name: torch.from_numpy(values.copy()) for name, values in found.tags.items()}
        return Segment(self.modality, torch.from_numpy(found.ids.astype(np.int64)), weight=self.weight, tags=tags, rate_hz=self.rate_hz)


@dataclass(frozen=True)
class KeptSound:
    """The sound of an utterance, or the part of it from start_seconds on, in 16 bits. See `speech.Kept`."""

    arrays: ArrayShards
    digest: bytes
    rate_hz: int
    start_seconds: float = 0.0
    seconds: float | None = None

    def sound(self) -> Sound:
        """All of it."""
        start = round(self.start_seconds * self.rate_hz)
        end = None if self.seconds is None else start + round(self.seconds * self.rate_hz)
        wave_n = self.arrays.get(self.digest).ids[start:end]
        return Sound(np.multiply(wave_n, np.float32(1 / 32768), dtype=np.float32), self.rate_hz)

    def part(self, start_seconds: float, seconds: float) -> KeptSound:
        """A part of it, at most up to its end."""
        if self.seconds is not None:
            seconds = min(seconds, self.seconds - start_seconds)
        return replace(self, start_seconds=self.start_seconds + start_seconds, seconds=seconds)


def logged(what: str, every_seconds: float = 10.0) -> Progress:
    """A progress that tells in the log how far the making has come, where there is anything to make."""
    last = time.monotonic() - every_seconds

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last < every_seconds:
            return
        last = time.monotonic()
        logger.info("%s: %d of %d recordings are ready.", what, done, total)

    return progress


def _kept(arrays: ArrayShards, utterance: Utterance, with_text: bool = False) -> Array:
    try:
        return arrays.get(identity(utterance, with_text=with_text))
    except KeyError:
        raise DataError(f"{utterance.where}: is not among the {len(arrays)} kept in {arrays.folder}, or has changed since.") from None


def tokens_of(
    utterances: Sequence[Utterance],
    tokenizer: Any,
    folder: Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> TokenShards:
    """The tokens of all utterances; those that are not kept yet are made.

    tokenizer: reads sounds (`encode`, or `encode_many`), or where it has `encode_utterances` sounds with their texts.
    folder: where they are kept, under the tokenizer's fingerprint; default the user's cache folder. workers: processes that make them,
    0 for this one; default as many as there are cores. progress(done, in all) is called after each shard.
    Raises DataError for sound that cannot be read and for a tokenizer that gives no ids; what was made before stays.
    """
    place = (folder or user_cache_folder() / "tokens") / fingerprint(tokenizer)
    make = _Tokens(tokenizer)
    return TokenShards(_filled(ArrayShards(place), utterances, make, workers, progress), with_text=make.with_text)


def sounds_of(
    utterances: Sequence[Utterance],
    rate_hz: int,
    folder: Path | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Utterance]:
    """The utterances with their sounds kept at one rate, in 16 bits; what is not kept yet is decoded. See `tokens_of`."""
    place = (folder or user_cache_folder() / "sounds") / f"{rate_hz}_hz"
    arrays = _filled(ArrayShards(place), utterances, _Samples(rate_hz), workers, progress)
    return [replace(each, kept=KeptSound(arrays, identity(each), rate_hz)) for each in utterances]


class _Tokens:
    """What a tokenizer makes of utterances."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.with_text = hasattr(tokenizer, "encode_utterances")

    def _segments(self, utterances: Sequence[Utterance]) -> list[Segment]:
        if self.with_text:
            return list(self.tokenizer.encode_utterances(utterances))
        sounds = [utterance.sound() for utterance in utterances]
        many = getattr(self.tokenizer, "encode_many", None)
        return list(many(sounds)) if many is not None else [self.tokenizer.encode(sound) for sound in sounds]

    def __call__(self, utterances: Sequence[Utterance]) -> tuple[Kind, list[Found]]:
        segments: list[Segment] = []
        for some in _at_most(utterances, AT_ONCE_SECONDS):
            segments += self._segments(some)
        found: list[Found] = []
        for utterance, segment in zip(utterances, segments, strict=True):
            if segment.ids is None:
                raise DataError(f"{utterance.where}: {type(self.tokenizer).__name__} gives no ids that could be kept.")
            found.append((segment.ids.numpy(), {name: values.numpy() for name, values in segment.tags.items()}))
        first = segments[0]
        about = {"modality": first.modality, "rate_hz": first.rate_hz, "weight": float(first.weight)}
        largest = max(self.tokenizer.sizes.values())
        return Kind("int16" if largest <= 1 << 15 else "int32", tuple(first.tags), json.dumps(about)), found


class _Samples:
    """Utterances as 16-bit samples at one rate."""

    with_text = False

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz

    def __call__(self, utterances: Sequence[Utterance]) -> tuple[Kind, list[Found]]:
        waves = (utterance.sound(self.rate_hz).wave_n for utterance in utterances)
        return Kind("int16"), [(np.clip(np.rint(wave_n * 32768.0), -32768, 32767).astype(np.int16), {}) for wave_n in waves]


class _Chunks(Dataset[Any]):
    """Shards still to be made: item k makes and writes the k-th and says where its arrays lie."""

    def __init__(self, folder: Path, chunks: list[list[Utterance]], make: _Tokens | _Samples) -> None:
        self.folder, self.chunks, self.make = folder, chunks, make

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, at: int) -> Any:
        utterances = self.chunks[at]
        try:
            digests = [
                identity(utterance, with_text=self.make.with_text) for utterance in utterances
            ]  # before the files are read: a later change is a new identity
            kind, found = self.make(utterances)
            rows = ((digest, ids, tags) for digest, (ids, tags) in zip(digests, found, strict=True))
            return kind, write_shard(self.folder, kind, rows), len(utterances)
        except MmlmError as error:
            return error  # raised in the process that asked for it


def _filled(
    arrays: ArrayShards, utterances: Sequence[Utterance], make: _Tokens | _Samples, workers: int | None, progress: Progress | None
) -> ArrayShards:
    digests = {identity(each, with_text=make.with_text): each for each in utterances}
    missing = [each for digest, each in digests.items() if digest not in arrays]
    total = len(utterances)
    done = total - len(missing)
    if progress is not None:
        progress(done, total)
    if not missing:
        return arrays
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds = sum(each.seconds for each in missing) / (max(1, workers) * SHARDS_EACH)
    chunks = _at_most(missing, min(SHARD_SECONDS, seconds))
    workers = min(workers, len(chunks))
    source = _Chunks(arrays.folder, chunks, make)
    made: Iterator[tuple[Kind, dict[bytes, Place], int] | MmlmError]
    made = (
        iter(DataLoader(source, batch_size=None, num_workers=workers, collate_fn=_as_is))
        if workers > 1
        else map(source.__getitem__, range(len(chunks)))
    )
    failed: MmlmError | None = None
    try:
        for result in made:
            if isinstance(result, MmlmError):
                failed = failed or result
                continue
            kind, places, count = result
            arrays.add(kind, places)
            done += count
            if progress is not None:
                progress(done, total)
    finally:
        arrays.finish()
    if failed is not None:
        raise failed
    return arrays


def _as_is(result: Any) -> Any:
    return result


def _at_most(utterances: Sequence[Utterance], seconds: float) -> list[list[Utterance]]:
    """The utterances in their order, in groups of at most so many seconds, or one longer one."""
    groups: list[list[Utterance]] = []
    left = 0.0
    for utterance in utterances:
        length = utterance.seconds
        if not groups or length > left:
            groups.append([])
            left = seconds
        groups[-1].append(utterance)
        left -= length
    return groups
