"""Attention by the package flash-attn 2, where it is installed.

Checked against its documented arguments: tokens before heads; the last query stands at the last key; a window counts the keys on both
sides, the query's own not among them; slopes and cap as here.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.kernels.attention.reference import Rule, no_fused_form
from mmlm.kernels.dispatch import installed
from mmlm.kernels.documents import documents


def attention_flash_attn(
    q_bhtk: Tensor,
    k_bglk: Tensor,
    v_bglk: Tensor,
    mask: Tensor | None,
    slopes_h: Tensor | None,
    rule: Rule,
    document_bt: Tensor | None = None,
) -> Tensor:
    """One call for rows, or for all documents of packed rows, one after the other."""
    import flash_attn

    options: dict[str, Any] = {"softmax_scale": rule.scale, "causal": rule.causal}
    options["deterministic"] = torch.are_deterministic_algorithms_enabled()
    if rule.window is not None:
        options["window_size"] = (rule.window - 1, 0 if rule.causal else -1)
    if rule.softcap is not None:
        options["softcap"] = rule.softcap
    if slopes_h is not None:
        options["alibi_slopes"] = slopes_h.float()
    q, k, v = (x.transpose(1, 2) for x in (q_bhtk, k_bglk, v_bglk))
    if document_bt is None:
        return flash_attn.flash_attn_func(q, k, v, **options).transpose(1, 2)
    place, _, length, _ = documents(document_bt).runs
    y = q.new_zeros(document_bt.numel(), *q.shape[2:])
    if len(place):
        borders, longest = F.pad(length.cumsum(0), (1, 0)).int(), int(length.max())
        tokens = (x.flatten(0, 1)[place] for x in (q, k, v))
        found = flash_attn.flash_attn_varlen_func(*tokens, borders, borders, longest, longest, **options)
        y = y.index_copy(0, place, found)
    return y.unflatten(0, document_bt.shape).transpose(1, 2)


def serves(*arguments: Any) -> str | None:
    """Why flash-attn cannot serve, or None."""
    reason = installed("flash-attn", *arguments, dtypes=(torch.bfloat16, torch.float16), least_capability=(8, 0))
    if reason is not None or not arguments:
        return reason
    if reason := no_fused_form(*arguments):
        return reason
    q, k, v, mask, slopes, rule, document = arguments
    if len(channels := {q.shape[3], v.shape[3]}) > 1 or max(channels) > 256:
        return f"heads of {q.shape[3]} and {v.shape[3]} channels (it takes equal ones, at most 256)"
    if mask is not None:
        return "it takes no mask"
    if rule.window is not None and rule.sinks:
        return "it knows no sinks"
    if q.numel() * k.numel() == 0:
        return "there are no tokens"
    if rule.softcap is not None:
        import flash_attn

        if "softcap" not in inspect.signature(flash_attn.flash_attn_func).parameters:
            return "this version knows no soft cap"
    if document is not None and (rule.window is not None or slopes is not None) and not documents(document).padded_at_end:
        return "padding between tokens would change their distances"
    return None
