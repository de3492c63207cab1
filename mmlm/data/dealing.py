"""Which of one's own files are held out, kept back for validation, or trained on: a function of each file's name and the shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

from mmlm.base.errors import DataError
from mmlm.data.speech_source import place_of

Item = TypeVar("Item")


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
