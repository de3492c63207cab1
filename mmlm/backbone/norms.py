"""Norms of the residual stream and of heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.parameters import name_axes


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6, axis: str = "residual") -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.weight.no_weight_decay = True  # type: ignore[attr-defined]
        name_axes(self.weight, axis)

    def forward(self, x: Tensor) -> Tensor:
        """The normed vectors, in the dtype of x."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std * weight + bias over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__(width, eps)
        for parameter in (self.weight, self.bias):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]
            name_axes(parameter, "residual")


def norm(kind: str, width: int, eps: float) -> nn.Module:
    """The norm called `kind` in a recipe: rms or layer."""
    return RmsNorm(width, eps) if kind == "rms" else LayerNorm(width, eps)
