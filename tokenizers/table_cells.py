"""A table as feature tokens: one token a cell, its numbers standardised by the example rows alone.

Channels of a cell, in order: standard score, rank among the example rows (-1 to 1), is number, is category, is date, is missing, share of
missing cells, distinct values (log), asinh of the mean and of the spread of the example rows, whole numbers only; then the hashed text of
the cell (zero for numbers), the hashed name of its column, and what the column alone says about the class (table_evidence.py).
Text hashing: signed feature hashing of character n-grams, arXiv:0902.2206. Nothing is fitted; no query row touches a statistic.

Axes: r rows   c columns   f channels
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from mmlm.tokenizers.config import CellTokens
from mmlm.tokenizers.table_evidence import evidence, num_evidence

NUM_NUMERIC = 11
MAX_CLASSES = 10


class AnyColumn(Protocol):
    """What is read of a column: values float [r] with NaN for missing, category codes into words."""

    @property
    def name(self) -> str:
        """Name of the column."""

    @property
    def kind(self) -> str:
        """number, category or date."""

    @property
    def values(self) -> np.ndarray:
        """float [r]."""

    @property
    def words(self) -> list[str]:
        """Texts of the codes."""


def standard_scores(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Distances of values from the mean of `known`, in standard deviations of these; of equal ones, whose deviation is an error of
    rounding at most, the distances themselves. known: at least one, none missing."""
    mean, spread = float(known.mean()), float(known.std())
    return (values - mean) / (spread if spread > 1e-12 * abs(mean) else 1.0)


def num_channels(config: CellTokens) -> int:
    """f: channels of a cell."""
    return NUM_NUMERIC + config.text_hash + config.name_hash + num_evidence(config.evidence, MAX_CLASSES)


@lru_cache(maxsize=200_000)
def hash_text(text: str, size: int) -> np.ndarray:
    """float32 [size] of unit length: signed counts of the character n-grams (2 to 4, with borders) and words of a text."""
    found = np.zeros(size, dtype=np.float32)
    whole = text.strip().lower()[:64]
    bounded = f"<{whole}>"
    grams = [bounded[i : i + n] for n in (2, 3, 4) for i in range(len(bounded) - n + 1)]
    for gram in [*grams, *(f" {word}" for word in whole.replace("_", " ").replace(".", " ").split()), f"={whole}"]:
        code = zlib.crc32(gram.encode())
        found[code % size] += 1.0 if code & 0x8000_0000 else -1.0
    return found / max(float(np.linalg.norm(found)), 1e-6)


def cell_features(columns: Sequence[AnyColumn], labels_s: np.ndarray, num_classes: int, config: CellTokens) -> np.ndarray:
    """float32 [r, c, f] of columns whose first rows are the examples, of the classes labels_s (0 to num_classes - 1)."""
    rows, plain = len(columns[0].values), NUM_NUMERIC + config.text_hash + config.name_hash
    out = np.zeros((rows, len(columns), num_channels(config)), dtype=np.float32)
    for at, column in enumerate(columns):
        _fill(out[:, at, :plain], column, len(labels_s), config)
    out[:, :, plain:] = evidence(columns, labels_s, num_classes, MAX_CLASSES, config.evidence)
    return out


def _fill(out_rf: np.ndarray, column: AnyColumn, num_shots: int, config: CellTokens) -> None:
    values = np.asarray(column.values, dtype=np.float64)
    missing = np.isnan(values)
    known = values[:num_shots][~missing[:num_shots]]
    if known.size:
        mean, spread = float(known.mean()), float(known.std())
        z = np.clip(standard_scores(values, known), -config.clip, config.clip)
        ordered = np.sort(known)
        below = np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
        rank = below / known.size - 1.0
        out_rf[:, 7] = np.log1p(len(np.unique(known))) / 4
        out_rf[:, 8], out_rf[:, 9] = np.arcsinh(mean) / 8, np.arcsinh(spread) / 8
        out_rf[:, 10] = float((known == np.floor(known)).all())
    else:
        z = rank = np.zeros_like(values)
    out_rf[:, 0], out_rf[:, 1] = np.where(missing, 0, z), np.where(missing, 0, rank)
    out_rf[:, 2 + ("number", "category", "date").index(column.kind)] = 1.0
    out_rf[:, 5] = missing
    out_rf[:, 6] = missing[:num_shots].mean() if num_shots else 0.0
    if column.kind == "category" and not missing.all():
        present = np.flatnonzero(~missing)
        codes, place = np.unique(values[present].astype(np.int64), return_inverse=True)
        texts_kf = np.stack([hash_text(column.words[code], config.text_hash) for code in codes.tolist()])  # k distinct texts
        out_rf[present, NUM_NUMERIC : NUM_NUMERIC + config.text_hash] = texts_kf[place]
    out_rf[:, NUM_NUMERIC + config.text_hash :] = hash_text(column.name, config.name_hash)
