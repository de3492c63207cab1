"""Which form of softmax attention serves: blocks in C++ on a CPU (native.py), on a GPU torch's fused kernels for what they know and
programs of Triton for the rest, everywhere else torch's fused form or blocks of its matrix products.

torch's backward pass in bfloat16 is slow on a CPU (tests/bench/test_kernels.py) and its fused form knows no soft caps: without the compiled
form, blocks serve these. Where scores are few, each product of such blocks costs more than its arithmetic, and the fused form in float32 is
the quickest.

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels   n tokens
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels.attention import installed, native
from mmlm.kernels.attention.blocks import attention_in_blocks
from mmlm.kernels.attention.plan import Plan, reorder
from mmlm.kernels.attention.reference import Rule, attention_reference, distance_bias, no_fused_form, visible_pairs, within_documents
from mmlm.kernels.dispatch import GPU_FLOATS, KERNELS, absent, asked, check_shapes, on_gpu, register, run

FEW_SCORES = 1 << 17  # below, one fused call in float32 costs less than several products in bfloat16


def attention(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,
    window: int | None = None,
    sinks: int = 0,
    scale: float | None = None,
    softcap: float | None = None,
    slopes_h: Tensor | None = None,
    document_bt: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T scale) v [b, h, t, k] in the dtype given; heads h share the g key and value heads in order (h / g each).

    causal: a query sees the keys up to its own place, queries being the last t of the l tokens. window: it sees the last `window` of them,
    and the first `sinks` of all. mask: bool [b or 1, h or 1, t, l], true where a key may be seen, besides both. scale: default
    1 / sqrt(k). softcap: scores become cap * tanh(score / cap). slopes_h: slope * |distance| is taken from a head's scores (ALiBi). A query
    that sees no key gets zeros. document: [b, t] where t = l, 0 for padding: tokens of packed rows see those of their document. Distances
    and sinks are those of the rows.
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    if not q_bhtk.ndim == k_bglk.ndim == v_bglk.ndim == 4:
        found = ", ".join(str(list(x.shape)) for x in (q_bhtk, k_bglk, v_bglk))
        raise RecipeError(f"attention: queries, keys and values have 4 axes, but are {found}.")
    rule = _rule(q_bhtk.shape[1], k_bglk.shape[1], causal, window, sinks, scale, softcap, q_bhtk.shape[-1])
    if causal and q_bhtk.shape[2] > k_bglk.shape[2]:
        raise RecipeError(f"attention: {q_bhtk.shape[2]} causal queries need as many keys at least, but there are {k_bglk.shape[2]}.")
    (b, heads, t, channels), (groups, length) = q_bhtk.shape, k_bglk.shape[1:3]
    wanted = {"keys": (k_bglk, (b, groups, length, channels)), "slopes": (slopes_h, (heads,))}
    check_shapes("attention", f"queries {list(q_bhtk.shape)}", wanted)
    check_shapes("attention", f"keys {list(k_bglk.shape)}", {"values": (v_bglk, (b, groups, length, v_bglk.shape[-1]))})
    if document_bt is not None and (document_bt.shape != (b, t) or t != length):
        found = f"document is {list(document_bt.shape)}, with {b} rows of {t} queries and {length} keys"
        raise RecipeError(f"attention: {found}; it must be [rows, queries], and queries and keys the same tokens.")
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
        if any(size not in (1, whole) for size, whole in zip(mask.shape, (b, heads, t, length), strict=True)):
            raise RecipeError(f"attention: mask must be {[b, heads, t, length]} or 1 in places, but is {list(mask.shape)}.")
    return _dispatched(backend, q_bhtk, k_bglk, v_bglk, mask, slopes_h, rule.among(length), document_bt)


def packed_attention(
    q_nhk: Tensor,
    k_ngk: Tensor,
    v_ngk: Tensor,
    plan: Plan,
    *,
    causal: bool,
    window: int | None = None,
    sinks: int = 0,
    scale: float | None = None,
    softcap: float | None = None,
    slopes_h: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention within each of the plan's sequences of tokens [n, h, k], zeros for tokens in none.

    causal: in sequences whose `visible` is None. The other arguments are those of `attention`, whose back ends for a GPU take the sequences
    of a length at a time. Raises RecipeError as `attention` does.
    """
    n, heads, channels = q_nhk.shape
    shapes = {
        "the plan": (plan.inverse, (n,)),
        "keys": (k_ngk, (n, k_ngk.shape[1], channels)),
        "values": (v_ngk, (n, k_ngk.shape[1], v_ngk.shape[-1])),
        "slopes": (slopes_h, (heads,)),
    }
    check_shapes("packed_attention", f"queries {list(q_nhk.shape)}", shapes)
    rule = _rule(q_nhk.shape[1], k_ngk.shape[1], causal, window, sinks, scale, softcap, q_nhk.shape[-1])
    if backend == "auto":  # what is asked of attention holds here too, where nothing else is
        backend = asked("packed_attention")
        backend = asked("attention") if backend == "auto" else backend
        only_there = KERNELS["attention"].keys() - KERNELS["packed_attention"]
        if backend in only_there or (backend == "auto" and q_nhk.device.type != "cpu"):
            return attention_in_buckets(functools.partial(_dispatched, backend), q_nhk, k_ngk, v_ngk, plan, slopes_h, rule)
    return run("packed_attention", backend, q_nhk, k_ngk, v_ngk, plan, slopes_h, rule)


