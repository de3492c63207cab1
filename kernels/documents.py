"""Where the documents of packed rows begin and end, in the form that recurrences ask for.

Axes: b rows   t tokens   n documents   l tokens of a document   c channels   s inputs before the rows and tokens
document [b, t]: 0 is padding, every other number a document; a new number begins a new document.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError


class Bucket(NamedTuple):
    """Documents of similar length. place [n, l]: of their tokens among all b * t, b * t itself where a document has ended.   row [n].
    continued: they are what a carried state goes on with."""

    place: Tensor
    row: Tensor
    continued: bool


@dataclass(frozen=True)
class Documents:
    """What is known of one `document` tensor; found once and shared by all layers."""

    document: Tensor

    @cached_property
    def real(self) -> Tensor:
        """bool [b, t]: not padding."""
        return self.document > 0

    @cached_property
    def plain(self) -> bool:
        """Every row is one document without padding."""
        return bool((self.document == self.document[:, :1]).all()) and bool(self.real.all())

    @cached_property
    def padded_at_end(self) -> bool:
        """No token follows padding in its row."""
        return not bool((self.real[:, 1:] & ~self.real[:, :-1]).any())

    @cached_property
    def segment(self) -> Tensor:
        """long [b, t]: 1, 2, ... for the documents of a row in their order; padding counts with what precedes it, 0 before all."""
        place = torch.arange(1, self.document.shape[1] + 1, device=self.document.device)
        last = torch.where(self.real, place, 0).cummax(1).values  # one-based place of the last token that is not padding
        known = torch.cat([self.document.new_zeros(len(self.document), 1), self.document], dim=1)
        before = known.gather(1, torch.cat([torch.zeros_like(last[:, :1]), last[:, :-1]], dim=1))
        return (self.real & (self.document != before)).cumsum(1)

    @cached_property
    def ranges(self) -> tuple[Tensor, Tensor]:
        """int32 [b, t] twice: where the document of each token begins and before which place it ends; t and 0 at padding."""
        segment = self.segment.contiguous()
        begin, end = (torch.searchsorted(segment, segment, right=right) for right in (False, True))
        return torch.where(self.real, begin, segment.shape[1]).int(), torch.where(self.real, end, 0).int()

    def segment_after(self, continues: Tensor | None) -> Tensor:
        """`segment`, where 0 is what a carried state belongs to: the first document too in rows with continues [b]; None: in none."""
        if continues is None:
            return self.segment
        return (self.segment - continues[:, None].long()).clamp_min(0)

    @cached_property
    def order(self) -> tuple[Tensor, Tensor]:
        """long [b, t] twice: places that bring each row's tokens before its padding, and the way back."""
        order = torch.argsort((~self.real).int(), dim=1, stable=True)
        return order, torch.argsort(order, dim=1)

    @cached_property
    def runs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """place: of all tokens that are no padding, row by row. For each document: its start there, its length, its row."""
        place = self.real.flatten().nonzero()[:, 0]
        row = place // self.document.shape[1]
        _, length = torch.unique_consecutive(torch.stack([row, self.segment.flatten()[place]]), dim=1, return_counts=True)
        start = length.cumsum(0) - length
        return place, start, length, row[start]

    def buckets(self, continues: Tensor | None, size: Callable[[int], int]) -> list[Bucket]:
        """All documents, those with equal size(length) together; the first of a row apart where continues [b] says so."""
        place, start, length, row = self.runs
        continued = torch.zeros_like(row, dtype=torch.bool)
        if continues is not None and len(row):
            continued = continues[row] & torch.cat([row.new_ones(1).bool(), row[1:] != row[:-1]])
        groups: dict[tuple[bool, int], list[int]] = {}
        lengths = length.tolist()
        for document, key in enumerate(zip(continued.tolist(), map(size, lengths))):
            groups.setdefault(key, []).append(document)
        padded = torch.cat([place, place.new_full((max(lengths, default=0),), self.document.numel())])
        found = []
        for (is_continued, _), members in groups.items():
            chosen = torch.tensor(members, device=place.device)
            step = torch.arange(max(lengths[i] for i in members), device=place.device)
            tokens = padded[start[chosen, None] + step].masked_fill(step >= length[chosen, None], self.document.numel())
            found.append(Bucket(tokens, row[chosen], is_continued))
        return found

    def last(self, continues: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """place [n, l] of the last document of each row that has one, at the right end, with b * t in front of shorter ones; row [n];
        continued [n]: it is what a carried state goes on with."""
        place, start, length, row = self.runs
        ends = torch.cat([row[1:] != row[:-1], row.new_ones(min(len(row), 1)).bool()]).nonzero()[:, 0]
        length, row = length[ends], row[ends]
        longest = int(length.max()) if len(length) else 0
        step = torch.arange(longest, device=place.device) - longest + length[:, None]
        tokens = place[(start[ends, None] + step).clamp_min(0)].masked_fill(step < 0, self.document.numel())
        first = torch.cat([ends.new_full((1,), -1), ends[:-1]])[: len(ends)] == ends - 1
        return tokens, row, first & continues[row] if continues is not None else torch.zeros_like(first)


def last_inputs(whole_bcs: Tensor, known: Documents, segment: Tensor) -> Tensor:
    """The last inputs of each row's last document, zeros before it, as many as precede the rows.

    whole: those and then the tokens, padding at the end. segment [b, t]: of the tokens, 0 for the document that what precedes belongs to.
    """
    past = whole_bcs.shape[2] - segment.shape[1]
    belongs = torch.cat([segment.new_zeros(len(segment), past), segment], dim=1)
    count = known.real.sum(1)[:, None]
    columns = count + torch.arange(past, device=whole_bcs.device)
    own = belongs.gather(1, columns) == belongs.gather(1, count + past - 1) if past else columns.bool()
    last = whole_bcs.gather(2, columns[:, None].expand(-1, whole_bcs.shape[1], -1))
    return torch.where(own[:, None], last, 0)


_recent: list[tuple[weakref.ref[Tensor], int, Documents]] = []


def documents(document_bt: Tensor) -> Documents:
    """The `Documents` of a tensor, remembered while the tensor lives and is not written to."""
    if document_bt.is_inference():
        return Documents(document_bt)
    now = document_bt._version
    for seen, version, found in _recent:
        if version == now and seen() is document_bt:
            return found
    found = Documents(document_bt.detach())
    _recent.insert(0, (weakref.ref(document_bt), now, found))
    del _recent[4:]
    return found


def continuing(continues: Tensor | None, state: Tensor | None) -> Tensor | None:
    """bool [b]: rows whose first document goes on from the state; by default all when there is a state.

    Raises RecipeError for another shape.
    """
    if state is None:
        return None
    if continues is not None and continues.shape != state.shape[:1]:
        raise RecipeError(f"continues must be {list(state.shape[:1])} beside a state {list(state.shape)}, but is {list(continues.shape)}.")
    if continues is None:
        return torch.ones(len(state), dtype=torch.bool, device=state.device)
    return continues.to(state.device, torch.bool)
