"""One cache for keys, values and recurrent states: an object passed to `generate`, whatever the layers are.

A `State` is what one mixer keeps: named tensors whose first axis is the batch, each with a role.
    kv          [b, heads, capacity, k]: filled up to `Cache.length`, grows by doubling
    recurrent   [b, ...], always of the same size: the state of a recurrence in float32, or the tokens of a block that is open
    conv        [b, channels, taps - 1]: the last inputs of a short convolution
The cache holds one document a row. Rows may have different lengths. Rows that go on from one prefix can share its keys and values, their
`trunk`, which is then neither copied nor read once a row. What a layout says of tokens that later ones need to know (their marks) is kept
beside the layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmlm.base.errors import CheckpointError
from mmlm.base.files import parse_json
from mmlm.layout import Layout
from mmlm.weights import check_digest, write_tensors

ROLES = ("kv", "recurrent", "conv")


@dataclass
class State:
    """Named tensors of one mixer. roles: {name: role}. length: long [b], tokens taken in so far, those of the trunk included.
    trunk: {name: [1, heads, n, k]}, keys and values of all rows that stand before those in `tensors`."""

    tensors: dict[str, Tensor]
    roles: dict[str, str]
    length: Tensor
    trunk: dict[str, Tensor] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> State:
        """The same state with every tensor (and the length) changed along the batch axis, which a trunk does not have."""
        return State({name: change(tensor) for name, tensor in self.tensors.items()}, self.roles, change(self.length), self.trunk)

    @property
    def trunk_size(self) -> int:
        """Tokens in the trunk."""
        return next((tensor.shape[2] for tensor in self.trunk.values()), 0)

    def fan_out(self, rows: Tensor) -> State:
        """Copies of the only row for each of `rows` (zeros [n]); keys and values become the trunk."""
        trunk, tensors = {}, {}
        for name, tensor in self.tensors.items():
            if self.roles[name] == "kv":
                trunk[name] = tensor[:, :, : int(self.length)]
                tensors[name] = tensor.new_zeros(len(rows), tensor.shape[1], 1, tensor.shape[3])
            else:
                tensors[name] = tensor.index_select(0, rows)
        return State(tensors, self.roles, self.length.index_select(0, rows), trunk)

    def whole(self) -> State:
        """The same without a trunk: every row has its own keys and values."""
        own = {name: tensor.expand(len(self.length), -1, -1, -1) for name, tensor in self.trunk.items()}
        tensors = {name: torch.cat([own[name], tensor], 2) if name in own else tensor for name, tensor in self.tensors.items()}
        return State(tensors, self.roles, self.length)

    def unshare(self) -> None:
        """The same in place."""
        self.tensors, self.trunk = self.whole().tensors, {}

    def room_for(self, tokens: int) -> None:
        """Grow the key and value tensors so that `tokens` more fit in every row."""
        need = (int(self.length.max()) - self.trunk_size if len(self.length) else 0) + tokens
        for name, role in self.roles.items():
            if role == "kv" and self.tensors[name].shape[2] < need:
                old = self.tensors[name]
                grown = old.new_zeros(*old.shape[:2], max(need, 2 * old.shape[2]), old.shape[3])
                grown[:, :, : old.shape[2]] = old
                self.tensors[name] = grown


@dataclass
class Cache:
    """The states of all layers of one model. layers: one State or None a layer. marks: long [b, at least the longest length], or None."""

    layers: list[State | None]
    length: Tensor
    marks: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Rows."""
        return len(self.length)

    def take_marks(self, layout: Layout) -> None:
        """Keep the marks of tokens that are about to be read."""
        if layout.mark is None and self.marks is None:
            return
        real = layout.document > 0
        b, t = real.shape
        need = int(self.length.max()) + t
        held = self.marks if self.marks is not None else self.length.new_full((b, need), -1)
        if held.shape[1] < need:
            held = torch.nn.functional.pad(held, (0, max(need, 2 * held.shape[1]) - held.shape[1]), value=-1)
        place = self.length[:, None] + torch.arange(t, device=held.device)
        rows = torch.arange(b, device=held.device)[:, None].expand(b, t)
        held[rows[real], place[real]] = layout.mark[real] if layout.mark is not None else -1
        self.marks = held

    def select(self, index: Tensor) -> Cache:
        """Rows `index` (long [n], repeats allowed): beams, copies of a prefix for several options."""
        return self._map(lambda tensor: tensor.index_select(0, index))

    def fan_out(self, count: int) -> Cache:
        """`count` rows that all go on from the only row of this cache and share its keys and values."""
        if self.batch_size != 1 or any(state.trunk for state in self.layers if state):
            raise CheckpointError(f"only a cache of one row without a trunk can fan out; this one has {self.batch_size}.")
        rows = torch.zeros(count, dtype=torch.long, device=self.length.device)
        marks = None if self.marks is None else self.marks.index_select(0, rows)
        return Cache([state.fan_out(rows) if state else None for state in self.layers], self.length.index_select(0, rows), marks)

    def whole(self) -> Cache:
        """The same cache without a trunk: every row has its own keys and values."""
        if not any(state.trunk for state in self.layers if state):
            return self
        return Cache([state.whole() if state else None for state in self.layers], self.length, self.marks)

    def reset(self, rows: Tensor) -> Cache:
        """A cache in which the rows where bool [b] `rows` is true are as new."""
        fresh = self.whole()._map(lambda tensor: tensor.masked_fill(rows.view(-1, *[1] * (tensor.ndim - 1)), 0))
        fresh.marks = None if self.marks is None else self.marks.masked_fill(rows[:, None], -1)
        return fresh

    def snapshot(self) -> Cache:
        """A copy that later steps do not change."""
        return self._map(torch.clone)

    def crop(self, length: Tensor) -> Cache:
        """Forget all tokens after `length` (long [b]); memory is shared with this cache, which must not go on itself.

        Raises CheckpointError where a recurrent state cannot (take a snapshot instead) and for a length that was never reached.
        """
        if any(role != "kv" for state in self.layers if state for role in state.roles.values()):
            raise CheckpointError("a recurrent state cannot be cropped; keep a snapshot() of the cache instead.")
        if bool((length > self.length).any()):
            held, wanted = (" and ".join(map(str, lengths.tolist())) for lengths in (self.length, length))
            raise CheckpointError(f"the cache holds {held} tokens, so it cannot be cropped to {wanted}.")
        layers = [State(dict(state.tensors), state.roles, length.clone()) if state else None for state in self.whole().layers]
        return Cache(layers, length.clone(), self.marks)

    def merge(self, other: Cache) -> Cache:
        """One cache with the rows of this one and then those of another."""
        layers = []
        for mine, theirs in zip(self.whole().layers, other.whole().layers, strict=True):
            layers.append(_join(mine, theirs) if mine is not None and theirs is not None else None)
        return Cache(layers, torch.cat([self.length, other.length]), _join_marks(self, other))

    def split(self, sizes: list[int]) -> list[Cache]:
        """Caches of the given numbers of rows, in order; together they are all rows. Raises CheckpointError where they are not."""
        if sum(sizes) != self.batch_size:
            raise CheckpointError(f"a cache of {self.batch_size} rows cannot be split into {sizes}.")
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return [self.select(torch.arange(end - size, end, device=self.length.device)) for size, end in zip(sizes, ends, strict=True)]

    def to(self, device: torch.device | str) -> Cache:
        """The same cache on another device."""
        return self.whole()._map(lambda tensor: tensor.to(device))

    def num_bytes(self) -> int:
        """Memory of all tensors."""
        states = [state for state in self.layers if state]
        return sum(t.numel() * t.element_size() for state in states for t in [*state.tensors.values(), *state.trunk.values()])

    def save(self, path: Path | str) -> None:
        """One safetensors file that `load` reads: a prefix worth keeping."""
        tensors = {"length": self.length} | ({} if self.marks is None else {"marks": self.marks.contiguous()})
        for index, state in enumerate(self.whole().layers):
            if state is not None:
                tensors |= {f"{index}.{name}": tensor.contiguous() for name, tensor in state.tensors.items()}
        roles = {str(index): state.roles for index, state in enumerate(self.layers) if state}
        write_tensors(Path(path), tensors, {"roles": json.dumps(roles), "layers": str(len(self.layers))})

    @classmethod
    def load(cls, path: Path | str) -> Cache:
        """The cache that `save` wrote. Raises CheckpointError for another file."""
        try:
            with safe_open(str(path), "pt") as file:
                about = file.metadata() or {}
                if "roles" not in about:
                    raise CheckpointError(f"{path}: not a saved cache.")
                roles, length = parse_json(about["roles"]), file.get_tensor("length")
                marks = file.get_tensor("marks") if "marks" in file.keys() else None  # noqa: SIM118, safetensors' own
                layers: list[State | None] = [None] * int(about["layers"])
                for index, names in roles.items():
                    tensors = {name: file.get_tensor(f"{index}.{name}") for name in names}
                    layers[int(index)] = State(tensors, names, length.clone())
            check_digest(Path(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a saved cache: {error}.") from None
        return cls(layers, length, marks)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Cache:
        layers = [state.map(change) if state else None for state in self.layers]
        return Cache(layers, change(self.length), None if self.marks is None else change(self.marks))


def _join_marks(mine: Cache, theirs: Cache) -> Tensor | None:
    if mine.marks is None and theirs.marks is None:
        return None
    given = [one.length.new_full((one.batch_size, 0), -1) if one.marks is None else one.marks for one in (mine, theirs)]
    size = max(marks.shape[1] for marks in given)
    return torch.cat([torch.nn.functional.pad(marks, (0, size - marks.shape[1]), value=-1) for marks in given])


def _join(mine: State, theirs: State) -> State:
    tensors = {}
    for name, left in mine.tensors.items():
        right = theirs.tensors[name]
        if mine.roles[name] == "kv" and left.shape[2] != right.shape[2]:
            size = max(left.shape[2], right.shape[2])
            left, right = (torch.nn.functional.pad(side, (0, 0, 0, size - side.shape[2])) for side in (left, right))
        tensors[name] = torch.cat([left, right])
    return State(tensors, mine.roles, torch.cat([mine.length, theirs.length]))
