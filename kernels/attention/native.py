"""Attention by fast.cpp: any strides read and sequences of any lengths in one call, results laid as [b, t, h, k].

Axes: b rows   h query heads   g key and value heads   t queries   l keys   k channels
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlm.kernels import native
from mmlm.kernels.attention.plan import Plan
from mmlm.kernels.attention.reference import Rule, no_fused_form, within_documents
from mmlm.kernels.dispatch import pointers
from mmlm.kernels.native import address, letters

TILES = True  # multiply by AMX where the machine has it


class _Heads(ctypes.Structure):
    _fields_ = [("data", native.ADDRESS), *((name, native.SIZE) for name in ("row", "token", "head"))]


class _Problem(ctypes.Structure):
    _fields_ = [
        *((name, _Heads) for name in ("q", "k", "v", "y", "dy", "dq", "dk", "dv")),
        *((name, native.ADDRESS) for name in ("sequences", "order", "mask", "slopes", "log_sum")),
        *((name, native.SIZE) for name in ("count", "heads", "groups", "channels", "values", "queries", "keys")),
        *((name, native.SIZE) for name in ("mask_row", "mask_head", "mask_key", "causal", "window", "sinks", "tiles")),
        ("scale", native.REAL),
        ("cap", native.REAL),
    ]


_RUN = [native.ADDRESS, ctypes.c_int]
_library = native.Library(Path(__file__).parent / "fast.cpp", native.for_each_type(forward=_RUN, backward=_RUN))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, slopes_h: Tensor | None, rule: Rule, plan: Plan | None
    ) -> Tensor:
        q, k, v = (_gapless(x) for x in (q, k, v))
        y = _like(q, v.shape[-1], plan)
        log_sum = torch.empty(q.shape[:3], dtype=torch.float32)
        if mask is not None:  # the queries of a key side by side
            mask = mask.expand(*mask.shape[:2], q.shape[2], k.shape[2]).mT.contiguous()
        _call("forward", rule, plan, mask, slopes_h, log_sum, q=q, k=k, v=v, y=y)
        ctx.save_for_backward(q, k, v, y, log_sum, mask, slopes_h)
        ctx.rule, ctx.plan = rule, plan
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        q, k, v, y, log_sum, mask, slopes_h = ctx.saved_tensors
        dq, dk, dv = (_like(x, x.shape[-1], ctx.plan) for x in (q, k, v))
        _call("backward", ctx.rule, ctx.plan, mask, slopes_h, log_sum, q=q, k=k, v=v, y=y, dy=_gapless(dy), dq=dq, dk=dk, dv=dv)
        return dq, dk, dv, None, None, None, None


def _gapless(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _like(x_bhtk: Tensor, channels: int, plan: Plan | None) -> Tensor:
    """Memory [b, h, t, channels] that lies as [b, t, h, channels], so that the projections beside attention take it without a copy; zeros
    where the plan leaves tokens out."""
    b, h, t, _ = x_bhtk.shape
    make = x_bhtk.new_empty if plan is None or len(plan.order) == t else x_bhtk.new_zeros
    return make(b, t, h, channels).transpose(1, 2)


def _call(
    way: str, rule: Rule, plan: Plan | None, mask: Tensor | None, slopes_h: Tensor | None, log_sum: Tensor, **operands: Tensor
) -> None:
    (count, heads, queries, channels), (_, groups, keys, values) = operands["q"].shape, operands["v"].shape
    problem = _Problem(
        **{name: _Heads(address(x), x.stride(0), x.stride(2), x.stride(1)) for name, x in operands.items()},
        slopes=address(slopes_h), log_sum=address(log_sum), count=count, heads=heads, groups=groups, channels=channels, values=values,
        queries=queries, keys=keys, causal=rule.causal, window=rule.window or 0, sinks=rule.sinks, tiles=TILES, scale=rule.scale,
        cap=rule.softcap or 0.0,
    )  # fmt: skip
    pairs = count * queries * keys
    if plan is not None:
        table, mask = plan.table
        problem.count, problem.sequences, problem.order = len(table), address(table), None if plan.ordered else address(plan.order)
        pairs = plan.pairs
    elif mask is not None:
        problem.mask_row, problem.mask_head = (mask.stride(i) if mask.shape[i] > 1 else 0 for i in (0, 1))
        problem.mask_key = mask.stride(2)
    problem.mask = address(mask)
    seconds = heads * pairs * (channels + values) * (1e-11 if letters(log_sum, operands["q"]) == "fb" else 4e-11)
    getattr(_library(), f"{way}_{letters(operands['q'])}")(ctypes.addressof(problem), native.threads(seconds))


def attention_native(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    slopes_h: Tensor | None,
    rule: Rule,
    document_bt: Tensor | None = None,
) -> Tensor:
    """Blocks in C++: AMX tiles for bfloat16 where there are any, else vectors of pairs of it (AVX512-BF16), vectors of floats elsewhere."""
    return _Attention.apply(q_bhtk, k_bglk, v_bglk, within_documents(mask, document_bt), _floats(slopes_h), rule, None)


def packed_attention_native(q_nhk: Tensor, k_ngk: Tensor, v_ngk: Tensor, plan: Plan, slopes_h: Tensor | None, rule: Rule) -> Tensor:
    """The same within all sequences of a plan, whose tokens are a single row, in one call."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_nhk, k_ngk, v_ngk))
    return _Attention.apply(q, k, v, None, _floats(slopes_h), rule, plan)[0].transpose(0, 1)


def _floats(slopes_h: Tensor | None) -> Tensor | None:
    return None if slopes_h is None else slopes_h.float().contiguous()


def serves(*arguments: Any) -> str | None:
    """Why the arguments of either operation cannot be had here, or None."""
    return no_fused_form(*arguments) or pointers(*arguments) or _library.missing()
