"""Where the documents of packed rows begin and end, in the form that recurrences ask for.

Axes: b rows   t tokens. document [b, t]: 0 is padding, every other number a document; a new number begins a new document.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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
    """bool [b]: rows whose first document goes on from the state; by default all when there is a state."""
    if state is None:
        return None
    if continues is None:
        return torch.ones(len(state), dtype=torch.bool, device=state.device)
    return continues.to(state.device, torch.bool)
