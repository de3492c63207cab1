"""The Mamba-2 recurrence by the package mamba-ssm, where it is installed.

Checked against its documented arguments: x, dt, A, B, C are x, step, decay, key, query with the same axes; `seq_idx` numbers documents,
and the carried state belongs to number 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmlm.kernels.dispatch import installed
from mmlm.kernels.documents import documents
from mmlm.kernels.ssd.reference import Ssd

_CHUNK = 256  # as its own layers have it


def ssd_mamba_ssm(given: Ssd) -> tuple[Tensor, Tensor]:
    """At padding the step is zero, which leaves the state as it is."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    x_bthp, step_bth, decay_h, key_btgn, query_btgn, document_bt, state_bhpn, continues_b, _ = given
    known, dtype = documents(document_bt), x_bthp.dtype
    step, number = step_bth.float(), None
    if not known.plain:
        step = torch.where(known.real[..., None], step, 0)
    if not (known.plain and (continues_b is None or bool(continues_b.all()))):
        number = known.segment_after(continues_b).int()
    y, last = mamba_chunk_scan_combined(
        x_bthp,
        step,
        decay_h.float(),
        key_btgn.to(dtype),
        query_btgn.to(dtype),
        chunk_size=_CHUNK,
        initial_states=None if state_bhpn is None else state_bhpn.float(),
        seq_idx=number,
        return_final_states=True,
    )
    return y if known.plain else torch.where(known.real[..., None, None], y, 0), last.float()


def serves(*arguments: Any) -> str | None:
    """Why mamba-ssm cannot serve, or None."""
    if arguments and arguments[0].dtype == torch.float32:
        return "float32 (its products shorten it to TF32)"
    reason = installed("mamba-ssm", *arguments, dtypes=(torch.float32, torch.bfloat16, torch.float16))
    if reason is None and arguments and arguments[0].numel() * arguments[3].shape[3] == 0:
        return "there are no tokens"
    return reason
