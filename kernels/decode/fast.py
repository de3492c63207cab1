"""The one-call decoder: weights packed once, then one call into C++ a token, for a batch of sequences of different lengths.

precision "fp32": all in float32. "bf16": weights, activations and cache in bf16, sums in float32; the weights are stored in 12 bits, which
costs less than their rounding to bf16 (forms.h), or in 16 where a row's sizes differ too much for that. "int8": weights with one scale a
row, activations with one scale a token (of 16 bits in recurrent mixers, whose gated products have long tails), keys and values with one a
token and head, all symmetric; sums in int32. The residual stream and norms are float32 in all, and so is all that recurrent mixers keep and
compute between their products.
The equations are in reference.py; the tolerances in `TOLERANCE` are relative errors of the logits' norm against it, checked by
tests/kernels/test_decode.py. Speed: tests/bench/test_decode.py.

Axes: b sequences   t tokens   d width   v vocabulary rows
"""

from __future__ import annotations

import ctypes
import logging
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmlm.base.errors import DataError, NumericsError
from mmlm.kernels import dispatch, native
from mmlm.kernels.decode.spec import DecoderSpec, Unsupported

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "int8")
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 6e-2}

_OWN_MATRICES = ("head", "embedding", "positions")
_NORM = {"norm.weight": -2, "norm.bias": -1}
_KEYS_AND_VALUES = ("key", "value")  # states with an axis of tokens
_SIDES = ("mixer", "feed_forward")
_BF16_IN_16_BITS = 3
_ROOM_KEPT = 4  # a cache is made anew for less than this share of its room
_ROWS_AT_ONCE = 1 << 22  # floats converted at a time while packing
_P, _I = native.ADDRESS, native.SIZE
_FUNCTIONS: dict[str, list[Any]] = {
    "decoder_create": [_P, _P, _I, _P],
    "decoder_destroy": [_P],
    "decoder_set_rows": [_P, _I, _I, _I, _I, _I, _P],
    "decoder_set_bias": [_P, _I, _I, _I, _P, _I],
    "decoder_set_vector": [_P, _I, _I, _I, _P, _I],
    "decoder_ready": [_P],
    "decoder_misfits": [_P],
    "decoder_remake": [_P, _I, _I, _P],
    "decoder_room": [_P],
    "decoder_get_lengths": [_P, _P],
    "decoder_set_lengths": [_P, _P],
    "decoder_get_marks": [_P, _P, _I],
    "decoder_set_marks": [_P, _P, _I],
    "decoder_put_state": [_P, _I, _I, _P, _I],
    "decoder_get_state": [_P, _I, _I, _P, _I],
    "decoder_extend": [_P, _P, _P, _P, _P, _P, _P, _P, _I, _I, _P],
    "decoder_greedy": [_P, _P, _I, _P, _I, _P, _P, _P, _P],
}
_RETURNS = {
    "decoder_create": _P,
    "decoder_misfits": _I,
    "decoder_remake": _I,
    "decoder_room": _I,
    "decoder_extend": _I,
    "decoder_greedy": _I,
}
_LIBRARY = native.Library(Path(__file__).with_name("fast.cpp"), _FUNCTIONS, _RETURNS)


