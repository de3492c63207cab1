"""Tables from random structural models: what a table might look like before one has seen any.

A model draws hidden causes, passes them through a few random layers (dense or sparse, with drawn activations and noise), takes columns and
target from any units, then spoils the columns as real ones are: heavy tails, rounding, categories with made-up words in a random order,
missing cells, columns of pure noise. The target is cut into classes at quantiles, evenly or unevenly; where it is the end of the chain, a
column may be made of the same unit.
Source: the structural causal prior of TabPFN, arXiv:2207.01848, section 4 and appendix C.2; details chosen here.

Axes: r rows   u units
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmlm.data.config import EpisodeConfig, StructuralTablesConfig
from mmlm.data.episodes import Episode, finish
from mmlm.data.tables import Column, Table

Activation = Callable[[np.ndarray], np.ndarray]
ACTIVATIONS: list[Activation] = [
    lambda x: x,
    np.tanh,
    lambda x: np.maximum(x, 0),
    np.sin,
    np.abs,
    lambda x: (x > 0).astype(x.dtype),
    lambda x: np.sign(x) * np.sqrt(np.abs(x)),
    lambda x: np.clip(x, -3, 3) ** 2,
    lambda x: np.floor(2 * x) / 2,
]
SYLLABLES = ["ba", "den", "ko", "lis", "mar", "no", "pel", "qui", "ra", "sto", "tem", "ur", "vi", "wen", "yo", "zar"]


class StructuralTables:
    """Tasks from generated tables."""

    def __init__(self, config: StructuralTablesConfig) -> None:
        self.config = config

    def draw(self, rng: np.random.Generator, config: EpisodeConfig) -> Episode:
        """One task; drawn again until its rows show two classes."""
        while True:
            num_columns = int(rng.integers(1, config.max_columns + 1))
            units = self._units(rng, config.num_rows, num_columns + 1)
            picked = rng.permutation(units.shape[1])[: num_columns + 1]
            if rng.random() < 0.5:  # half of the models have the target at the end of the chain
                picked[0] = units.shape[1] - 1
            columns = [_column(units[:, unit], rng) for unit in picked[1:]]
            labels, count = _classes(units[:, picked[0]], rng, config.max_classes)
            shots = int(round(float(np.exp(rng.uniform(np.log(config.min_shots), np.log(config.max_shots))))))
            table = Table("generated", _named(columns, rng))
            found = finish(table, labels, [str(number) for number in range(count)], shots, rng, config.max_classes, "outcome")
            if found is not None:
                return found

    def _units(self, rng: np.random.Generator, rows: int, need: int) -> np.ndarray:
        """Values [r, u] of all units of one random model."""
        config = self.config
        causes = rng.normal(size=(rows, int(rng.integers(1, config.max_causes + 1))))
        if rng.random() < 0.3:
            causes = np.where(rng.random(causes.shape[1]) < 0.5, causes, rng.uniform(-1.7, 1.7, causes.shape))
        layers = [causes]
        noise, sparse = float(np.exp(rng.uniform(np.log(0.01), np.log(0.6)))), float(rng.uniform(0.0, 0.8))
        for _ in range(int(rng.integers(1, config.max_layers + 1))):
            size = max(int(rng.integers(2, config.max_units + 1)), need // 2)
            before = layers[-1]
            weights = rng.normal(size=(before.shape[1], size)) * (rng.random((before.shape[1], size)) >= sparse)
            weights[rng.integers(before.shape[1], size=size), np.arange(size)] += rng.choice([-1.0, 1.0], size)
            x = before @ weights / np.sqrt((weights**2).sum(0)) + rng.normal(size=size) * 0.5
            kinds = rng.integers(len(ACTIVATIONS), size=size) if rng.random() < 0.7 else np.full(size, rng.integers(len(ACTIVATIONS)))
            y = np.stack([ACTIVATIONS[kind](x[:, unit]) for unit, kind in enumerate(kinds)], axis=1)
            spread = y.std(0)
            layers.append((y - y.mean(0)) / np.where(spread > 1e-6, spread, 1.0) + noise * rng.normal(size=y.shape))
        units = np.concatenate(layers, axis=1)
        while units.shape[1] < need:
            units = np.concatenate([units, rng.normal(size=(rows, 1))], axis=1)
        return units


def _classes(values: np.ndarray, rng: np.random.Generator, most: int) -> tuple[np.ndarray, int]:
    """Classes of the values: cut at even or uneven quantiles; two classes are the commonest."""
    count = 2 if rng.random() < 0.45 else int(rng.integers(2, most + 1))
    shares = np.arange(1, count) / count if rng.random() < 0.5 else np.sort(rng.uniform(0.05, 0.95, count - 1))
    labels = np.searchsorted(np.quantile(values, shares), values)
    if count > 2 and rng.random() < 0.5:  # classes need not follow the order of the values
        labels = rng.permutation(count)[labels]
    return labels.astype(np.int64), count


def _column(values: np.ndarray, rng: np.random.Generator) -> Column:
    """One unit as a column of a table."""
    draw = rng.random()
    values = values.copy()
    if rng.random() < 0.1:
        values = rng.normal(size=len(values))
    if draw < 0.3:
        count = int(rng.integers(2, 9))
        codes = np.searchsorted(np.quantile(values, np.sort(rng.uniform(0.02, 0.98, count - 1))), values)
        codes = rng.permutation(count)[codes]
        words = ["".join(rng.choice(SYLLABLES, int(rng.integers(1, 4)))) + str(number) for number in range(count)]
        column = Column("", "category", codes.astype(np.float64), words)
    else:
        if draw < 0.45:
            values = np.exp(np.clip(values, -8, 8))
        elif draw < 0.6:
            values = np.round(values * float(np.exp(rng.uniform(0, 4))))
        column = Column("", "number", values * float(10 ** rng.uniform(-3, 4)) + float(rng.choice([0.0, rng.normal() * 100])))
    if rng.random() < 0.15:
        column.values[rng.random(len(values)) < rng.uniform(0, 0.4)] = np.nan
    return column


def _named(columns: list[Column], rng: np.random.Generator) -> list[Column]:
    """The columns with made-up names, each once."""
    return [
        Column("".join(rng.choice(SYLLABLES, 2)) + f"_{place}", column.kind, column.values, column.words)
        for place, column in enumerate(columns)
    ]
