"""Dropout whose random bits cost little: on a CPU torch draws one number for every value, here sixteen bits of one serve each of four."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16  # of a chance


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """x with a share p of its values set to 0 and the others divided by 1 - p, in training; p is rounded to 1/65536 on a CPU."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    count = x.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
    dropped = round(p * LEVELS)
    kept = bits.view(torch.int16)[:count].view(x.shape) >= dropped - LEVELS // 2
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))
