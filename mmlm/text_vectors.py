"""Texts, and rows of tables as texts, through a decoder: the mean of its last states.

Axes: b rows of a batch   t tokens   d width
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.encoders.vectors import Progress, Vectors
from mmlm.model import MultimodalLM
from mmlm.run import load_text_model
from mmlm.stream import pack, text_stream, unpack
from mmlm.tokenizers.base import TextLike
from mmlm.tokenizers.table_rows import row_sentences

Item = str | Mapping[str, Any]
SHOWN = 40  # characters of a text in a message
TOKENS_AT_ONCE = 8192  # that are read together, unless one text holds more


class TextEmbedder(Vectors):
    """A decoder of texts: the folder of a run or model, or of transformers. size: its width.

    Raises CheckpointError where the folder holds none, or no tokenizer of texts beside it."""

    def __init__(self, folder: str | Path) -> None:
        model = load_text_model(folder)
        if model.text is None:
            raise CheckpointError(f"{folder}: has no text tokenizer beside its weights, so it encodes no texts.")
        self._take(model, model.text)

    @classmethod
    def of(cls, model: MultimodalLM, text: TextLike) -> TextEmbedder:
        """That of a model which is loaded already."""
        found = cls.__new__(cls)
        found._take(model, text)
        return found

    def _take(self, model: MultimodalLM, text: TextLike) -> None:
        self.model, self.text, self.size = model, text, int(model.config.backbone.width)

    @torch.no_grad()
    def encode(
        self,
        items: Sequence[Item],
        *,
        batch_size: int = 32,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """float32 [items, size]: the mean of the last states over the tokens of each text, without those that begin every text.

        items: texts, or rows as {column: cell}, which are written in sentences. batch_size: texts that are read together, fewer where they
        are long; it changes no vector. precision: auto or fp32. progress(done, in all) is called after each batch. Raises DataError for
        what holds no token.
        """
        if precision not in ("auto", "fp32"):
            raise RecipeError(f"precision must be auto or fp32, but is {precision!r}.")
        ids = self.text.ids([_written(number, item) for number, item in enumerate(items)])
        if empty := [number for number, some in enumerate(ids) if not some]:
            raise DataError(f"text {empty[0]}: holds no token.")
        parts = [torch.zeros(0, self.size)]
        done = 0
        while done < len(ids):
            some = _together(ids[done : done + max(1, batch_size)])
            parts.append(self._pooled(some))
            done += len(some)
            if progress is not None:
                progress(done, len(ids))
        vectors_nd = torch.cat(parts)
        return (functional.normalize(vectors_nd, dim=-1) if normalize else vectors_nd).numpy()

    def _pooled(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """[texts, d] of texts that stand one after the other in a row, each a document."""
        first = list(self.text.first or [])
        streams = [text_stream(torch.tensor([*first, *some])) for some in ids]
        batch = pack(streams, self.model.vocabulary, shift=False).to(self.model.device)
        h_btd, _ = self.model.hidden(batch)
        return torch.stack([h_td[len(first) :].float().mean(0) for h_td in unpack(h_btd, batch.layout)]).cpu()

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 32, normalize: bool = False) -> np.ndarray:
        """The same."""
        return self.encode(texts, batch_size=batch_size, normalize=normalize)

    def made_of(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """The model's config and weights. The tokenizer is not counted: its ids are rows of the weights."""
        return self.model.config.model_dump(mode="json"), self.model.state_dict()


def _together(ids: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """As many of the first texts as hold no more than TOKENS_AT_ONCE, one at least."""
    ends = list(accumulate(map(len, ids)))
    return ids[: max(1, bisect_right(ends, TOKENS_AT_ONCE))]


def _written(number: int, item: Item) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, Mapping):
        return row_sentences(item)
    raise DataError(f"text {number}: is a text, or a row as a mapping, but is {type(item).__name__} {str(item)[:SHOWN]}.")
