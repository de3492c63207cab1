"""Which form of softmax attention serves: torch's fused one, or blocks of matrix products where these measured faster.

Forwards torch's fused form is the quickest on a CPU; its backward pass in bfloat16 is not (tests/bench/test_kernels.py), so `auto` takes
the blocks for training in bfloat16 and for soft caps, which the fused form does not know. Where scores are few, each product of the blocks
costs more than its arithmetic, and the fused form in float32 is the quickest of all.

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels import native
from mmlm.kernels.attention import installed
from mmlm.kernels.attention.blocks import Part, Rule, TorchPasses, attention_in_blocks
from mmlm.kernels.attention.reference import attention_reference, distance_bias, visible_pairs, within_documents
from mmlm.kernels.dispatch import GPU_FLOATS, asked, on_gpu, pointers, register, run
from mmlm.kernels.native import address, letters

FEW_SCORES = 1 << 17  # below, one fused call in float32 costs less than several products in bfloat16


def attention(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    slopes_h: Tensor | None = None,
    document_bt: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T scale) v [b, h, t, k] in the dtype given; heads h share the g key and value heads in order (h / g each).

    causal: a query sees the keys up to its own place, queries being the last t of the l tokens. window: it sees the last `window` of them.
    mask: bool [b or 1, h or 1, t, l], true where a key may be seen, besides both. scale: default 1 / sqrt(k). softcap: scores become
    cap * tanh(score / cap). slopes_h: slope * |distance| is taken from a head's scores (ALiBi). A query that sees no key gets zeros.
    document: [b, t] where t = l, 0 for padding: tokens of packed rows see those of their document. Distances are those of the rows.
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    heads, groups = q_bhtk.shape[1], k_bglk.shape[1]
    if heads % groups:
        raise RecipeError(f"attention: {heads} query heads cannot share {groups} key heads evenly.")
    if causal and q_bhtk.shape[2] > k_bglk.shape[2]:
        raise RecipeError(f"attention: {q_bhtk.shape[2]} causal queries need as many keys at least, but there are {k_bglk.shape[2]}.")
    b, t, length = q_bhtk.shape[0], q_bhtk.shape[2], k_bglk.shape[2]
    if document_bt is not None and (document_bt.shape != (b, t) or t != length):
        found = f"document is {list(document_bt.shape)}, with {b} rows of {t} queries and {length} keys"
        raise RecipeError(f"attention: {found}; it must be [rows, queries], and queries and keys the same tokens.")
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    if scale is None:
        scale = 1 / math.sqrt(q_bhtk.shape[-1])
    if backend == "auto":
        backend = asked("attention")
    arguments = (q_bhtk, k_bglk, v_bglk, mask, causal, window, scale, softcap, slopes_h, document_bt)
    if backend == "auto" and _torch_is_best(*arguments):
        backend = "torch"
    return run("attention", backend, *arguments)


def takes_documents(x: Tensor, head_size: int) -> bool:
    """Whether a back end would go through the documents of packed rows in one call: then they need not be sorted into rows of a length."""
    there = on_gpu(x, dtypes=GPU_FLOATS) is None and head_size <= 256
    return there and asked("attention") in ("auto", "flash-attn", "triton")


def attention_torch(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    slopes_h: Tensor | None = None,
    document_bt: Tensor | None = None,
) -> Tensor:
    """Blocks of products for soft caps and for training on short bfloat16 rows, else torch's fused form."""
    mask = within_documents(mask, document_bt)
    t, length = q_bhtk.shape[2], k_bglk.shape[2]
    if slopes_h is not None and softcap is not None:
        return attention_reference(q_bhtk, k_bglk, v_bglk, mask, causal, window, scale, softcap, slopes_h)
    trains, few = _trains_in_bfloat16(q_bhtk, k_bglk, v_bglk), _are_few(q_bhtk, k_bglk)
    if softcap is not None or (t <= 256 and trains and not few and slopes_h is None):
        return attention_in_blocks(TorchPasses(), q_bhtk, k_bglk, v_bglk, mask, causal, window, scale, softcap)
    simple = mask is None and window is None and slopes_h is None and (not causal or t == length)
    if not simple:
        pairs = visible_pairs(t, length, causal, window, q_bhtk.device)
        mask = pairs if mask is None else mask & pairs
    dtype = q_bhtk.dtype
    if trains and few:
        q_bhtk, k_bglk, v_bglk = q_bhtk.float(), k_bglk.float(), v_bglk.float()
    seen = mask
    if slopes_h is not None and mask is not None:
        bias = distance_bias(slopes_h.to(q_bhtk.dtype), t, length)
        mask = torch.where(mask, bias, -torch.inf)
    y = F.scaled_dot_product_attention(
        q_bhtk, k_bglk, v_bglk, mask, is_causal=causal and simple, scale=scale, enable_gqa=q_bhtk.shape[1] != k_bglk.shape[1]
    ).to(dtype)
    return y if seen is None else torch.where(seen.any(-1, keepdim=True), y, 0)


