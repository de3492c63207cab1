"""What tasks share that train a tokenizer as a run of its own: codecs of sound and of pictures.

Axes: t tokens   u books
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmlm.tasks.base import UsualTask, tokenizer_of
from mmlm.tokenizers.quantizers import perplexity
from mmlm.tokenizers.trained import Trained

PREFIXES = (1, 2, 4, 8, 16, 32)
C = TypeVar("C", bound=Trained[Any])


class TrainsCodec(UsualTask, Generic[C]):
    """A task that trains the tokenizer which its config names. kind, types: what it must be, in code and in words."""

    features: Mapping[str, int] = {}
    over = "books that are decoded"

    def __init__(self, config: Any, tokenizers: Mapping[str, Any], kind: type[C], types: str) -> None:
        self.tokenizers = tokenizers
        self.codec: C = tokenizer_of(tokenizers, config.tokenizer, "task.tokenizer", kind, types)
        self.trains: Collection[str] = (config.tokenizer,)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The ranges of the codec."""
        return self.codec.sizes  # type: ignore[attr-defined]

    def save(self, folder: Path) -> None:
        """Nothing: the codec is among the tokenizers."""

    def load(self, folder: Path) -> Any:
        """The network of the codec."""
        return self.codec.model

    def perplexity(self, codes: Sequence[Tensor]) -> float:
        """How many entries of a book are in use, in effect, in codes [t, u], as a share of all of them; mean over the books."""
        codes_tu = torch.cat(list(codes))
        shares = [perplexity(codes_tu[:, number], size) / size for number, size in enumerate(self.codec.book_sizes)]
        return float(np.mean(shares))

    def prefixes(self) -> list[int]:
        """Numbers of first books to decode by, for curves; none where there is one book."""
        found = [count for count in PREFIXES if count <= self.codec.num_books]
        return found if len(found) > 1 else []
