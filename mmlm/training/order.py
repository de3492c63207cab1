"""The order of training samples and all their randomness, as pure functions of seed and position: nothing to save or restore.

Samples are numbered through the whole run: position p belongs to epoch p // n and is place p % n of that epoch's permutation. Batches
cross the border of an epoch, so every batch is full and every sample comes once an epoch. The permutation is a keyed Feistel network
over the smallest square power of two that holds n, walked until it lands inside (Black & Rogaway 2002, "Ciphers with arbitrary finite
domains"): it costs the same for ten samples as for 10^15 virtual ones, and is never held in memory.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def derived(*parts: int | str, size_bytes: int = 8) -> int:
    """A number that depends on all parts and on nothing else, of the given size."""
    return int.from_bytes(hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=size_bytes).digest(), "little")


def permuted(places: NDArray[np.int64], num_items: int, key: int) -> NDArray[np.int64]:
    """Where a permutation of range(num_items), chosen by key, puts the given places. num_items: 1 to 2**63 - 1."""
    half = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(derived(key, number)) for number in range(_ROUNDS)]
    found = places.astype(np.uint64)
    outside = np.ones(len(found), dtype=bool)
    while outside.any():
        left, right = found[outside] >> half, found[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right + round_key) & mask)
        found[outside] = (left << half) | right
        outside = found >= np.uint64(num_items)
    return found.astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: each bit of the result depends on all bits of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def items(start: int, stop: int, *, num_items: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, index of the sample) at the positions start to stop of a run."""
    found: list[tuple[int, int]] = []
    while start < stop:
        epoch, place = divmod(start, num_items)
        count = min(stop - start, num_items - place)
        indices = permuted(np.arange(place, place + count), num_items, derived("order", seed, epoch))
        found += [(epoch, int(index)) for index in indices]
        start += count
    return found


def validation_rng(seed: int, number: int) -> np.random.Generator:
    """The generator of one validation sample, in every validation; no training sample has it."""
    return np.random.Generator(np.random.Philox(key=derived("validation", seed, number, size_bytes=16)))


def evaluation_rng(seed: int, source: int, number: int) -> np.random.Generator:
    """The generator of one test sample of a source; no training or validation sample has it."""
    return np.random.Generator(np.random.Philox(key=derived("test", seed, source, number, size_bytes=16)))


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator that one sample uses in one epoch, whoever prepares it."""
    return np.random.Generator(np.random.Philox(key=derived("sample", seed, epoch, index, size_bytes=16)))
