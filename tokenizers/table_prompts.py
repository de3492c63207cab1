"""Prompts with examples: which rows are shown, which answers are listed, and what fits into the context.

Source: TabuLa-8B (Gardner et al. 2024, arXiv:2406.12031): rows of the same table with their answers, in random order, before the
row to predict. Ours: the oldest examples give way when the context is full, and the row to predict is never cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mmlm.base.errors import DataError

MAX_CHOICES = 8


class Prompt(NamedTuple):
    """A prompt that fits: its text, the number of examples in it, and its tokens."""

    text: str
    num_shots: int
    num_tokens: int


def assemble(shots: Sequence[str], query: str, budget: int, count_tokens: Callable[[str], int], *, header: str = "") -> Prompt:
    """Header, as many of the last examples as fit, and the query; within `budget` tokens.

    shots: whole rows, prompt and completion, oldest first; each ends with a marker, so tokens are counted one by one. Raises
    DataError if the header and the query alone do not fit.
    """
    used = count_tokens(query) + (count_tokens(header) if header else 0)
    if used > budget:
        raise DataError(f"the row to predict has {used} tokens, but the context holds {budget}: use fewer columns or a longer context.")
    first = len(shots)
    while first > 0 and used + (size := count_tokens(shots[first - 1])) <= budget:
        used += size
        first -= 1
    return Prompt(header + "".join(shots[first:]) + query, len(shots) - first, used)


def draw_shots(
    labels: Sequence[int] | np.ndarray, num_shots: int, rng: np.random.Generator, *, balanced: bool = False, leave_out: Sequence[int] = ()
) -> np.ndarray:
    """Rows to show as examples, in random order: int64, fewer than `num_shots` if there are not so many.

    labels: class of each row, negative where it is unknown (never drawn). balanced: the classes take turns. leave_out: rows that
    must not be shown, such as the one to predict.
    """
    labels = np.asarray(labels)
    allowed = labels >= 0
    allowed[list(leave_out)] = False
    rows = rng.permutation(np.flatnonzero(allowed))
    if not balanced:
        return rows[:num_shots]
    turns = np.zeros(len(rows), dtype=np.int64)
    seen: Counter[int] = Counter()
    for at, label in enumerate(labels[rows].tolist()):
        turns[at] = seen[label]
        seen[label] += 1
    ranks = rng.permutation(int(labels.max(initial=0)) + 1)
    taken = np.lexsort((ranks[labels[rows]], turns))[:num_shots]
    return rows[rng.permutation(taken)]


def draw_choices(classes: Sequence[str], truth: str, rng: np.random.Generator, max_choices: int = MAX_CHOICES) -> list[str]:
    """Answers to list in training: all classes, or the true one and others drawn uniformly, in the order of `classes`."""
    if len(classes) <= max_choices:
        return list(classes)
    others = [at for at, name in enumerate(classes) if name != truth]
    if len(others) == len(classes):
        raise DataError(f"{truth!r} is not among the {len(classes)} classes.")
    kept = {truth, *(classes[at] for at in rng.choice(others, max_choices - 1, replace=False))}
    return [name for name in classes if name in kept]


def frequent_choices(classes: Sequence[str], shot_labels: Sequence[str], max_choices: int) -> list[str]:
    """Answers to list at evaluation: all classes, or those seen most often in the examples, in the order of `classes`.

    A row whose true class is not among them counts as a miss.
    """
    counts = Counter(shot_labels)
    kept = set(sorted(classes, key=lambda name: -counts[name])[:max_choices])
    return [name for name in classes if name in kept]