def takes_documents(x: Tensor, head_size: int) -> bool:
    """Whether a back end would go through the documents of packed rows in one call: then they need not be sorted into rows of a length."""
    there = on_gpu(x, dtypes=GPU_FLOATS) is None and head_size * x.element_size() <= MOST_HEAD_BYTES
    return there and asked("attention") in ("auto", "flash-attn", "triton")


def _dispatched(
    backend: str,
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    slopes_h: Tensor | None,
    rule: Rule,
    document_bt: Tensor | None = None,
) -> Tensor:
    if backend == "auto":
        backend = asked("attention")
    if backend == "auto" and q_bhtk.device.type != "cpu":  # torch's fused kernels, for what they know
        unknown = (mask, slopes_h, rule.window, rule.softcap, document_bt)
        if all(x is None for x in unknown) and (not rule.causal or q_bhtk.shape[2] == k_bglk.shape[2]):
            backend = "torch"
    return run("attention", backend, q_bhtk, k_bglk, v_bglk, mask, slopes_h, rule, document_bt)


def _rule(
    heads: int, groups: int, causal: bool, window: int | None, sinks: int, scale: float | None, softcap: float | None, channels: int
) -> Rule:
    if not groups or heads % groups:
        raise RecipeError(f"attention: {heads} query heads cannot share {groups} key heads evenly.")
    return Rule(causal, window, sinks, 1 / math.sqrt(channels) if scale is None else scale, softcap)


def attention_torch(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    slopes_h: Tensor | None,
    rule: Rule,
    document_bt: Tensor | None = None,
) -> Tensor:
    """Blocks of products for soft caps and for training on short bfloat16 rows, else torch's fused form."""
    mask = within_documents(mask, document_bt)
    t, length = q_bhtk.shape[2], k_bglk.shape[2]
    if slopes_h is not None and rule.softcap is not None:
        return attention_reference(q_bhtk, k_bglk, v_bglk, mask, slopes_h, rule)
    trains = _trains_in_bfloat16(q_bhtk, k_bglk, v_bglk)
    few = trains and q_bhtk.shape[:3].numel() * length < FEW_SCORES
    if rule.softcap is not None or (trains and t <= 256 and not few and slopes_h is None):
        return attention_in_blocks(q_bhtk, k_bglk, v_bglk, mask, rule)
    simple = mask is None and rule.window is None and slopes_h is None and (not rule.causal or bool(t == length))
    if not simple:
        pairs = visible_pairs(t, length, rule, q_bhtk.device)
        mask = pairs if mask is None else mask & pairs
    dtype = q_bhtk.dtype
    if few:
        q_bhtk, k_bglk, v_bglk = q_bhtk.float(), k_bglk.float(), v_bglk.float()
    seen = mask
    if slopes_h is not None and mask is not None:
        bias = distance_bias(slopes_h.to(q_bhtk.dtype), t, length)
        mask = torch.where(mask, bias, -torch.inf)
    y = F.scaled_dot_product_attention(
        q_bhtk, k_bglk, v_bglk, mask, is_causal=rule.causal and simple, scale=rule.scale, enable_gqa=q_bhtk.shape[1] != k_bglk.shape[1]
    ).to(dtype)
    return y if seen is None else torch.where(seen.any(-1, keepdim=True), y, 0)


