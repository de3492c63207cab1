"""How much of speech its units keep, and how steady they are: purity, mutual information with phones, perplexity, edit distance.

Sources: PNMI and phone purity of HuBERT, arXiv:2106.07447, section IV.D; unit edit distance, arXiv:2209.15483, section 3.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Literal

import numpy as np

from mmlm.base.errors import DataError, require

Units = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class UnitQuality:
    """Of frames with a phone and a unit each.

    pnmi: share of the phones' entropy that the units tell, 0 to 1.   phone_purity: share of the frames that have the commonest phone of
    their unit.   perplexity: of the units, at most their number.   frames: how many were counted.
    """

    pnmi: float
    phone_purity: float
    perplexity: float
    frames: int


def unit_quality(units: Sequence[np.ndarray], phones: Sequence[Sequence[Hashable]]) -> UnitQuality:
    """Units [t] of each sound against the phone of each of its frames; frames whose phone is None are left out.

    Raises DataError where a sound has another number of units than of phones, or no frame has a phone.
    """
    if len(units) != len(phones):
        raise DataError(f"{len(units)} sounds have units, but {len(phones)} have phones.")
    numbers: dict[Hashable, int] = {}
    pairs: list[tuple[int, int]] = []
    for place, (unit_t, phone_t) in enumerate(zip(units, phones, strict=True)):
        if len(unit_t) != len(phone_t):
            raise DataError(f"sound {place}: {len(unit_t)} units, but {len(phone_t)} phones.")
        pairs += [
            (numbers.setdefault(phone, len(numbers)), int(unit)) for unit, phone in zip(unit_t, phone_t, strict=True) if phone is not None
        ]
    if not pairs:
        raise DataError("no frame has a phone; nothing can be measured.")
    at = np.array(pairs)
    counts = np.zeros((len(numbers), at[:, 1].max() + 1))
    np.add.at(counts, (at[:, 0], at[:, 1]), 1)
    share = counts / len(pairs)
    of_phones, of_units = _entropy(share.sum(1)), _entropy(share.sum(0))
    told = of_phones + of_units - _entropy(share.ravel())
    return UnitQuality(told / of_phones if of_phones > 0 else 1.0, float(share.max(0).sum()), float(np.exp(of_units)), len(pairs))


def unit_perplexity(units_t: np.ndarray) -> float:
    """How many units are in use, in effect: the exponential of their entropy."""
    return float(np.exp(_entropy(np.bincount(units_t) / len(units_t))))


def frame_phones(phones: Sequence[tuple[str, float, float]], num_frames: int, rate_hz: Fraction | float) -> list[str | None]:
    """The phone at the middle of each frame, None where there is none. phones: name, start and length in seconds, in their order."""
    found: list[str | None] = [None] * num_frames
    for name, start, length in phones:
        first, last = (max(0, int(np.ceil(time * float(rate_hz) - 0.5))) for time in (start, start + length))
        for frame in range(first, min(last, num_frames)):
            found[frame] = name
    return found


def unit_edit_distance(clean: Sequence[Units], changed: Sequence[Units], norm: Literal["units", "frames"] = "units") -> float:
    """How many edits in 100 units turn the units of clean sounds into those of the same sounds changed; runs of a unit count once.

    Each pair's distance is divided by the length of its clean units without repetitions (norm units) or with them (norm frames), and
    the mean over pairs is taken. Raises DataError where there is no pair, or a clean sound has no unit.
    """
    if len(clean) != len(changed) or not clean:
        raise DataError(f"{len(clean)} clean sounds and {len(changed)} changed ones: as many of both, and at least one, are compared.")
    distance = require("rapidfuzz.distance", "speech").Levenshtein.distance
    shares = []
    for place, (first, second) in enumerate(zip(clean, changed, strict=True)):
        if not len(first):
            raise DataError(f"clean sound {place} has no unit.")
        one, other = without_repetitions(first), without_repetitions(second)
        shares.append(distance(one, other) / (len(one) if norm == "units" else len(first)))
    return 100 * float(np.mean(shares))


def without_repetitions(units: Units) -> list[int]:
    """Each run of one unit as one."""
    return [int(unit) for unit, _ in groupby(units)]


def _entropy(share: np.ndarray) -> float:
    """In nats."""
    some = share[share > 0]
    return float(-(some * np.log(some)).sum())
