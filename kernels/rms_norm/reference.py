"""RMSNorm as its equation reads. Source: arXiv:1910.07467, eq. 4."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sum / sqrt(mean(sum^2) + eps) * weight with sum = x + residual, and the sum."""
    total = x if residual is None else x + residual
    s = total.to(torch.promote_types(total.dtype, torch.float32))
    y = s / torch.sqrt(s.square().mean(-1, keepdim=True) + eps) * weight.to(s.dtype)
    return y.to(dtype), total
