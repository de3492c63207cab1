"""Saying again what followed a token: many keys at once, or one."""

from __future__ import annotations

import numpy as np

from mmlm.data.probes.base import Labelled, Probe, blank


class Recall(Probe):
    """D pairs k v k v ..., then each k once more at random among filler 0, where its v is the label. Keys and values do not repeat.

    Source: arXiv:2312.04927, appendix; the places of the later keys are even here, where the paper draws them from a power law.
    """

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence."""
        config, count, half = self.config, self.config.num_pairs, self.config.num_tokens // 2
        keys = 1 + rng.choice(half - 1, count, replace=False)
        values = half + rng.choice(half, count, replace=False)
        found = blank(config.length)
        found.tokens[: 2 * count] = np.stack([keys, values], axis=1).ravel()
        again = 2 * count + rng.choice(config.length - 2 * count, count, replace=False)
        found.tokens[again], found.labels[again] = keys, values
        found.reach[again] = again - (2 * np.arange(count) + 1)
        return found


class Induction(Probe):
    """Tokens 1 to V at random; 0 stands at a random place and at the end, where what followed it is the label."""

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence."""
        found = blank(self.config.length)
        last = len(found.tokens) - 1
        found.tokens[:last] = rng.integers(1, self.config.num_tokens + 1, last)
        first = int(rng.integers(last - 1))
        found.tokens[[first, last]] = 0
        found.labels[last], found.reach[last] = found.tokens[first + 1], last - first - 1
        return found
