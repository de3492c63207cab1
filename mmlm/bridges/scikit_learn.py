"""An encoder as a step of a pipeline of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, RecipeError, require
from mmlm.embedding import encoder as open_encoder
from mmlm.encoders.vectors import Vectors
from mmlm.text_vectors import TextEmbedder

base: Any = require("sklearn.base", "tabular")


class Vectorizer(base.ClassNamePrefixFeaturesOutMixin, base.TransformerMixin, base.BaseEstimator):  # type: ignore[misc]
    """Turns items into vectors; nothing is fitted.

    encoder: name of an encoder, "{type: name, option: value}", or the folder of a run, as `mmlm.encoder` takes it. It is opened when it is
    first used, and a pickle of the step holds this text, not the weights.
    """

    def __init__(self, encoder: str | Path, *, batch_size: int = 32, normalize: bool = False, precision: str = "auto") -> None:
        self.encoder = encoder
        self.batch_size, self.normalize, self.precision = batch_size, normalize, precision

    def fit(self, x: Any, y: Any = None) -> Vectorizer:
        """Opens the encoder, so that a wrong name is told before anything is read."""
        self._opened()
        return self

    def transform(self, x: Any) -> np.ndarray:
        """float32 [items, size] of a list or column of items; an encoder of texts also takes the rows of a DataFrame or a matrix.

        Raises RecipeError for an encoder that cannot be opened and DataError for an item that cannot be read.
        """
        opened = self._opened()
        items = _items(x, isinstance(opened, TextEmbedder))
        return opened.encode(items, batch_size=self.batch_size, normalize=self.normalize, precision=self.precision)

    @property
    def _n_features_out(self) -> int:
        return self._opened().size

    def _opened(self) -> Vectors:
        if not isinstance(self.encoder, str | Path):
            raise RecipeError(f"encoder: must be a name or the folder of a run, but is {type(self.encoder).__name__}.")
        name, found = getattr(self, "_open", (None, None))
        if found is None or name != self.encoder:
            found = open_encoder(self.encoder)
            self._open = self.encoder, found
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_open"}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit, tags.input_tags.string, tags.input_tags.two_d_array = False, True, False
        return tags


def _items(x: Any, has_rows: bool) -> Sequence[Any]:
    """Items as a list. has_rows: whether what has several columns is read row by row."""
    if hasattr(x, "to_dict") and hasattr(x, "columns"):
        if has_rows:
            return list(x.to_dict("records"))
        x = x.to_numpy(dtype=object)
    if isinstance(x, np.ndarray) and x.ndim == 2:
        if has_rows and x.shape[1] > 1:
            return [{f"x{number}": cell for number, cell in enumerate(row)} for row in x.tolist()]
        if x.shape[1] != 1:
            raise DataError(f"items for this encoder are one column, but these are {x.shape[1]}.")
        x = x[:, 0]
    return list(x)
