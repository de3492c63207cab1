"""What everything that turns items into vectors does alike, whatever it reads: items one after the other, and a name for what made them.

Axes: n items   d numbers of a vector
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlm.base.errors import DataError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 4  # batches that `encode_stream` holds
NOT_COUNTED = ("path", "pretrained", "in_order", "precision")  # keys of a config that say where weights lie, or change only the last digits

Progress = Callable[[int, int], None]
Skip = Callable[[int, DataError], None]


class BadItem(DataError):
    """An item of a stream that cannot be read."""


class Vectors:
    """Base of what applications embed with. size: numbers of a vector.   at_once: items that `encode_stream` reads together by default."""

    size: int
    at_once = 32

    def encode(
        self,
        items: Sequence[Any],
        *,
        batch_size: int = 32,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Vectors float32 [items, size], in their order; of length 1 if normalize."""
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256, normalize: bool = False) -> np.ndarray:
        """Vectors float32 [texts, size] that can be compared with those of items. Raises RecipeError for an encoder that reads no texts."""
        raise RecipeError("this encoder reads no texts; those of open_clip, of molecules and of text decoders do.")

    def encode_stream(
        self,
        items: Iterable[Any],
        *,
        batch_size: int | None = None,
        normalize: bool = False,
        precision: str = "auto",
        skip: Skip | None = None,
    ) -> Iterator[np.ndarray]:
        """The vector [size] of each item, in their order, for items without end: a few batches are held, and no more are asked for.

        skip(number, error) is told of an item that cannot be read, counted from 0, whose vector is then left out; without it the stream
        ends there, with a BadItem that names it.
        """
        size = self.at_once if batch_size is None else batch_size
        if size < 1:
            raise RecipeError(f"batch_size must be at least 1, but is {size}.")
        rest, first = iter(items), 0
        while group := list(islice(rest, GROUP * size)):
            yield from self._of_group(group, first, skip, batch_size=size, normalize=normalize, precision=precision)
            first += len(group)

    def _of_group(self, group: list[Any], first: int, skip: Skip | None, **options: Any) -> Iterator[np.ndarray]:
        """All together, or one by one where one of them is bad. first: the number of the first."""
        try:
            yield from self.encode(group, **options)
            return
        except DataError:
            pass  # which one it is shows below
        for number, item in enumerate(group, first):
            try:
                (vector_d,) = self.encode([item], **options)
            except DataError as error:
                if skip is None:
                    raise BadItem(f"item {number}: {error}") from None
                skip(number, error)
                continue
            yield vector_d

    def made_of(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """The settings and the weights that decide what a vector is."""
        raise NotImplementedError

    @cached_property
    def fingerprint(self) -> str:
        """A name, 16 hexadecimal digits, that encoders share whose vectors can be compared: same settings, same weights."""
        settings, weights = self.made_of()
        kept = {key: value for key, value in settings.items() if key not in NOT_COUNTED}
        digest = hashlib.sha256(json.dumps([type(self).__name__, self.size, kept], sort_keys=True).encode())
        for name, tensor in sorted(weights.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).data)
        return digest.hexdigest()[:16]
