"""One id space for all modalities: a named range per modality.

Text comes first, so that its rows stay those of a pretrained decoder; ranges added later come after it and leave text-only logits as
they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from torch import Tensor

from mmlm.base.errors import DataError, RecipeError, unknown_name

Ids = TypeVar("Ids", Tensor, np.ndarray)


class Vocabulary:
    """Named, adjacent id ranges. sizes: {name: number of ids}, in the order of their ids."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.ranges: dict[str, range] = {}
        start = 0
        for name, size in sizes.items():
            if size < 1:
                raise RecipeError(f"vocabulary range {name!r} must hold at least 1 id, but holds {size}.")
            self.ranges[name] = range(start, start + size)
            start += size

    def __len__(self) -> int:
        return max((span.stop for span in self.ranges.values()), default=0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.ranges == other.ranges

    @property
    def sizes(self) -> dict[str, int]:
        """{name: number of ids}, as the constructor takes it."""
        return {name: len(span) for name, span in self.ranges.items()}

    def span(self, name: str) -> range:
        """The ids of one range. Raises RecipeError with the nearest known name."""
        if name not in self.ranges:
            raise RecipeError(unknown_name("vocabulary range", name, self.ranges))
        return self.ranges[name]

    def extended(self, sizes: Mapping[str, int]) -> Vocabulary:
        """This vocabulary with further ranges after it. A range it already has must keep its size; the last one alone may grow."""
        last = next(reversed(self.ranges), None)
        for name in self.ranges.keys() & sizes.keys():
            grows = name == last and len(self.ranges[name]) < sizes[name]
            if len(self.ranges[name]) != sizes[name] and not grows:
                raise RecipeError(f"vocabulary range {name!r} has {len(self.ranges[name])} ids and cannot become {sizes[name]}.")
        return Vocabulary({**self.sizes, **sizes})

    def to_global(self, name: str, ids: Ids) -> Ids:
        """Ids of the whole space for local ids (0..) of one range. Raises DataError for an id outside the range."""
        span = self.span(name)
        if 0 not in ids.shape and (int(ids.min()) < 0 or int(ids.max()) >= len(span)):
            raise DataError(f"range {name!r} holds ids 0 to {len(span) - 1}, but found {int(ids.min())} to {int(ids.max())}.")
        return ids + span.start

    def to_local(self, name: str, ids: Tensor) -> Tensor:
        """Local ids (0..) for ids that must all lie in one range."""
        span = self.span(name)
        if ids.numel() and (int(ids.min()) < span.start or int(ids.max()) >= span.stop):
            raise DataError(f"ids of range {name!r} lie within {span.start} and {span.stop - 1}, but found "
                            f"{int(ids.min())} to {int(ids.max())}.")  # fmt: skip
        return ids - span.start

    def name_of(self, index: int) -> str:
        """The range that holds one id."""
        for name, span in self.ranges.items():
            if index in span:
                return name
        raise DataError(f"id {index} lies in no range; the vocabulary holds 0 to {len(self) - 1}.")
