"""Which form of softmax attention serves: blocks in C++ on a CPU (native.py), else torch's fused form or blocks of its matrix products.

torch's backward pass in bfloat16 is slow on a CPU (tests/bench/test_kernels.py) and its fused form knows no soft caps: without the compiled
form, blocks serve these. Where scores are few, each product of such blocks costs more than its arithmetic, and the fused form in float32 is
the quickest.

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels   n tokens
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.base.errors import RecipeError
from mmlm.kernels.attention.blocks import attention_in_blocks
from mmlm.kernels.attention.native import attention_native, serves
from mmlm.kernels.attention.plan import Plan, reorder
from mmlm.kernels.attention.reference import Rule, attention_reference, distance_bias, visible_pairs
from mmlm.kernels.dispatch import register, run

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
    backend: str = "auto",
) -> Tensor:
    """softmax(q k^T scale) v [b, h, t, k] in the dtype given; heads h share the g key and value heads in order (h / g each).

    causal: a query sees the keys up to its own place, queries being the last t of the l tokens. window: it sees the last `window` of them,
    and the first `sinks` of all. mask: bool [b or 1, h or 1, t, l], true where a key may be seen, besides both. scale: default
    1 / sqrt(k). softcap: scores become cap * tanh(score / cap). slopes_h: slope * |distance| is taken from a head's scores (ALiBi). A query
    that sees no key gets zeros.
    Raises RecipeError where shapes do not fit or the back end asked for cannot serve.
    """
    rule = _rule(q_bhtk.shape[1], k_bglk.shape[1], causal, window, sinks, scale, softcap, q_bhtk.shape[-1])
    if causal and q_bhtk.shape[2] > k_bglk.shape[2]:
        raise RecipeError(f"attention: {q_bhtk.shape[2]} causal queries need as many keys at least, but there are {k_bglk.shape[2]}.")
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape)
    return run("attention", backend, (q_bhtk, k_bglk, v_bglk, mask, slopes_h), q_bhtk, k_bglk, v_bglk, mask, slopes_h, rule)


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

    causal: in sequences whose `visible` is None. The other arguments are those of `attention`.
    """
    rule = _rule(q_nhk.shape[1], k_ngk.shape[1], causal, window, sinks, scale, softcap, q_nhk.shape[-1])
    return run("packed_attention", backend, (q_nhk, k_ngk, v_ngk, slopes_h), q_nhk, k_ngk, v_ngk, plan, slopes_h, rule)


def _rule(
    heads: int, groups: int, causal: bool, window: int | None, sinks: int, scale: float | None, softcap: float | None, channels: int
) -> Rule:
    if heads % groups:
        raise RecipeError(f"attention: {heads} query heads cannot share {groups} key heads evenly.")
    return Rule(causal, window, sinks, 1 / math.sqrt(channels) if scale is None else scale, softcap)


def attention_torch(
    q_bhtk: Tensor, k_bglk: Tensor, v_bglk: Tensor, mask: Tensor | None, slopes_h: Tensor | None, rule: Rule
) -> Tensor:
    """Blocks of products for soft caps and for training on short bfloat16 rows, else torch's fused form."""
    t, length = q_bhtk.shape[2], k_bglk.shape[2]
    if slopes_h is not None and rule.softcap is not None:
        return attention_reference(q_bhtk, k_bglk, v_bglk, mask, slopes_h, rule)
    trains, few = _trains_in_bfloat16(q_bhtk, k_bglk, v_bglk), q_bhtk.shape[:3].numel() * length < FEW_SCORES
    if rule.softcap is not None or (t <= 256 and trains and not few and slopes_h is None):
        return attention_in_blocks(q_bhtk, k_bglk, v_bglk, mask, rule)
    simple = mask is None and rule.window is None and slopes_h is None and (not rule.causal or t == length)
    if not simple:
        pairs = visible_pairs(t, length, rule, q_bhtk.device)
        mask = pairs if mask is None else mask & pairs
    dtype = q_bhtk.dtype
    if trains and few:
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
        y = form(q, k, v, visible, slopes_h, rule if visible is None else rule._replace(causal=False))
        parts.append(y.transpose(1, 2).flatten(0, 1))
    y_nhk = torch.cat(parts) if parts else q_nhk.new_zeros(0, q_nhk.shape[1], v_ngk.shape[2])
    return y_nhk if plan.ordered else reorder(y_nhk, plan.inverse, plan.order)


def _packed_native(q_nhk: Tensor, k_ngk: Tensor, v_ngk: Tensor, plan: Plan, slopes_h: Tensor | None, rule: Rule) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_nhk, k_ngk, v_ngk))
    return attention_native(q, k, v, None, slopes_h, rule, plan)[0].transpose(0, 1)


register("attention", "reference", attention_reference)
register("attention", "torch", attention_torch)
register("attention", "native", attention_native, serves)
register("packed_attention", "reference", functools.partial(attention_in_buckets, attention_reference))
register("packed_attention", "torch", functools.partial(attention_in_buckets, attention_torch))
register("packed_attention", "native", _packed_native, serves)
