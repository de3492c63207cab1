"""The language-model loss from hidden states and output rows, without full logits.

    z = x weight^T + bias;  loss = log sum_v exp z_v - z_target
with label smoothing, z-loss (PaLM, arXiv:2204.02311) and soft cap (Gemma 2, arXiv:2408.00118).
Tokens without weight and rows that are not allowed are never computed. Under autocast the products are taken in its dtype, everything
else in float32.

Axes: n tokens   d width   v vocabulary rows
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mmlm.base.errors import DataError, RecipeError
from mmlm.kernels import native
from mmlm.kernels.cross_entropy.reference import logit_terms_reference
from mmlm.kernels.cross_entropy.tiles import Found, Grads, Running, TorchPasses, logit_terms
from mmlm.kernels.dispatch import FLOATS, GPU_FLOATS, check_shapes, on_gpu, pointers, register, run
from mmlm.kernels.native import address, letters

Rows: TypeAlias = range | slice | Tensor


class LossTerms(NamedTuple):
    """Of each token, in float32 and differentiable but for `best`: cross-entropy, log partition, logit of the target, entropy of the
    prediction in nats, id of the best allowed row."""

    loss: Tensor
    log_partition: Tensor
    target_logit: Tensor
    entropy: Tensor
    best: Tensor


def linear_cross_entropy(
    x_nd: Tensor,
    weight_vd: Tensor,
    target_n: Tensor,
    weight_n: Tensor | None = None,
    *,
    bias_v: Tensor | None = None,
    rows: Rows | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    product_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Sum over tokens of weight * (cross-entropy + z_loss * log_partition^2), a float32 scalar (float64 for float64 inputs).

    target: ids of vocabulary rows. weight_n: default one; tokens of weight zero cost nothing. rows: the allowed rows, as a range, a slice
    or ids (increasing); default all. product_dtype: of the matrix products; default that of autocast where it is on, else that of x.
    Raises DataError if a target is not among the allowed rows, RecipeError where shapes do not fit.
    """
    if weight_n is not None:
        wanted = {"weight": (weight_n, x_nd.shape[:1]), "targets": (target_n, x_nd.shape[:1])}
        check_shapes("linear_cross_entropy", f"x {list(x_nd.shape)}", wanted)
        used = weight_n != 0
        if not bool(used.all()):
            at = used.nonzero()[:, 0]
            x_nd, target_n, weight_n = x_nd[at], target_n[at], weight_n[at]
    terms = _terms(x_nd, weight_vd, target_n, bias_v, rows, softcap, label_smoothing, product_dtype, backend, label_smoothing != 0)
    loss = terms.loss
    if z_loss:
        loss = loss + z_loss * terms.log_partition.square()
    return (loss if weight_n is None else loss * weight_n.to(loss.dtype)).sum()


