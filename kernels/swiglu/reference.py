"""SwiGLU as its equation reads. Source: arXiv:2002.05202, eq. 5."""

from __future__ import annotations

import torch
from torch import Tensor


def swiglu_reference(x: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up, the gate being the first half of the last axis."""
    gate, up = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(x.dtype)
