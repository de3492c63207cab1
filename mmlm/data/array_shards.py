"""Arrays of whole numbers kept in a folder, found by a digest and read through a memory map.

    shard-*.bin           arrays one after the other, and behind each its tags (float32)
    index.safetensors     for each array: digest, shard, place, shape; and what all arrays have in common

A shard is written beside its place, flushed and renamed, and only then named in the index, which is replaced whole: what was interrupted is
absent, never half there, and what was finished before stays. A shard that the index names and that is gone or too short is made again.

Axes: t tokens   u codebooks   r arrays
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mmlm.base.errors import DataError
from mmlm.base.files import parse_json, write_whole

logger = logging.getLogger(__name__)

INDEX = "index.safetensors"
DIGEST = 16  # bytes
ALIGNED = 8  # bytes at whose multiples arrays begin
UNNAMED = 1 / 64  # of all arrays, which wait at most to be named in the index: it is written whole, so not for each shard of a large corpus


@dataclass(frozen=True)
class Kind:
    """What the arrays of a folder have in common. dtype: int16 or int32. tags: names of the numbers that each token has beside its ids.
    about: whatever else belongs to all of them, as JSON."""

    dtype: str
    tags: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Array:
    """ids: int [t] or [t, u], a view of the file.   tags: {name: float32 [t]}."""

    ids: np.ndarray
    tags: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where an array lies. books: 0 for an array [t]."""

    shard: str
    offset: int
    tokens: int
    books: int


class ArrayShards:
    """The arrays of a folder. A process that reads sees those that were there when it opened the folder, and those it has added itself."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.kind: Kind | None = None
        self.places: dict[bytes, Place] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._num_unnamed = 0
        self._read_index()

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, digest: object) -> bool:
        return digest in self.places

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # another process maps the files itself

    def get(self, digest: bytes) -> Array:
        """The array of a digest. Raises KeyError where there is none."""
        place, kind = self.places[digest], self.kind
        assert kind is not None
        data = self._maps.get(place.shard)
        if data is None:
            with (self.folder / place.shard).open("rb") as file:
                data = self._maps[place.shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = place.tokens * max(1, place.books)
        ids = np.frombuffer(data, dtype=kind.dtype, count=count, offset=place.offset)
        if place.books:
            ids = ids.reshape(place.tokens, place.books)
        if not kind.tags:
            return Array(ids, {})
        start = _aligned(place.offset + ids.nbytes)
        values = np.frombuffer(data, dtype=np.float32, count=len(kind.tags) * place.tokens, offset=start).reshape(len(kind.tags), -1)
        return Array(ids, dict(zip(kind.tags, values, strict=True)))

    def add(self, kind: Kind, places: Mapping[bytes, Place]) -> None:
        """Take in the arrays of a shard; the index names them once they are enough, or when `finish` is called.

        Raises DataError where others are of another kind, and where nothing can be written.
        """
        self._check(kind)
        self.kind = kind
        self.places.update(places)
        self._num_unnamed += len(places)
        if self._num_unnamed >= UNNAMED * len(self.places):
            self.finish()

    def finish(self) -> None:
        """Name all arrays that were added in the index. Raises as `add` does."""
        if not self._num_unnamed or self.kind is None:
            return
        kind, self._num_unnamed = self.kind, 0  # what cannot be named is not tried again
        self._read_index()  # what another process has added meanwhile
        self._check(kind)
        shards = sorted({place.shard for place in self.places.values()})
        number = {shard: at for at, shard in enumerate(shards)}
        rows = list(self.places.values())
        tensors: dict[str, np.ndarray] = {
            "digest": np.frombuffer(b"".join(self.places), dtype=np.uint8).reshape(-1, DIGEST),
            "place": np.array([[number[row.shard], row.offset, row.tokens, row.books] for row in rows], dtype=np.int64).reshape(-1, 4),
        }
        with _told(self.folder):
            write_whole(self.folder / INDEX, [save(tensors, {"kind": json.dumps(asdict(kind)), "shards": json.dumps(shards)})])

    def _check(self, kind: Kind) -> None:
        if self.kind is not None and self.kind != kind:
            raise DataError(f"{self.folder}: holds arrays of another kind: {self.kind}, but these are {kind}.")

    def _read_index(self) -> None:
        path = self.folder / INDEX
        if not path.is_file():
            return
        try:
            data = path.read_bytes()
            head = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            tensors, shards, kind = load(data), parse_json(head["shards"]), parse_json(head["kind"])
            self.kind = Kind(kind["dtype"], tuple(kind["tags"]), kind["about"])
            digests, rows = tensors["digest"].tobytes(), tensors["place"].tolist()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning("%s is damaged (%s); the arrays are made again.", path, error)
            return
        sizes = {shard: _size(self.folder / shard) for shard in shards}
        found, lost = {}, set()
        for at, (shard, offset, tokens, books) in enumerate(rows):
            place = Place(shards[shard], offset, tokens, books)
            if _end(place, self.kind) > sizes[place.shard]:
                lost.add(place.shard)
            else:
                found[digests[at * DIGEST : (at + 1) * DIGEST]] = place
        if lost:
            logger.warning("%s: %s missing or cut short; what lay there is made again.", self.folder, ", ".join(sorted(lost)))
        self.places = {**self.places, **found}


def write_shard(folder: Path, kind: Kind, arrays: Iterable[tuple[bytes, np.ndarray, Mapping[str, np.ndarray]]]) -> dict[bytes, Place]:
    """A new shard of (digest, ids [t] or [t, u], tags), complete or absent. Returns where each array lies, for `ArrayShards.add`.

    Raises DataError for ids beyond the dtype, for other tags than those of the kind, and where nothing can be written.
    """
    limits = np.iinfo(kind.dtype)
    parts: list[bytes] = []
    laid: list[tuple[bytes, int, np.ndarray]] = []
    at = 0
    for digest, ids, tags in arrays:
        if ids.size and (ids.min() < limits.min or ids.max() > limits.max):
            raise DataError(f"{folder}: ids from {ids.min()} to {ids.max()} do not fit {kind.dtype}.")
        if tuple(tags) != kind.tags:
            raise DataError(f"{folder}: has the tags {', '.join(tags) or 'none'}, but others had {', '.join(kind.tags) or 'none'}.")
        laid.append((digest, at, ids))
        for piece in (ids.astype(kind.dtype).tobytes(), b"".join(np.asarray(tags[name], np.float32).tobytes() for name in kind.tags)):
            parts += [piece, bytes(_aligned(len(piece)) - len(piece))]
            at += _aligned(len(piece))
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, made = tempfile.mkstemp(dir=folder, prefix="shard-", suffix=".bin.part")
        os.close(descriptor)
        name = Path(made).name.removesuffix(".part")
        try:
            write_whole(folder / name, parts)
        finally:
            Path(made).unlink(missing_ok=True)
    return {digest: Place(name, offset, len(ids), ids.shape[1] if ids.ndim == 2 else 0) for digest, offset, ids in laid}


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Why nothing can be written, as a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}.") from None


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def _end(place: Place, kind: Kind) -> int:
    """The byte after an array and its tags."""
    end = place.offset + place.tokens * max(1, place.books) * np.dtype(kind.dtype).itemsize
    return _aligned(end) + 4 * place.tokens * len(kind.tags) if kind.tags else end


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
