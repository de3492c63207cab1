"""Keeping some tokens, in their order, and nothing of what lies between."""

from __future__ import annotations

import numpy as np

from mmlm.data.probes.base import Labelled, Probe, blank

FILLER, MARK = 0, 1


class Copying(Probe):
    """M values (2 and above) at random places of a body, then M marks, at which the values are the labels, in their order."""

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence."""
        length, count = self.config.length, self.config.num_values
        found = blank(length + count)
        place = np.sort(rng.choice(length, count, replace=False))
        values = 2 + rng.integers(self.config.num_tokens, size=count)
        found.tokens[place], found.tokens[length:], found.labels[length:] = values, MARK, values
        found.reach[length:] = length + np.arange(count) - place
        return found
