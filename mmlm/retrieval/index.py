"""An index of vectors by name: what lies nearest to a query, found by faiss, and kept in a folder.

    index.json                  what the index is, the names of its items, which file holds their vectors, and its SHA-256
    vectors-0123456789ab.faiss  the vectors as faiss writes them, named after what it holds

The one file that is renamed into place last is index.json, so that a save that is stopped leaves the index as it was. Nothing is read by
faiss whose SHA-256 is not that of index.json.

Axes: n items   q queries   m found   d numbers of a vector
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mmlm.base.errors import CheckpointError, DataError, RecipeError, require
from mmlm.base.files import parse_json, write_text_whole, write_whole
from mmlm.encoders.vectors import Skip, Vectors

ABOUT, FORMAT = "index.json", 1
AT_ONCE = 4096  # vectors that are added together
Metric = Literal["cosine", "inner"]
Kind = Literal["flat", "hnsw"]
FACTORY: Mapping[str, str] = {"flat": "Flat", "hnsw": "HNSW32,Flat"}  # by faiss's names
KEYS = {
    "format": int,
    "metric": str,
    "kind": str,
    "size": int,
    "fingerprint": str,
    "encoder": str,
    "names": list,
    "file": str,
    "sha256": str,
}


@dataclass(frozen=True)
class Found:
    """An item that was found. name: of the item.   score: cosine or inner product with the query; the first is the largest."""

    name: str
    score: float


class Index:
    """Names and vectors of items, to be searched.

    size: numbers of a vector.   metric: "cosine", or "inner" for inner products of vectors as they are.   kind: "flat" compares with every
    item; "hnsw" with some, for millions: faster, and now and then it misses one (arXiv:1603.09320).   fingerprint: of the encoder that
    makes the vectors; "" where nobody knows.   encoder: how `mmlm.encoder` is told of it.
    """

    def __init__(self, size: int, *, metric: Metric = "cosine", kind: Kind = "flat", fingerprint: str = "", encoder: str = "") -> None:
        if size < 1:
            raise RecipeError(f"size must be at least 1, but is {size}.")
        for word, value, known in (("metric", metric, get_args(Metric)), ("kind", kind, get_args(Kind))):
            if value not in known:
                raise RecipeError(f"{word} must be one of {', '.join(known)}, but is {value!r}.")
        faiss = require("faiss", "search")
        self.size, self.metric, self.kind = size, metric, kind
        self.fingerprint, self.encoder = fingerprint, encoder
        self.names: list[str] = []
        self._known: set[str] = set()
        self._vectors: Any = faiss.index_factory(size, FACTORY[kind], faiss.METRIC_INNER_PRODUCT)

    @classmethod
    def of(cls, encoder: Vectors, *, metric: Metric = "cosine", kind: Kind = "flat", name: str = "") -> Index:
        """An empty index for the vectors of an encoder. name: how `mmlm.encoder` is told of it."""
        return cls(encoder.size, metric=metric, kind=kind, fingerprint=encoder.fingerprint, encoder=name)

    def __len__(self) -> int:
        return len(self.names)

    def check(self, encoder: Vectors, who: str = "the encoder") -> None:
        """Raises DataError where the index was made by another encoder."""
        if self.fingerprint and encoder.fingerprint != self.fingerprint:
            own = f" ({self.encoder})" if self.encoder else ""
            raise DataError(
                f"the index holds vectors of the encoder {self.fingerprint}{own}, but {who} is {encoder.fingerprint}: its settings or "
                "weights are others, so that their vectors cannot be compared."
            )

    def add(self, names: Sequence[str], vectors_nd: np.ndarray) -> None:
        """Items and their vectors, all of them or none. Raises DataError for vectors of another size, or that are not finite, and for a
        name that the index holds already or that comes twice."""
        vectors_nd = self._checked(vectors_nd, "the vectors to add")
        if len(names) != len(vectors_nd):
            raise DataError(f"each vector has a name, but these are {len(names)} names and {len(vectors_nd)} vectors.")
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise DataError(f"a name is a text, but this is {type(wrong[0]).__name__} {str(wrong[0])[:80]}.")
        twice = [name for name, count in Counter(names).items() if count > 1 or name in self._known]
        if twice:
            held = "is in the index already" if twice[0] in self._known else "comes twice"
            more = f", and so do {len(twice) - 1} more" if len(twice) > 1 else ""
            raise DataError(f"{twice[0]!r} {held}{more}; a name stands for one item.")
        self._vectors.add(vectors_nd)
        self.names += names
        self._known.update(names)

    def add_stream(
        self,
        items: Iterable[tuple[str, Any]],
        encoder: Vectors,
        *,
        batch_size: int | None = None,
        precision: str = "auto",
        skip: Skip | None = None,
    ) -> int:
        """Pairs of a name and an item, through an encoder, a few batches at a time; returns how many were added. Raises as `add` and
        `encode_stream` do; what was added before stays. skip(number, error) is told of items that cannot be read."""
        self.check(encoder)
        names, left_out, before = list[str](), 0, len(self)

        def read() -> Iterator[Any]:
            for name, item in items:
                names.append(name)
                yield item

        def leave_out(number: int, error: DataError) -> None:
            nonlocal left_out
            del names[number - left_out - (len(self) - before)]
            left_out += 1
            if skip is not None:
                skip(number, error)

        vectors = encoder.encode_stream(read(), batch_size=batch_size, precision=precision, skip=None if skip is None else leave_out)
        while some := list(islice(vectors, AT_ONCE)):
            self.add(names[: len(some)], np.stack(some))
            del names[: len(some)]
        return len(self) - before

    def search(self, queries_qd: np.ndarray, top: int = 10) -> list[list[Found]]:
        """The nearest items of each query, the best first; fewer than `top` where the index holds fewer.

        Raises DataError for an empty index and for queries of another size or that are not finite, RecipeError for top below 1.
        """
        if top < 1:
            raise RecipeError(f"top must be at least 1, but is {top}.")
        queries_qd = self._checked(queries_qd, "the queries")
        if not self.names:
            raise DataError("the index is empty; add items first.")
        scores_qm, places_qm = self._vectors.search(queries_qd, min(top, len(self.names)))
        return [
            [Found(self.names[place], score) for score, place in zip(scores, places, strict=True) if place >= 0]
            for scores, places in zip(scores_qm.tolist(), places_qm.tolist(), strict=True)
        ]

    def _checked(self, vectors_nd: np.ndarray, what: str) -> np.ndarray:
        """float32 [n, d], of length 1 for cosines."""
        found = np.ascontiguousarray(vectors_nd, dtype=np.float32)
        if found.ndim != 2 or found.shape[1] != self.size:
            raise DataError(f"{what} must be [n, {self.size}], as this index has them, but are {list(found.shape)}.")
        if not np.isfinite(found).all():
            raise DataError(f"{what} hold numbers that are not finite, the first in row {int(np.argmin(np.isfinite(found).all(1)))}.")
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12) if self.metric == "cosine" else found

    def save(self, folder: Path | str) -> None:
        """Write the folder, whole or as it was. Raises OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = memoryview(require("faiss", "search").serialize_index(self._vectors))
        digest = hashlib.sha256(content).hexdigest()
        file = f"vectors-{digest[:12]}.faiss"
        about = {
            "format": FORMAT, "metric": self.metric, "kind": self.kind, "size": self.size, "fingerprint": self.fingerprint,
            "encoder": self.encoder, "names": self.names, "file": file, "sha256": digest,
        }  # fmt: skip
        write_whole(folder / file, [content])
        write_text_whole(folder / ABOUT, json.dumps(about, ensure_ascii=False) + "\n")
        for old in folder.glob("vectors-*.faiss"):
            if old.name != file:
                old.unlink()

    @classmethod
    def load(cls, folder: Path | str) -> Index:
        """The index that save wrote. Raises CheckpointError where the folder holds none, or one that is damaged."""
        folder = Path(folder)
        about = _about(folder / ABOUT)
        path = folder / about["file"]
        if path.parent != folder or not path.is_file():
            raise CheckpointError(f"{path}: no such file, but {folder / ABOUT} names it.")
        content = np.fromfile(path, dtype=np.uint8)
        if hashlib.sha256(content.data).hexdigest() != about["sha256"]:
            raise CheckpointError(f"{path}: is damaged: its SHA-256 is not that of {folder / ABOUT}.")
        try:
            index = cls(
                about["size"], metric=about["metric"], kind=about["kind"], fingerprint=about["fingerprint"], encoder=about["encoder"]
            )
        except RecipeError as error:
            raise CheckpointError(f"{folder / ABOUT}: {error}") from None
        index._vectors = require("faiss", "search").deserialize_index(content)
        index.names, index._known = about["names"], set(about["names"])
        if (index._vectors.d, index._vectors.ntotal) != (index.size, len(index.names)) or len(index._known) != len(index.names):
            held = f"{index._vectors.ntotal} vectors of {index._vectors.d} numbers"
            raise CheckpointError(
                f"{folder / ABOUT}: names {len(index._known)} items of {index.size} numbers, but {path.name} holds {held}."
            )
        return index


def _about(path: Path) -> dict[str, Any]:
    """What index.json says. Raises CheckpointError for anything else than an index of this format."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: no index: {path.name} is missing. Make one: mmlm encode ENCODER FILES --index {path.parent}")
    try:
        about = parse_json(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}.") from None
    if not isinstance(about, dict) or about.keys() != KEYS.keys():
        raise CheckpointError(f"{path}: must hold one object with the keys {', '.join(KEYS)}.")
    if wrong := [key for key, kind in KEYS.items() if not isinstance(about[key], kind)]:
        raise CheckpointError(f"{path}: {wrong[0]}: must be of the type {KEYS[wrong[0]].__name__}, but is {str(about[wrong[0]])[:80]}.")
    if about["format"] != FORMAT:
        raise CheckpointError(f"{path}: format: must be {FORMAT}, but is {about['format']}; another version of mmlm wrote it.")
    if not all(isinstance(name, str) for name in about["names"]):
        raise CheckpointError(f"{path}: names: must all be texts.")
    return about
