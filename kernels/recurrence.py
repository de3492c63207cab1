"""What the recurrences share: the loop of a reference, document borders in chunks, kinds of tokens, checks of shapes, registration.

Every recurrence tells its arguments once, as a named tuple; its back ends take that.

Axes: b rows   t tokens   c chunks   q, k tokens of a chunk
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.kernels import native
from mmlm.kernels.dispatch import FLOATS, Serves, always, on_gpu, pointers, register
from mmlm.kernels.documents import Documents

T = TypeVar("T")
MOST_KEY_CHANNELS = 256  # of what a Triton program holds at once


def exact_type(*tensors: Tensor) -> torch.dtype:
    """What a state is computed in: float32, or float64 where a tensor is."""
    found = torch.float32
    for tensor in tensors:
        found = torch.promote_types(found, tensor.dtype)
    return found


def in_rows(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """x in a dtype without gaps, for native code and Triton; None for None."""
    return None if x is None else x.to(dtype).contiguous()


def without_padding(known: Documents, *tensors: Tensor | None) -> list[Any]:
    """Tensors [b, t, ...] with zeros at padding, whatever stands there; None stays."""
    if known.plain:
        return list(tensors)
    return [None if x is None else torch.where(known.real.view(*known.real.shape, *[1] * (x.ndim - 2)), x, 0) for x in tensors]


def token_by_token(
    take: Callable[[int, Tensor], tuple[Tensor, Tensor]], state: Tensor, document_bt: Tensor, continues_b: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """The loop of a reference: outputs [b, ...] of every token, zero at padding, which changes nothing, and the state after the last.

    take(i, state): the state after token i and its output; the state it gets is zero where a document begins.
    """
    current = document_bt.new_zeros(len(document_bt))  # the document that the state belongs to; 0: none seen yet
    goes_on = torch.ones_like(current, dtype=torch.bool) if continues_b is None else continues_b.bool()
    outputs = []
    for i in range(document_bt.shape[1]):
        document = document_bt[:, i]
        real = document > 0
        kept = torch.where(current == 0, goes_on, document == current)
        new, y = take(i, torch.where(_beside(kept, state), state, 0))
        outputs.append(torch.where(_beside(real, y), y, 0))
        state = torch.where(_beside(real, state), new, state)
        current = torch.where(real, document, current)
    return outputs, state


def _beside(where_b: Tensor, x: Tensor) -> Tensor:
    return where_b.view(-1, *[1] * (x.ndim - 1))


class Borders(NamedTuple):
    """Document borders in chunks. visible [b, c, q, k]: k is not after q and in its document.   reached [b, c, q]: no document has begun
    since the chunk before ended.   in_last [b, c, q]: of the chunk's last document.   passes [b, c]: no document begins in the chunk."""

    visible: Tensor
    reached: Tensor
    in_last: Tensor
    passes: Tensor


def borders(known: Documents, continues_b: Tensor | None, size: int) -> Borders | None:
    """The borders in chunks of `size` tokens, the last one filled up; None where every row is one document that goes on from its state."""
    if known.plain and (continues_b is None or bool(continues_b.all())):
        return None
    segment = known.segment_after(continues_b)
    b, t = segment.shape
    short = -t % size
    segment = torch.cat([segment, segment[:, -1:].expand(b, short)], dim=1).view(b, -1, size)
    before = torch.cat([segment.new_zeros(b, 1), segment[:, :-1, -1]], dim=1)[..., None]  # the document of the carried state
    same = segment[..., :, None] == segment[..., None, :]
    return Borders(same.tril(), segment == before, segment == segment[..., -1:], segment[..., -1] == before[..., 0])


def kinds(known: Documents, continues_b: Tensor | None) -> Tensor:
    """int32 [b, t] without gaps: 0 padding, 1 inside a document, 2 its first token, which sees no state."""
    segment = known.segment_after(continues_b)
    before = torch.cat([segment.new_zeros(len(segment), 1), segment[:, :-1]], dim=1)
    return torch.where(known.real, 1 + (segment != before).int(), 0).int().contiguous()


def sums_to_the_end(change_btc: Tensor, exact_bcn: Tensor, segment_bt: Tensor, size: int) -> Tensor:
    """The gradient of log decays from what each token changes in it: sums from each token to its document's end, 0 for first tokens.

    exact: the whole sums at the borders of blocks of `size` tokens, so that they do not drift. c: channels, n: blocks + 1.
    """
    b, t, channels = change_btc.shape
    short = -t % size
    change = F.pad(change_btc, (0, 0, 0, short)).view(b, -1, size, channels)
    segment = torch.cat([segment_bt, segment_bt[:, -1:].expand(b, short)], dim=1).view(b, -1, size)
    later = (segment[..., :, None] == segment[..., None, :]).to(change.dtype).triu()
    onward = exact_bcn[..., 1:].transpose(1, 2)[:, :, None] * (segment == segment[..., -1:])[..., None]
    found = (later @ change + onward).flatten(1, 2)[:, :t]
    first = torch.cat([segment_bt[:, :1] > 0, segment_bt[:, 1:] != segment_bt[:, :-1]], dim=1)
    return found.masked_fill(first[..., None], 0)


def keys_on_gpu(*arguments: object) -> str | None:
    """When Triton serves recurrences that hold all channels of a key, their second argument, at once; see `dispatch.Serves`."""
    key = arguments[1] if arguments else None
    if isinstance(key, Tensor) and key.shape[-1] > MOST_KEY_CHANNELS:
        return f"keys of {key.shape[-1]} channels (it takes at most {MOST_KEY_CHANNELS})"
    return on_gpu(*arguments, dtypes=FLOATS)


def register_recurrence(
    op: str,
    inputs: Callable[..., T],
    *,
    reference: Callable[[T], tuple[Tensor, ...]],
    chunked: Callable[[T], tuple[Tensor, ...]],
    compiled: Callable[[T], tuple[Tensor, ...]],
    library: native.Library,
    triton: str | None = None,
    serves: Serves = on_gpu,
    package: tuple[str, Callable[[T], tuple[Tensor, ...]], Serves] | None = None,
) -> None:
    """Register the back ends of a recurrence, which take its arguments as `inputs`, a named tuple of them.

    library: that of the compiled form. triton: "module:function", imported at its first call, and when it serves.
    package: the name of one that computes it too, that form, and when it serves.
    """

    def add(backend: str, form: Callable[[T], tuple[Tensor, ...]], when: Serves = always) -> None:
        register(op, backend, lambda *arguments: form(inputs(*arguments)), when)

    add("reference", reference)
    add("torch", chunked)
    add("native", compiled, lambda *arguments: pointers(*arguments) or library.missing())
    if triton is not None:
        module, _, name = triton.partition(":")
        add("triton", lambda given: getattr(importlib.import_module(module), name)(given), serves)
    if package is not None:
        add(*package)