def _trains_in_bfloat16(*qkv: Tensor) -> bool:
    """Whether a gradient is asked for, in bfloat16 on the CPU."""
    training = torch.is_grad_enabled() and any(x.requires_grad for x in qkv)
    return training and all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in qkv)


def attention_in_buckets(
    form: Callable[..., Tensor], q_nhk: Tensor, k_ngk: Tensor, v_ngk: Tensor, plan: Plan, slopes_h: Tensor | None, rule: Rule
) -> Tensor:
    """The sequences of equal length at a time, by the given form of attention."""
    sizes = [bucket.index.numel() for bucket in plan.buckets]  # split: the gradient of a slice would be as long as the whole
    ordered = [x if plan.ordered else reorder(x, plan.order, plan.inverse) for x in (q_nhk, k_ngk, v_ngk)]
    parts = []
    for bucket, *qkv in zip(plan.buckets, *(x.split(sizes) for x in ordered), strict=True):
        q, k, v = (x.unflatten(0, bucket.index.shape).transpose(1, 2) for x in qkv)
        visible = None if bucket.visible is None else bucket.visible[:, None]
        of_bucket = (rule if visible is None else rule._replace(causal=False)).among(bucket.index.shape[1])
        y = form(q, k, v, visible, slopes_h, of_bucket)
        parts.append(y.transpose(1, 2).flatten(0, 1))
    y_nhk = torch.cat(parts)
    return y_nhk if plan.ordered else reorder(y_nhk, plan.inverse, plan.order)


def attention_triton(*arguments: Any) -> Tensor:
    """Blocks as Triton programs; triton is imported at the first call."""
    from mmlm.kernels.attention import triton

    return triton.attention_triton(*arguments)


MOST_HEAD_BYTES = 512  # of the Triton form: blocks of queries, keys and values lie in the shared memory of every GPU from Ampere on


def _serves_triton(*arguments: Any) -> str | None:
    if arguments:
        dtype, most = arguments[0].dtype, MOST_HEAD_BYTES // arguments[0].element_size()
        if (channels := max(arguments[0].shape[3], arguments[2].shape[3])) > most:
            return f"heads of {channels} channels (of {str(dtype).removeprefix('torch.')} it takes at most {most})"
    return no_fused_form(*arguments) or on_gpu(*arguments, dtypes=GPU_FLOATS)


register("attention", "reference", attention_reference)
register("attention", "torch", attention_torch)
register("attention", "native", native.attention_native, native.serves)
register("attention", "triton", attention_triton, _serves_triton)
register("attention", "flash-attn", installed.attention_flash_attn, installed.serves)
register("packed_attention", "reference", functools.partial(attention_in_buckets, attention_reference))
register("packed_attention", "torch", functools.partial(attention_in_buckets, attention_torch))
register("packed_attention", "native", native.packed_attention_native, native.serves)
_WHY = "on a GPU packed rows go to attention with their documents, and sequences with masks of their own to attention by their lengths"
absent("packed_attention", "triton", _WHY)
