"""Following a state that every token changes: a count, an arrangement."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from mmlm.data.probes.base import Labelled, Probe


class Counting(Probe):
    """Random bits; at each the number of ones so far, itself included, modulo m."""

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence."""
        bits = rng.integers(2, size=self.config.length)
        return Labelled(bits, bits.cumsum() % self.config.modulus, np.arange(len(bits)))


class Permutations(Probe):
    """Random permutations p of n things; at each the arrangement a with a_t[i] = a_{t-1}[p_t[i]], a_0 = 0, 1, ..., n - 1.

    Tokens and labels are places in the alphabetical list of all permutations, the first of which changes nothing.
    """

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence."""
        size = self.config.size
        known = np.array(list(permutations(range(size))))
        moved = (known != np.arange(size)).sum(1)
        tokens = rng.choice(np.flatnonzero(moved == 2) if self.config.swaps_only else len(known), self.config.length)
        weights = size ** np.arange(size)
        number = {int(code): place for place, code in enumerate(known @ weights)}
        state, labels = np.arange(size), np.empty_like(tokens)
        for at, token in enumerate(tokens):
            state = state[known[token]]
            labels[at] = number[int(state @ weights)]
        return Labelled(tokens, labels, np.arange(len(tokens)))
