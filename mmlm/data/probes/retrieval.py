"""Finding one of many things that were written down."""

from __future__ import annotations

from typing import Any

import numpy as np

from mmlm.data.probes.base import Labelled, Probe, blank

MARK, ASK = 0, 1


class Needle(Probe):
    """Filler with MARK k v at even depths, keys without repetition; at the end ASK k for each, and v is the label at k."""

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence."""
        config, count = self.config, self.config.num_needles
        found = blank(config.length)
        first_key = 2 + config.num_fillers
        keys = first_key + rng.choice(config.num_keys, count, replace=False)
        values = first_key + config.num_keys + rng.integers(config.num_values, size=count)
        body = config.length - 2 * count
        found.tokens[:body] = 2 + rng.integers(config.num_fillers, size=body)
        gaps = np.sort(rng.choice(body - 2 * count, count, replace=False))  # each needle takes the room of one of these places
        place = gaps + 2 * np.arange(count)
        for offset, written in enumerate((np.full(count, MARK), keys, values)):
            found.tokens[place + offset] = written
        asked = body + 2 * np.arange(count) + 1
        order = rng.permutation(count)
        found.tokens[asked - 1], found.tokens[asked], found.labels[asked] = ASK, keys[order], values[order]
        found.reach[asked] = asked - (place[order] + 2)
        return found


class Phonebook(Probe):
    """Lines of a name and its number, different names; then MARK and a name, whose number is said digit after digit.

    With `asked_first` MARK and the name come before the book, and MARK alone after it. Tokens: 0 MARK, 1 to 10 the digits, then names.
    The digits said are in the sequence too, each after the place where it is the label: all right means that writing freely is.
    """

    def generate(self, rng: np.random.Generator) -> Labelled:
        """One sequence."""
        config = self.config
        numbers = 1 + rng.integers(10, size=(config.num_entries, config.number_size))
        chosen = rng.choice(config.num_names**config.name_size, config.num_entries, replace=False)
        names = 11 + np.stack([chosen // config.num_names**place % config.num_names for place in range(config.name_size)], axis=1)
        wanted = int(rng.integers(config.num_entries))
        book, question = np.concatenate([names, numbers], axis=1).ravel(), np.concatenate([[MARK], names[wanted]])
        before: list[Any] = [question, book, [MARK]] if config.asked_first else [book, question]
        prompt = np.concatenate(before).astype(np.int64)
        found = blank(len(prompt) + config.number_size - 1)
        found.tokens[: len(prompt)], found.tokens[len(prompt) :] = prompt, numbers[wanted, :-1]
        said = len(prompt) - 1 + np.arange(config.number_size)
        line = (len(question) if config.asked_first else 0) + wanted * (config.name_size + config.number_size) + config.name_size
        found.labels[said] = numbers[wanted]
        found.reach[said] = said if config.asked_first else said - (line + np.arange(config.number_size))
        return found