class Decoder:
    """A decoder with its cache. Not for use by two threads at once.

    weights: named and shaped as `DecoderSpec.shapes` and `.optional` say, any float dtype, on the CPU; they are copied.
    threads: default those of torch; more than one is used only where a token is more than about 0.2 ms of work.
    max_length: tokens a sequence has room for at first; the room doubles when it is full. batch: sequences at first.
    Raises Unsupported for what the decoder was not made for, native.Unavailable where nothing can be compiled.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[str, Tensor],
        precision: Precision = "bf16",
        threads: int | None = None,
        max_length: int = 256,
        batch: int = 1,
    ) -> None:
        spec.check()
        spec.check_weights(weights)
        if precision not in PRECISIONS:
            raise Unsupported(f"precision {precision!r}; known are {', '.join(PRECISIONS)}")
        if batch < 1 or max_length < 0 or (threads is not None and threads < 1):
            raise Unsupported(f"batch {batch}, max_length {max_length}, threads {threads}")
        self.spec, self.precision = spec, precision
        self._c = _LIBRARY()
        whole, real = spec.numbers(threads or torch.get_num_threads())
        self._numbers, self._form = (torch.tensor(whole), torch.tensor(real)), PRECISIONS.index(precision)
        self._make(weights)
        if misfits := self._c.decoder_misfits(self._handle):
            logger.info("%d rows have weights of too different sizes for 12 bits; bf16 weights take 16", misfits)
            self._finalizer()
            self._form = _BF16_IN_16_BITS
            self._make(weights)
        self._begin(batch, max_length)

    def twin(self, max_length: int = 256, batch: int = 1) -> Decoder:
        """Another decoder over the same packed weights, with a cache of its own; either may be used by a thread of its own, and outlive the
        other."""
        found = Decoder.__new__(Decoder)
        found.spec, found.precision, found._c, found._numbers, found._form = self.spec, self.precision, self._c, self._numbers, self._form
        found._create(self._handle)
        found._begin(batch, max_length)
        return found

    def _begin(self, batch: int, max_length: int) -> None:
        self._width_v, self._batch = math.ceil(self.spec.vocabulary / 16) * 16, 0
        self.reset(batch, max_length)

    def _create(self, twin: int | None = None) -> None:
        self._handle = self._c.decoder_create(self._numbers[0].data_ptr(), self._numbers[1].data_ptr(), self._form, twin)
        if not self._handle:
            raise Unsupported("memory is too short for the packed weights")
        self._finalizer = weakref.finalize(self, self._c.decoder_destroy, self._handle)

    def _make(self, weights: Mapping[str, Tensor]) -> None:
        self._create()
        for name, tensor in weights.items():
            self._load(name, tensor)
        self._c.decoder_ready(self._handle)

    def _load(self, name: str, tensor: Tensor) -> None:
        """Hand over one weight, in float32."""
        layer, side, short, matrices, vectors = -1, 0, name, list(_OWN_MATRICES), []
        if name.startswith("layers."):
            _, number, owner, short = name.split(".", 3)
            layer, side = int(number), _SIDES.index(owner)
            part = getattr(self.spec.layers[layer], owner)
            matrices, vectors = list(part.matrices(self.spec.width)), list(part.vectors(self.spec.width))
        matrix, _, kind = short.rpartition(".")
        if matrix in matrices and kind == "weight":
            index = 0 if short == "embedding.weight" and self.spec.tied else matrices.index(matrix)
            for first, rows in _blocks(tensor):
                self._c.decoder_set_rows(self._handle, layer, side, index, first, len(rows), rows.data_ptr())
            return
        vector = tensor.detach().float().contiguous()
        place = (vector.data_ptr(), vector.numel())
        if matrix in matrices:
            self._c.decoder_set_bias(self._handle, layer, side, matrices.index(matrix), *place)
        else:
            index = _NORM[short] if short in _NORM else vectors.index(short)
            self._c.decoder_set_vector(self._handle, layer, side, index, *place)

    @property
    def batch(self) -> int:
        """Sequences in the cache now."""
        return self._batch

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence in the cache."""
        found = (ctypes.c_int64 * self._batch)()
        self._c.decoder_get_lengths(self._handle, found)
        return list(found)

    @property
    def room(self) -> int:
        """Tokens that a sequence can have before the cache grows."""
        return int(self._c.decoder_room(self._handle))

    def reset(self, batch: int | None = None, max_length: int | None = None) -> None:
        """Forget all tokens. batch: sequences from now on, default as before. max_length: tokens a sequence has room for at least."""
        batch = self._batch if batch is None else batch
        if batch < 1:
            raise Unsupported(f"batch {batch}")
        fits = max_length is None or max_length <= self.room <= _ROOM_KEPT * max(max_length, 256)
        if batch != self._batch or not fits:
            self._answer(self._c.decoder_remake(self._handle, batch, self.room if max_length is None else max_length, None))
            self._resize(batch)
        else:
            self.crop([0] * batch)

    def _resize(self, batch: int) -> None:
        self._batch = batch
        self._logits = torch.zeros(batch, self._width_v)
        self.hidden = torch.zeros(batch, self.spec.width)
        self._ones = torch.ones(batch, dtype=torch.long)

    def load(self, states: Sequence[Mapping[str, Tensor] | None], lengths: Sequence[int] | Tensor, marks: Tensor | None = None) -> None:
        """Go on from states computed elsewhere: for each layer what its mixer keeps of lengths[i] tokens of each sequence.

        marks: long [b, t] of them, as in mmlm.layout; None: none has one.

        Named and shaped [b, ...] as `Part.states` says: keys (normed and turned) and values [b, g, t, k] of at least lengths[i] tokens,
        tails of convolutions, recurrent states.
        """
        counts = _longs(lengths)
        if len(counts) < 1 or int(counts.min()) < 0:
            raise DataError(f"lengths {counts.tolist()} must be one a sequence, from 0.")
        given = [self._checked(layer, states[layer] if layer < len(states) else None, counts) for layer in range(len(self.spec.layers))]
        self.reset(len(counts), max(self.room, int(counts.max())))
        self._c.decoder_set_lengths(self._handle, counts.data_ptr())
        if marks is not None:
            held = marks.long().contiguous()
            if held.shape[0] != len(counts) or held.shape[1] < int(counts.max()):
                raise DataError(f"marks {list(held.shape)} must be one for each of {counts.tolist()} tokens.")
            self._c.decoder_set_marks(self._handle, held.data_ptr(), held.shape[1])
        for layer, tensors in enumerate(given):
            for which, tensor in enumerate(tensors):
                self._c.decoder_put_state(self._handle, layer, which, tensor.data_ptr(), tensor.shape[2] if tensor.dim() > 2 else 0)

    def _checked(self, layer: int, tensors: Mapping[str, Tensor] | None, counts: Tensor) -> list[Tensor]:
        """The states of one layer in order, in float32. Raises Unsupported for others, DataError for too few tokens."""
        mixer = self.spec.layers[layer].mixer
        want = mixer.states() if mixer is not None else {}
        found = {name: list(tensor.shape) for name, tensor in (tensors or {}).items()}
        needed = {name: [len(counts), *shape] for name, shape in want.items()}
        tokens = {shape[2] for shape in found.values() if len(shape) == 4} if "key" in want else {0}
        if "key" in want and len(tokens) == 1:
            needed = {name: [shape[0], shape[1], *tokens, shape[3]] for name, shape in needed.items()}
        if found != needed:
            raise Unsupported(f"layer {layer}: states {found}, where {needed} are needed")
        if "key" in want and int(counts.max()) > max(tokens):
            raise DataError(f"lengths {counts.tolist()} must be from 0 to {max(tokens)}, the tokens given.")
        return [tensors[name].detach().float().contiguous() for name in want] if tensors else []

    @property
    def marks(self) -> Tensor | None:
        """Marks long [b, t] of all tokens, -1 for none and behind a sequence; None where no token has one."""
        held = torch.full((self._batch, max([1, *self.lengths])), -1)
        self._c.decoder_get_marks(self._handle, held.data_ptr(), held.shape[1])
        return held if bool((held >= 0).any()) else None

    def states(self) -> list[dict[str, Tensor] | None]:
        """What the mixers keep now, as `load` takes it: copies in float32, key and value tensors as long as the longest sequence."""
        longest = max([1, *self.lengths])
        found: list[dict[str, Tensor] | None] = []
        for layer, spec in enumerate(self.spec.layers):
            tensors: dict[str, Tensor] = {}
            for which, (name, shape) in enumerate(spec.mixer.states().items() if spec.mixer is not None else ()):
                if name in _KEYS_AND_VALUES:
                    shape = (shape[0], longest, shape[2])
                tensors[name] = torch.zeros(self._batch, *shape)
                self._c.decoder_get_state(self._handle, layer, which, tensors[name].data_ptr(), longest)
            found.append(tensors or None)
        return found

    def step(self, ids_b: Tensor | None, *, rows: tuple[int, int] | None = None, x_bd: Tensor | None = None) -> Tensor:
        """Logits float32 [b, v] after one more token a sequence: a view of a buffer that the next call writes over.

        rows: (first, last) of the vocabulary rows wanted, default all; the result is [b, last - first]. (0, 0) computes none.
        x_bd: vectors to read instead of the embedding's rows; ids_b is then None. `hidden` [b, d] holds the normed last states.
        """
        return self._extend(self._ones, ids_b, x_bd, rows)

    def extend(
        self,
        ids_bt: Tensor | None,
        lengths: Sequence[int] | Tensor | None = None,
        *,
        rows: tuple[int, int] | None = None,
        x_btd: Tensor | None = None,
        position_bt: Tensor | None = None,
        mark_bt: Tensor | None = None,
        reach_bt2: Tensor | None = None,
    ) -> Tensor:
        """As `step` for the first lengths[i] of t new tokens of each sequence (default all): logits after the last of them.

        A sequence of length 0 takes nothing in; its row of logits stays as it was. position_bt: what tokens are turned by, instead of
        their places. mark_bt, reach_bt2: as in mmlm.layout; marks are kept with the tokens. Raises Unsupported for a reach or marks where
        a layer is a recurrence.
        """
        given = ids_bt if x_btd is None else x_btd
        if given is None or given.dim() < 2:
            raise DataError("extend needs ids [b, t] or vectors [b, t, d].")
        b, t = given.shape[:2]
        counts = torch.full((b,), t) if lengths is None else _longs(lengths)
        if b != self._batch or len(counts) != b or (b and (int(counts.min()) < 0 or int(counts.max()) > t)):
            raise DataError(f"{b} rows of {t} tokens and lengths {counts.tolist()} do not fit {self._batch} sequences.")
        real = torch.arange(t) < counts[:, None]
        ids, x = (None if part is None else part[real] for part in (ids_bt, x_btd))
        given = [None if part is None else part[real].long().contiguous() for part in (position_bt, mark_bt, reach_bt2)]
        if any(part is not None for part in given[1:]) and self.spec.has_recurrence:
            raise Unsupported("a recurrence with tokens that only some see")
        return self._extend(counts, ids, x, rows, given)

    def _extend(
        self,
        counts: Tensor,
        ids: Tensor | None,
        x: Tensor | None,
        rows: tuple[int, int] | None,
        given: Sequence[Tensor | None] = (None, None, None),
    ) -> Tensor:
        first, last = (0, self.spec.vocabulary) if rows is None else rows
        if not 0 <= first <= last <= self.spec.vocabulary:
            raise DataError(f"vocabulary rows {first} to {last} are not within 0 to {self.spec.vocabulary}.")
        if (ids is None) == (x is None):
            raise DataError("give either ids or vectors.")
        total = int(counts.sum())
        if ids is not None:
            ids = self._ids(ids, total)
        if x is not None:
            if tuple(x.shape) != (total, self.spec.width):
                raise DataError(f"vectors {list(x.shape)} where [{total}, {self.spec.width}] is needed.")
            x = x.detach().float().contiguous()
        for name, part, size in zip(("positions", "marks", "reach"), given, ((total,), (total,), (total, 2)), strict=True):
            if part is not None and tuple(part.shape) != size:
                raise DataError(f"{name} {list(part.shape)} where {list(size)} is needed.")
        places = (counts.data_ptr(), *(None if part is None else part.data_ptr() for part in (ids, x, *given)))
        self._answer(self._c.decoder_extend(self._handle, *places, self._logits.data_ptr(), first, last, self.hidden.data_ptr()))
        return self._logits[:, first:last]

    def greedy(self, ids_b: Tensor, steps: int, stop_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The likeliest next token of each sequence, fed back up to `steps` times: long [b, at most steps], and float32 of the same
        shape, their log-probabilities, 0 after the end.

        A sequence ends with its first stop id and is -1 after it; the last token of a row is returned but not yet in the cache.
        Raises NumericsError for logits that are not finite.
        """
        ids = self._ids(ids_b, self._batch)
        stops = torch.tensor(list(stop_ids), dtype=torch.long)
        out, scores = torch.full((self._batch, max(steps, 0)), -1), torch.zeros(self._batch, max(steps, 0))
        buffers = (self._logits.data_ptr(), self.hidden.data_ptr(), out.data_ptr(), scores.data_ptr())
        done = self._answer(self._c.decoder_greedy(self._handle, ids.data_ptr(), steps, stops.data_ptr(), len(stops), *buffers))
        return out[:, :done], scores[:, :done]

    def select(self, index_b: Sequence[int] | Tensor) -> None:
        """Sequence i becomes what sequence index_b[i] was; an index may be repeated or left out (beams)."""
        index = _longs(index_b)
        if len(index) < 1 or int(index.min()) < 0 or int(index.max()) >= self._batch:
            raise DataError(f"select {index.tolist()} must name sequences from 0 to {self._batch - 1}.")
        self._answer(self._c.decoder_remake(self._handle, len(index), self.room, index.data_ptr()))
        logits, hidden = self._logits[index], self.hidden[index]
        self._resize(len(index))
        self._logits.copy_(logits)
        self.hidden.copy_(hidden)

    def crop(self, lengths: Sequence[int] | Tensor) -> None:
        """Forget the tokens of each sequence after its first lengths[i]. Raises Unsupported where a recurrence cannot: it forgets all or
        nothing."""
        counts, now = _longs(lengths), self.lengths
        if len(counts) != self._batch or any(not 0 <= new <= old for new, old in zip(counts.tolist(), now)):
            raise DataError(f"crop to {counts.tolist()}, where the sequences have {now} tokens.")
        if self.spec.has_recurrence and any(new not in (0, old) for new, old in zip(counts.tolist(), now)):
            raise Unsupported("a recurrent state cannot be cropped; keep its states() instead")
        self._c.decoder_set_lengths(self._handle, counts.data_ptr())

    def _ids(self, ids: Tensor, count: int) -> Tensor:
        if ids.dtype.is_floating_point or ids.dtype == torch.bool or tuple(ids.shape) != (count,):
            raise DataError(f"ids {ids.dtype} {list(ids.shape)} where whole numbers [{count}] are needed.")
        return ids.long().contiguous()

    def _answer(self, code: int) -> int:
        if code == -1:
            raise DataError(f"an id is not within 0 to {self.spec.vocabulary - 1}, the rows of the vocabulary.")
        if code == -2:
            raise DataError(f"a position is beyond the {self.spec.positions} learned positions of this model.")
        if code == -3:
            raise Unsupported("memory is too short for the cache")
        if code == -4:
            raise NumericsError("the logits are not finite.")
        return code


def _longs(values: Sequence[int] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.long, device="cpu").contiguous().view(-1)


def _blocks(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows in float32, a few at a time, with the number of the first."""
    rows = max(1, _ROWS_AT_ONCE // tensor.shape[1])
    for first in range(0, len(tensor), rows):
        yield first, tensor[first : first + rows].detach().float().contiguous()


def layers(backbone: Any, x_btd: Tensor, layout: Any, cache: Any) -> Any:
    """The step by the backbone's own layers, each through its own kernels: what serves where no decoder does."""
    return backbone(x_btd, layout, cache)


def _serves(*arguments: Any) -> str | None:
    return _LIBRARY.missing() or dispatch.pointers(*arguments)


dispatch.register("decode", "reference", layers)
dispatch.register("decode", "torch", layers)
dispatch.register("decode", "native", Decoder, _serves)
dispatch.absent("decode", "triton", "the decoder of one call a token is for the CPU; on a GPU the layers run, each through its own kernels")