def _torch_is_best(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    slopes_h: Tensor | None,
    document_bt: Tensor | None,
) -> bool:
    """On a CPU: whether torch's form was measured faster than blocks. Elsewhere: whether its fused kernels know all that is asked for."""
    if q_bhtk.device.type == "cpu":
        blocks_pay = softcap is not None or (_trains_in_bfloat16(q_bhtk, k_bglk, v_bglk) and not _are_few(q_bhtk, k_bglk))
        return slopes_h is not None or not blocks_pay
    unknown = (mask, window, softcap, slopes_h, document_bt)
    return all(x is None for x in unknown) and (not causal or q_bhtk.shape[2] == k_bglk.shape[2])


def _trains_in_bfloat16(*qkv: Tensor) -> bool:
    """Whether a gradient is asked for, in bfloat16 on the CPU."""
    training = torch.is_grad_enabled() and any(x.requires_grad for x in qkv)
    return training and all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in qkv)


def _are_few(q_bhtk: Tensor, k_bglk: Tensor) -> bool:
    return q_bhtk.shape[:3].numel() * k_bglk.shape[2] < FEW_SCORES


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "heads", "queries", "keys", "first_query", "first_key", "causal", "window")),
        *((name, ctypes.c_int64) for name in ("mask_n", "mask_head", "mask_query")),
        ("scale", ctypes.c_float),
        ("cap", ctypes.c_float),
    ]


_KEPT = [native.ADDRESS, native.SIZE, native.SIZE, native.ADDRESS, ctypes.c_int]
_SOFTMAX, _DIFFERENTIATE = [native.ADDRESS, native.ADDRESS, *_KEPT], [native.ADDRESS, native.ADDRESS, native.ADDRESS, *_KEPT]
_library = native.Library(
    Path(__file__).parent / "fast.cpp",
    {"softmax_f": _SOFTMAX, "softmax_b": _SOFTMAX, "differentiate_f": _DIFFERENTIATE, "differentiate_b": _DIFFERENTIATE},
)


class NativePasses:
    """The elementwise work in C++, over the memory of its inputs."""

    fused = True

    def softmax(self, scores: Tensor, part: Part, rule: Rule, log_sum: Tensor) -> Tensor:
        """Probabilities and log denominators."""
        block, mask = _block(scores, part, rule)
        getattr(_library(), f"softmax_{letters(scores)}")(
            *(address(scores), address(mask), address(log_sum), log_sum.stride(0), log_sum.stride(1)),
            *(ctypes.addressof(block), native.threads(scores.numel() * 1e-9)),
        )
        return scores

    def slopes(self, scores: Tensor, slopes: Tensor, part: Part, rule: Rule, log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and the gradient of the raw scores."""
        block, mask = _block(scores, part, rule)
        getattr(_library(), f"differentiate_{letters(scores)}")(
            *(address(scores), address(slopes), address(mask), address(log_sum), log_sum.stride(0), log_sum.stride(1)),
            *(ctypes.addressof(block), native.threads(scores.numel() * 1e-9)),
        )
        return scores, slopes


def _block(scores: Tensor, part: Part, rule: Rule) -> tuple[_Block, Tensor | None]:
    mask = None if part.mask is None else part.mask.expand(scores.shape)
    if mask is not None and mask.stride(3) != 1:
        mask = mask.contiguous()
    strides = (0, 0, 0) if mask is None else mask.stride()[:3]
    first_query = part.queries.start + part.offset
    where = (first_query, part.keys.start, int(rule.causal), rule.window or 0)
    return _Block(*scores.shape, *where, *strides, rule.scale, rule.softcap or 0.0), mask


def _serves(*arguments: Any) -> str | None:
    if len({x.dtype for x in arguments[:3]}) > 1:
        return "queries, keys and values differ in dtype"
    if arguments and arguments[8] is not None:
        return "it knows no biases by distance"
    return pointers(*arguments) or _library.missing()


def _attention_native(q_bhtk: Tensor, k_bglk: Tensor, v_bglk: Tensor, mask: Tensor | None, *rest: Any) -> Tensor:
    *rule, _, document_bt = rest
    return attention_in_blocks(NativePasses(), q_bhtk, k_bglk, v_bglk, within_documents(mask, document_bt), *rule)


def attention_triton(*arguments: Any) -> Tensor:
    """Blocks as Triton programs; triton is imported at the first call."""
    from mmlm.kernels.attention import triton

    return triton.attention_triton(*arguments)


def _serves_triton(*arguments: Any) -> str | None:
    if arguments:
        q_bhtk, k_bglk, v_bglk, slopes_h = *arguments[:3], arguments[8]
        if len({x.dtype for x in (q_bhtk, k_bglk, v_bglk)}) > 1:
            return "queries, keys and values differ in dtype"
        if (channels := max(q_bhtk.shape[3], v_bglk.shape[3])) > 256:
            return f"heads of {channels} channels (it takes at most 256)"
        if slopes_h is not None and slopes_h.requires_grad:
            return "it gives no gradient for slopes"
    return on_gpu(*arguments, dtypes=GPU_FLOATS)


register("attention", "reference", attention_reference)
register("attention", "torch", attention_torch)
_REMARK = "for training in bfloat16 and for soft caps; elsewhere on a CPU torch measured faster"
register("attention", "native", _attention_native, _serves, remark=_REMARK)
register("attention", "triton", attention_triton, _serves_triton)
register("attention", "flash-attn", installed.attention_flash_attn, installed.serves)
