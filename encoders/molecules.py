"""Molecules as vectors without learning: Morgan fingerprints by RDKit, the plain baseline of every encoder of molecules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, RecipeError
from mmlm.chemistry import fingerprints
from mmlm.encoders.config import FingerprintsConfig
from mmlm.encoders.vectors import Progress, Vectors


class Fingerprints(Vectors):
    """SMILES -> float32 [molecules, size], 1 where an environment of atoms is there."""

    at_once = 256

    def __init__(self, config: FingerprintsConfig) -> None:
        self.config, self.size = config, config.size

    def encode(
        self,
        items: Sequence[str],
        *,
        batch_size: int = 256,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """A vector of each molecule, in their order; of length 1 if normalize.

        batch_size: molecules between calls of progress(done, in all). precision: auto or fp32. Raises DataError that names a molecule
        which is none.
        """
        if precision not in ("auto", "fp32"):
            raise RecipeError(f"precision of fingerprints must be auto or fp32, but is {precision!r}.")
        parts = [np.zeros((0, self.size), dtype=np.float32)]
        for start in range(0, len(items), batch_size):
            some = items[start : start + batch_size]
            try:
                parts.append(fingerprints(some, radius=self.config.radius, size=self.size))
            except DataError as error:
                raise DataError(f"molecules {start + 1} to {start + len(some)}: {error}") from None
            if progress is not None:
                progress(start + len(some), len(items))
        vectors_nf = np.concatenate(parts)
        length_n1 = np.linalg.norm(vectors_nf, axis=1, keepdims=True)
        return vectors_nf / np.maximum(length_n1, 1e-12) if normalize else vectors_nf

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256, normalize: bool = False) -> np.ndarray:
        """The same: molecules are texts."""
        return self.encode(texts, batch_size=batch_size, normalize=normalize)

    def made_of(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Its settings alone."""
        return self.config.model_dump(), {}
