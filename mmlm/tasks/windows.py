"""Tokens that are written window by window, each no longer than training samples are, and put together again.

Axes: t tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SHARED = 0.1  # of a window, with each neighbour


def windows(count: int, size: int) -> list[tuple[int, int]]:
    """(first, end) of windows of at most `size` tokens over so many, neighbours sharing a tenth of a window; one at least."""
    found, shared = [(0, min(size, count))], int(SHARED * size)
    while found[-1][1] < count:
        start = found[-1][0] + size - shared
        found.append((start, min(start + size, count)))
    return found


def joined(parts: Sequence[Tensor], spans: Sequence[tuple[int, int]]) -> Tensor:
    """What windows hold [t, ...], as one: of what two share the first half is the earlier one's."""
    kept, begin = [], 0
    for number, (part, (start, end)) in enumerate(zip(parts, spans, strict=True)):
        until = end if number == len(spans) - 1 else (end + spans[number + 1][0]) // 2
        kept.append(part[begin - start : until - start])
        begin = until
    return torch.cat(kept)
