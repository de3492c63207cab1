"""Norms of the residual stream and of heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlm.kernels.rms_norm.fast import add_rms_norm, rms_norm
from mmlm.parameters import name_axes


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (RMSNorm, arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6, axis: str = "residual") -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.weight.no_weight_decay = True  # type: ignore[attr-defined]
        name_axes(self.weight, axis)

    def forward(self, x: Tensor) -> Tensor:
        """The normed vectors, in the dtype that the next product will read."""
        return rms_norm(x, self.weight, self.eps, dtype=_read_as(x))

    def after(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """norm(x + y), and x + y."""
        return add_rms_norm(y, x, self.weight, self.eps, dtype=_read_as(x))


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std * weight + bias over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__(width, eps)
        for parameter in (self.weight, self.bias):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]
            name_axes(parameter, "residual")

    def after(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """norm(x + y), and x + y."""
        x = x + y
        return self(x), x


def _read_as(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def norm(kind: str, width: int, eps: float) -> RmsNorm | LayerNorm:
    """The norm called `kind` in a recipe: rms or layer."""
    return RmsNorm(width, eps) if kind == "rms" else LayerNorm(width, eps)
