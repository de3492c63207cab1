"""Which of one's own files are held out, kept back for validation, or trained on: a function of each file's name and the shares, or of the
names of all groups of files that stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from mmlm.base.errors import DataError

Item = TypeVar("Item")


def place_of(key: str) -> float:
    """0 to 1, the same for the same text everywhere."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64


def deal_whole(names: Iterable[str], shares: Sequence[float]) -> dict[str, int]:
    """The number of the share that each name belongs to, that of the rest for the others: so that what has one name stays together.

    The names, in an order that depends on them alone, are dealt in whole numbers, at least one for a share above 0, so that four can be
    dealt at all. Raises ValueError where they are too few for that.
    """
    ordered = sorted(set(names), key=place_of)
    borders = list(accumulate(max(1, round(share * len(ordered))) if share else 0 for share in shares))
    if borders[-1] >= len(ordered):
        raise ValueError(f"{len(ordered)} are too few")
    return {name: sum(at >= border for border in borders) for at, name in enumerate(ordered)}


def deal(items: Sequence[Item], file: Callable[[Item], str], shares: Mapping[str, float], where: str, things: str) -> list[list[Item]]:
    """One list for each share, in their order, and one of the rest. shares: by the key of a recipe that gives it. things: what the items
    are called in a message. Raises as `checked` does."""
    borders = list(accumulate(shares.values()))
    groups: list[list[Item]] = [[] for _ in range(len(shares) + 1)]
    for each in items:
        place = place_of(file(each))
        groups[sum(place >= border for border in borders)].append(each)
    return checked(groups, shares, where, things)


def checked(groups: list[list[Item]], shares: Mapping[str, float], where: str, things: str) -> list[list[Item]]:
    """The groups, as `deal` gives them. Raises DataError for a share that is not zero and gave none, and for shares that leave none."""
    count = sum(map(len, groups))
    for (key, share), group in zip(shares.items(), groups, strict=False):
        if share and count and not group:
            raise DataError(f"{where}: {key}: {share:g} of {count} {things} is none; raise it.")
    if count and not groups[-1]:
        raise DataError(f"{where}: {' and '.join(shares)} leave none of {count} {things} to train on.")
    return groups
