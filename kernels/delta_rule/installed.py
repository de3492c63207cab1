"""The delta rule by the package flash-linear-attention, where it is installed.

Checked against its documented arguments: q, k, v, beta with the axes used here, g the logarithm of decay; its scale, 1 / sqrt(k) by
default, is told to be 1; documents lie one after the other in one row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.kernels.delta_rule.reference import DeltaRule
from mmlm.kernels.dispatch import installed
from mmlm.kernels.documents import documents


def delta_rule_fla(given: DeltaRule) -> tuple[Tensor, Tensor]:
    """Heads that share query and key get copies of them, which every version of the package takes."""
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    query_btgk, key_btgk, value_bthv, beta_bth, decay_bth, document_bt, state_bhkv, continues_b, _ = given
    (b, _, heads, v), k, dtype = value_bthv.shape, key_btgk.shape[3], value_bthv.dtype
    query, key = (x.to(dtype).repeat_interleave(heads // x.shape[2], dim=2) for x in (query_btgk, key_btgk))
    tensors = [query, key, value_bthv, *([] if decay_bth is None else [decay_bth.float()]), beta_bth.to(dtype)]
    function = chunk_delta_rule if decay_bth is None else chunk_gated_delta_rule
    known = documents(document_bt)
    state = None if state_bhkv is None else state_bhkv.float()
    if known.plain and (continues_b is None or bool(continues_b.all())):
        y, last = function(*tensors, scale=1.0, initial_state=state, output_final_state=True)
        return y, last.float()
    state = value_bthv.new_zeros(b, heads, k, v, dtype=torch.float32) if state is None else state
    place, _, length, row = known.runs
    y = value_bthv.new_zeros(document_bt.numel(), heads, v)
    if len(place):
        first, last_of_row = (F.pad(row[1:] != row[:-1], side, value=True) for side in ((1, 0), (0, 1)))
        goes_on = first & continues_b[row] if continues_b is not None else torch.zeros_like(first)
        begins = torch.where(goes_on[:, None, None, None], state[row], 0)
        joined = [x.flatten(0, 1)[place][None] for x in tensors]
        borders = F.pad(length.cumsum(0), (1, 0))
        found, ends = function(*joined, scale=1.0, initial_state=begins, output_final_state=True, cu_seqlens=borders)
        y = y.index_copy(0, place, found[0])
        state = state.index_copy(0, row[last_of_row], ends[last_of_row].float())
    return y.unflatten(0, document_bt.shape), state


def serves(*arguments: Any) -> str | None:
    """Why flash-linear-attention cannot serve, or None."""
    if arguments and arguments[2].dtype == torch.float32:
        return "float32 (it takes bfloat16 and float16)"
    reason = installed("flash-linear-attention", *arguments, dtypes=(torch.float32, torch.bfloat16, torch.float16))
    if reason is not None or not arguments:
        return reason
    if (channels := arguments[1].shape[3]) > 256:
        return f"keys of {channels} channels (it takes at most 256)"
    return "there are no tokens" if arguments[2].numel() == 0 else None
