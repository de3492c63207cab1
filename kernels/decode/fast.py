"""The one-call decoder: weights packed once, then one call into C++ a token, for a batch of sequences of different lengths.

precision "fp32": all in float32. "bf16": weights, activations and cache in bf16, sums in float32; the weights are stored in 12 bits, which
costs less than their rounding to bf16 (forms.h), or in 16 where a row's sizes differ too much for that. "int8": weights with one scale a
row, activations with one scale a token, keys and values with one a token and head, all symmetric; sums in int32. The residual stream and
norms are float32 in all.
The equations are in reference.py; the tolerances in `TOLERANCE` are relative errors of the logits' norm against it, checked by
tests/kernels/test_decode.py. Speed: tests/bench/test_decode.py.

Axes: b sequences   t tokens   d width   g key heads   k channels of a head   l layers   v vocabulary rows
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
from mmlm.kernels.decode.spec import ACTIVATIONS, DecoderSpec, Unsupported

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS: tuple[str, ...] = ("fp32", "bf16", "int8")
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 6e-2}

_MATRICES = ["qkv.weight", "out.weight", "up.weight", "down.weight", "head.weight", "embedding.weight", "positions.weight"]
_VECTORS = [f"{name}.{part}" for name in ("norm1", "norm2") for part in ("weight", "bias")]
_VECTORS += ["q_norm.weight", "k_norm.weight", "qkv.bias", "out.bias", "up.bias", "down.bias", "norm.weight", "norm.bias", "head.bias"]
_BF16_IN_16_BITS = 3
_ROWS_AT_ONCE = 1 << 22  # floats converted at a time while packing
_P, _I = native.ADDRESS, native.SIZE
_FUNCTIONS: dict[str, list[Any]] = {
    "decoder_create": [_P, _P, _P, _P, _I],
    "decoder_destroy": [_P],
    "decoder_set_rows": [_P, _I, _I, _I, _I, _P],
    "decoder_set_vector": [_P, _I, _I, _P, _I],
    "decoder_misfits": [_P],
    "decoder_remake": [_P, _I, _I, _P],
    "decoder_room": [_P],
    "decoder_get_lengths": [_P, _P],
    "decoder_set_lengths": [_P, _P],
    "decoder_fill": [_P, _I, _P, _P, _I, _P],
    "decoder_extend": [_P, _P, _P, _P, _P, _I, _I, _P],
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
        rope = torch.zeros(0) if spec.rope is None else spec.rope.detach().float().contiguous()
        sizes = torch.tensor(
            [spec.vocabulary, spec.width, spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_size, spec.hidden, spec.gated]
            + [ACTIVATIONS.index(spec.activation), spec.norm == "layer", spec.parallel, spec.qk_norm, spec.positions, spec.tied]
            + [len(rope), threads or torch.get_num_threads()]
        )
        scales = [spec.score_scale, spec.embedding_scale, spec.logit_scale, spec.rope_scale]
        reals = torch.tensor([spec.norm_eps, spec.qk_norm_eps, *scales], dtype=torch.float32)
        windows = torch.tensor(spec.windows)
        arrays = (sizes.data_ptr(), reals.data_ptr(), windows.data_ptr(), rope.data_ptr())
        self._make(arrays, PRECISIONS.index(precision), weights)
        if misfits := self._c.decoder_misfits(self._handle):
            logger.info("%d rows have weights of too different sizes for 12 bits; bf16 weights take 16", misfits)
            self._finalizer()
            self._make(arrays, _BF16_IN_16_BITS, weights)
        self._width_v = math.ceil(spec.vocabulary / 16) * 16
        self.reset(batch, max_length)

    def _make(self, arrays: tuple[int, ...], form: int, weights: Mapping[str, Tensor]) -> None:
        self._handle = self._c.decoder_create(*arrays, form)
        if not self._handle:
            raise Unsupported("memory is too short for the packed weights")
        self._finalizer = weakref.finalize(self, self._c.decoder_destroy, self._handle)
        self._load(weights)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in weights.items():
            layer, short = (int(name.split(".")[1]), name.split(".", 2)[2]) if name.startswith("layers.") else (-1, name)
            if short in _MATRICES:
                target = _MATRICES.index("head.weight" if short == "embedding.weight" and self.spec.tied else short)
                for first, part in _blocks(tensor):
                    self._c.decoder_set_rows(self._handle, layer, target, first, len(part), part.data_ptr())
            else:
                vector = tensor.detach().float().contiguous()
                self._c.decoder_set_vector(self._handle, layer, _VECTORS.index(short), vector.data_ptr(), len(vector))

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
        """Forget all tokens. batch: sequences from now on, default as before."""
        batch = self._batch if batch is None else batch
        if batch < 1:
            raise Unsupported(f"batch {batch}")
        if max_length is not None or batch != self._batch:
            self._answer(self._c.decoder_remake(self._handle, batch, self.room if max_length is None else max_length, None))
            self._resize(batch)
        else:
            self.crop([0] * batch)

    def _resize(self, batch: int) -> None:
        self._batch = batch
        self._logits = torch.zeros(batch, self._width_v)
        self.hidden = torch.zeros(batch, self.spec.width)
        self._ones = torch.ones(batch, dtype=torch.long)

    def prefill(self, k: Tensor, v: Tensor, lengths: Sequence[int] | Tensor) -> None:
        """Start from keys (normed and turned) and values [l, b, g, t, k] computed elsewhere; row i has lengths[i] <= t tokens."""
        spec, counts = self.spec, _longs(lengths)
        want = (spec.num_layers, len(counts), spec.num_kv_heads, k.shape[3] if k.dim() == 5 else -1, spec.head_size)
        if tuple(k.shape) != want or v.shape != k.shape:
            raise Unsupported(f"keys {list(k.shape)} and values {list(v.shape)}, where {list(want)} is needed")
        if len(counts) < 1 or int(counts.min()) < 0 or int(counts.max()) > want[3]:
            raise DataError(f"lengths {counts.tolist()} must be from 0 to {want[3]}, the tokens given.")
        self.reset(len(counts), max(self.room, int(counts.max())))
        for layer in range(spec.num_layers):
            keys, values = (x[layer].detach().float().contiguous() for x in (k, v))
            self._c.decoder_fill(self._handle, layer, keys.data_ptr(), values.data_ptr(), want[3], counts.data_ptr())
        self._c.decoder_set_lengths(self._handle, counts.data_ptr())

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
    ) -> Tensor:
        """As `step` for the first lengths[i] of t new tokens of each sequence (default all): logits after the last of them.

        A sequence of length 0 takes nothing in; its row of logits stays as it was.
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
        return self._extend(counts, ids, x, rows)

    def _extend(self, counts: Tensor, ids: Tensor | None, x: Tensor | None, rows: tuple[int, int] | None) -> Tensor:
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
        places = (counts.data_ptr(), None if ids is None else ids.data_ptr(), None if x is None else x.data_ptr())
        self._answer(self._c.decoder_extend(self._handle, *places, self._logits.data_ptr(), first, last, self.hidden.data_ptr()))
        return self._logits[:, first:last]

    def greedy(self, ids_b: Tensor, steps: int, stop_ids: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """The likeliest next token of each sequence, fed back up to `steps` times: long [b, at most steps], and the sums float32 [b] of
        their log-probabilities.

        A sequence ends with its first stop id and is -1 after it; the last token of a row is returned but not yet in the cache.
        Raises NumericsError for logits that are not finite.
        """
        ids = self._ids(ids_b, self._batch)
        stops = torch.tensor(list(stop_ids), dtype=torch.long)
        out, scores = torch.full((self._batch, max(steps, 0)), -1), torch.zeros(self._batch)
        buffers = (self._logits.data_ptr(), self.hidden.data_ptr(), out.data_ptr(), scores.data_ptr())
        done = self._answer(self._c.decoder_greedy(self._handle, ids.data_ptr(), steps, stops.data_ptr(), len(stops), *buffers))
        return out[:, :done], scores

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
        """Forget the tokens of each sequence after its first lengths[i]."""
        counts, now = _longs(lengths), self.lengths
        if len(counts) != self._batch or any(not 0 <= new <= old for new, old in zip(counts.tolist(), now)):
            raise DataError(f"crop to {counts.tolist()}, where the sequences have {now} tokens.")
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
