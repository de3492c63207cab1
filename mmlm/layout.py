"""Which token may see which, said once for every mixer.

Token j is visible to token i, both in the same document and i, j >= 0 their places in it, when

    (j <= i  or  not causal  or  mutual_i = mutual_j > 0)  and  branch_j in {0, branch_i}  and  allowed[i, j]  and  i - j < window
    and  (mark_j < 0  or  reach_i[0] <= mark_j <= reach_i[1])

A document is one packed sample; document 0 is padding. `mutual` makes a prefix, a picture or any other set of tokens see itself in both
directions; branches share the trunk before them and never see one another (answer options, query rows of a table). Marks number the
tokens that only some queries may see, and a query's reach says which numbers these are: a window that follows an alignment.
A mixer that works `over` one position axis takes tokens that differ on that axis alone (and share the document) as its sequences; i and j
are then the places in these.

Axes: b rows   t tokens   p position axes   n sequences   l tokens of a sequence, or in a cache
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels.attention.plan import Bucket, Plan

T = TypeVar("T")
EVERYTHING = (0, torch.iinfo(torch.long).max)  # the reach of a query that sees all marks


@dataclass
class Layout:
    """document: int32 [b, t], 0 = padding.   position: long [b, t, p] on the named axes.   mutual, branch: long [b, t] or None.
    allowed: bool [b, t, t] or None.   mark: long [b, t], -1 for none, or None.   reach: long [b, t, 2], first and last mark seen, or None.
    causal: whether mixers that leave it open look back only.   cached_mark: long [b, l] marks of what a cache holds, these tokens included.
    """

    document: Tensor
    position: Tensor
    axes: tuple[str, ...] = ("time",)
    mutual: Tensor | None = None
    branch: Tensor | None = None
    allowed: Tensor | None = None
    mark: Tensor | None = None
    reach: Tensor | None = None
    causal: bool = True
    cached_mark: Tensor | None = None
    _memo: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def plain(cls, batch: int, length: int, *, start: Tensor | int = 0, causal: bool = True, device: torch.device | str = "cpu") -> Layout:
        """`batch` documents of `length` tokens, one a row. start: position of the first token, one number or [b]."""
        steps = torch.arange(length, device=device)[None]
        first = start[:, None] if isinstance(start, Tensor) else torch.full((batch, 1), start, device=device)
        document = torch.ones(batch, length, dtype=torch.int32, device=device)
        layout = cls(document, (first + steps)[..., None], causal=causal)
        layout._memo["simple"] = True
        return layout

    def to(self, device: torch.device | str) -> Layout:
        """The same layout on another device."""
        moved = {f.name: value.to(device) for f in dataclasses.fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return dataclasses.replace(self, **moved)

    def memo(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returns, computed once for this layout: plans, angles and the like, shared by all layers."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    @property
    def is_simple(self) -> bool:
        """Every row is one document without padding or exceptions to its order."""
        return self.memo("simple", self._find_simple)

    def _find_simple(self) -> bool:
        if not self.has_documents_alone:
            return False
        return bool((self.document == self.document[:, :1]).all()) and bool((self.document > 0).all())

    @property
    def has_documents_alone(self) -> bool:
        """Whether nothing but the borders of documents, and causality, decides which token may see which."""
        return self.mutual is None and self.branch is None and self.allowed is None and self.reach is None

    def require_left_to_right(self, who: str, *, or_whole: bool = False) -> None:
        """Raises RecipeError naming the mixer if a recurrence or a causal convolution cannot express this layout.

        or_whole: the mixer can read whole documents in no order as well, which is what causal: false asks for.
        """
        if not (self.causal or or_whole) or not self.has_documents_alone:
            parts = "a prefix or other bidirectional parts" if or_whole else "bidirectional parts (causal: false, a prefix)"
            order = " or whole documents" if or_whole else ""
            raise RecipeError(
                f"{who} reads from left to right{order}: it cannot serve a layout with {parts}, branches, windows by alignment or an "
                "allowed matrix. Use attention layers for such data, or a causal objective."
            )

    def axis(self, over: str, who: str) -> int:
        """Place of a named axis. Raises RecipeError naming the mixer that asks."""
        if over not in self.axes:
            raise RecipeError(f"{who} works over axis {over!r}, but the data's axes are {', '.join(self.axes)}.")
        return self.axes.index(over)

    def plan(self, over: str | None = None, *, causal: bool, who: str = "attention") -> Plan:
        """The sequences a mixer works on: documents, or with `over` the lines of tokens along one position axis. Computed once."""
        return self.memo(("plan", over, causal), lambda: self._make_plan(over, causal, who))

    def _make_plan(self, over: str | None, causal: bool, who: str) -> Plan:
        rows, length = self.document.shape
        document = self.document.flatten().long()
        row = torch.arange(rows, device=document.device).repeat_interleave(length)
        line = document + row * (int(document.max()) + 1)
        if over is not None:
            kept = [i for i in range(len(self.axes)) if i != self.axis(over, who)]
            for column in self.position.flatten(0, 1)[:, kept].unbind(1):  # numbered anew each time: products of positions overflow
                values, column = torch.unique(column, return_inverse=True)
                line = torch.unique(line * len(values) + column, return_inverse=True)[1]
        real = (document > 0).nonzero()[:, 0]
        _, line, sizes = torch.unique(line[real], return_inverse=True, return_counts=True)
        first = torch.full((len(sizes),), len(document), device=line.device).scatter_reduce(0, line, real, "amin")
        by_place = torch.argsort(first)  # lines in the order of their first token
        rank = torch.empty_like(by_place)
        rank[by_place] = torch.arange(len(by_place), device=line.device)
        line, sizes = rank[line], sizes[by_place]
        places = real[torch.argsort(line, stable=True)]
        starts = sizes.cumsum(0) - sizes
        buckets, order = [], []
        for size in torch.unique(sizes).tolist() or [1]:  # padding alone makes a bucket of no sequences
            members = starts[sizes == size]
            index = places[members[:, None] + torch.arange(size, device=line.device)]
            flat = index.flatten()
            together = len(flat) > 0 and bool((flat == torch.arange(len(flat), device=line.device) + flat[0]).all())
            buckets.append(Bucket(index, int(flat[0]) if together else None, self._visible(index, causal)))
            order.append(flat)
        joined = torch.cat(order)
        inverse = torch.full((len(document),), len(joined), device=line.device)
        inverse[joined] = torch.arange(len(joined), device=line.device)
        ordered = len(joined) == len(document) and bool((joined == torch.arange(len(joined), device=line.device)).all())
        return Plan(buckets, joined, inverse, ordered)

    def _visible(self, index_nl: Tensor, causal: bool) -> Tensor | None:
        """Visibility within sequences, as one matrix where all sequences have the same; None where `causal` says it all."""
        if self.has_documents_alone:
            return None
        n, size = index_nl.shape
        visible = torch.ones(n, size, size, dtype=torch.bool, device=index_nl.device)
        if causal:
            visible = visible.tril()
            if self.mutual is not None:
                mutual = self.mutual.flatten()[index_nl]
                visible = visible | ((mutual[:, :, None] == mutual[:, None]) & (mutual[:, None] > 0))
        if self.branch is not None:
            branch = self.branch.flatten()[index_nl]
            visible = visible & ((branch[:, None] == 0) | (branch[:, :, None] == branch[:, None]))
        if self.allowed is not None:
            length = self.document.shape[1]
            row, place = index_nl // length, index_nl % length
            visible = visible & self.allowed[row[:, :1, None], place[:, :, None], place[:, None]]
        if self.reach is not None and self.mark is not None:
            visible = visible & _reached(self.reach.flatten(0, 1)[index_nl], self.mark.flatten()[index_nl])
        if n > 1 and bool((visible == visible[:1]).all()):
            visible = visible[:1]
        if visible.shape[0] == 1:
            plain = torch.ones_like(visible).tril() if causal else torch.ones_like(visible)
            return None if bool((visible == plain).all()) else visible
        return visible

    def dense(self, *, causal: bool | None = None, window: int | None = None, over: str | None = None) -> Tensor:
        """bool [b, t, t]: the definition above written out, for tests and for looking at."""
        b, t = self.document.shape
        see = (self.document[:, :, None] == self.document[:, None]) & (self.document[:, None] > 0)
        if over is not None:
            axis = self.axis(over, "dense")
            for other in range(len(self.axes)):
                if other != axis:
                    see &= self.position[:, :, None, other] == self.position[:, None, :, other]
        order = torch.arange(t, device=see.device)
        place = (see & (order < order[:, None])).sum(-1)
        look_back = place[:, :, None] >= place[:, None]
        if self.causal if causal is None else causal:
            both = torch.zeros_like(see)
            if self.mutual is not None:
                both = (self.mutual[:, :, None] == self.mutual[:, None]) & (self.mutual[:, None] > 0)
            see &= look_back | both
        if self.branch is not None:
            see &= (self.branch[:, None] == 0) | (self.branch[:, :, None] == self.branch[:, None])
        if self.allowed is not None:
            see &= self.allowed
        if self.reach is not None and self.mark is not None:
            see &= _reached(self.reach, self.mark)
        if window is not None:
            see &= place[:, :, None] - place[:, None] < window
        return see

    def reached(self, length: int) -> Tensor | None:
        """bool [b, t, length]: which of the first tokens in a cache these tokens reach by their marks; None where that hides nothing."""
        if self.reach is None or self.cached_mark is None:
            return None
        reach, mark = self.reach, self.cached_mark[:, :length]
        return self.memo(("reached", length), lambda: _reached(reach, mark))


def _reached(reach_nt2: Tensor, mark_nl: Tensor) -> Tensor:
    """bool [n, t, l]: query t reaches key l."""
    first, last = reach_nt2[:, :, None].unbind(-1)
    mark = mark_nl[:, None]
    return (mark < 0) | ((first <= mark) & (mark <= last))