def linear_cross_entropy_terms(
    x_nd: Tensor,
    weight_vd: Tensor,
    target_n: Tensor,
    *,
    bias_v: Tensor | None = None,
    rows: Rows | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    product_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> LossTerms:
    """The terms of every token; arguments as for `linear_cross_entropy`."""
    return _terms(x_nd, weight_vd, target_n, bias_v, rows, softcap, label_smoothing, product_dtype, backend, True)


def _terms(
    x_nd: Tensor,
    weight_vd: Tensor,
    target_n: Tensor,
    bias_v: Tensor | None,
    rows: Rows | None,
    softcap: float | None,
    label_smoothing: float,
    product_dtype: torch.dtype | None,
    backend: str,
    more: bool,
) -> LossTerms:
    if softcap is not None and softcap <= 0:
        raise RecipeError(f"linear_cross_entropy: softcap must be above 0, but is {softcap}.")
    if x_nd.ndim != 2 or weight_vd.ndim != 2:
        found = f"{list(x_nd.shape)} and {list(weight_vd.shape)}"
        raise RecipeError(f"linear_cross_entropy: x and the output matrix have 2 axes, but are {found}.")
    wanted = {
        "the output matrix": (weight_vd, (len(weight_vd), x_nd.shape[1])),
        "targets": (target_n, (len(x_nd),)),
        "bias": (bias_v, (len(weight_vd),)),
    }
    check_shapes("linear_cross_entropy", f"x {list(x_nd.shape)} and {len(weight_vd)} output rows", wanted)
    target_n = target_n.long()
    weight_vd, bias_v, place_n, run_of_rows, ids = _allowed(weight_vd, bias_v, target_n, rows)
    if product_dtype is None:
        device = x_nd.device.type
        product_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_nd.dtype
        if x_nd.dtype == torch.float64:
            product_dtype = torch.float64
    arguments = (x_nd, weight_vd, place_n, bias_v, run_of_rows, softcap, product_dtype, more)
    partition, target, mean, entropy, best = run("linear_cross_entropy", backend, *arguments)
    chosen = target if not label_smoothing else (1 - label_smoothing) * target + label_smoothing * mean
    return LossTerms(partition - chosen, partition, target, entropy, best + run_of_rows.start if ids is None else ids[best])


def _allowed(
    weight_vd: Tensor, bias_v: Tensor | None, target_n: Tensor, rows: Rows | None
) -> tuple[Tensor, Tensor | None, Tensor, range, Tensor | None]:
    """Output rows and bias, place of each target among the allowed rows, their run, and their ids where they are no run of all rows."""
    if rows is None or isinstance(rows, slice):
        rows = range(*(rows or slice(None)).indices(len(weight_vd)))
    if not isinstance(rows, range):
        ids_r = torch.as_tensor(rows, device=target_n.device)
        if not len(ids_r) or bool((ids_r.diff() <= 0).any()):
            raise RecipeError("linear_cross_entropy: rows must be increasing vocabulary ids, at least one.")
        first, last = int(ids_r[0]), int(ids_r[-1])
        _within(first, last, len(weight_vd))
        if len(ids_r) <= last - first:
            place = torch.searchsorted(ids_r, target_n).clamp(max=len(ids_r) - 1)
            _refuse(target_n, ids_r[place] != target_n, f"one of the {len(ids_r)} allowed rows")
            return weight_vd[ids_r], None if bias_v is None else bias_v[ids_r], place, range(len(ids_r)), ids_r
        rows = range(first, last + 1)
    if rows.step != 1:
        raise RecipeError(f"linear_cross_entropy: rows must be a range of step 1, but is {rows}.")
    _within(rows.start, rows.stop - 1, len(weight_vd))
    place = target_n - rows.start
    _refuse(target_n, (place < 0) | (place >= len(rows)), f"within {rows.start} to {rows.stop - 1}")
    return weight_vd, bias_v, place, rows, None


def _within(first: int, last: int, rows: int) -> None:
    if not 0 <= first <= last < rows:
        raise RecipeError(f"linear_cross_entropy: rows go from {first} to {last}, but the output matrix holds 0 to {rows - 1}.")


def _refuse(target_n: Tensor, wrong_n: Tensor, allowed: str) -> None:
    if bool(wrong_n.any()):
        at = int(wrong_n.nonzero()[0])
        raise DataError(f"linear_cross_entropy: target {int(target_n[at])} of token {at} is not {allowed}.")


class NativePasses:
    """The elementwise work in C++: two looks at a tile in the forward pass, one in the backward pass, which writes over it."""

    def gather(self, z_nr: Tensor, first: int, running: Running) -> None:
        """Take a tile's raw logits into the running terms."""
        getattr(_library(), f"gather_{letters(z_nr)}")(
            *(address(z_nr), *z_nr.shape, first, address(running.wanted), running.softcap or 0.0),
            *(address(running.kept), address(running.best), int(running.more), native.threads(z_nr.numel() * 5e-10)),
        )

    def differentiate(self, z_nr: Tensor, first: int, rows: int, found: Found, grads: Grads) -> Tensor:
        """The gradient of a tile's raw logits, in their memory."""
        packed = z_nr.new_zeros(4, len(z_nr), dtype=torch.float32)
        for row, grad in zip(packed, grads):
            if grad is not None:
                row.copy_(grad)
        packed[2] /= rows
        more = grads.mean is not None or grads.entropy is not None or found.softcap is not None
        getattr(_library(), f"differentiate_{letters(z_nr)}")(
            *(address(z_nr), *z_nr.shape, first, address(found.target), found.softcap or 0.0),
            *(address(found.log_partition), address(found.entropy), address(packed), int(more), native.threads(z_nr.numel() * 5e-10)),
        )
        return z_nr


_TILE = [native.ADDRESS, native.SIZE, native.SIZE, native.SIZE, native.ADDRESS, native.REAL]
_GATHER = [*_TILE, native.ADDRESS, native.ADDRESS, ctypes.c_int, ctypes.c_int]
_DIFFERENTIATE = [*_TILE, native.ADDRESS, native.ADDRESS, native.ADDRESS, ctypes.c_int, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(gather=_GATHER, differentiate=_DIFFERENTIATE))


def logit_terms_triton(*arguments: Any) -> tuple[Tensor, ...]:
    """Tiles of products with the elementwise work as Triton programs; triton is imported at the first call."""
    from mmlm.kernels.cross_entropy.triton import TritonPasses

    return logit_terms(TritonPasses(), *arguments)


def _serves_triton(*arguments: Any) -> str | None:
    return _odd_products(GPU_FLOATS, *arguments) or on_gpu(*arguments, dtypes=GPU_FLOATS)


def _serves(*arguments: Any) -> str | None:
    return _odd_products(FLOATS, *arguments) or pointers(*arguments) or _library.missing()


def _odd_products(dtypes: tuple[torch.dtype, ...], *arguments: Any) -> str | None:
    """Why logits that come out of the matrix products cannot be read, or None."""
    return f"products in {str(arguments[6]).removeprefix('torch.')}" if arguments and arguments[6] not in dtypes else None


register("linear_cross_entropy", "reference", logit_terms_reference)
register("linear_cross_entropy", "torch", functools.partial(logit_terms, TorchPasses()))
register("linear_cross_entropy", "native", functools.partial(logit_terms, NativePasses()), _serves)
register("linear_cross_entropy", "triton", logit_terms_triton, _serves_triton)
