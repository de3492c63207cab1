"""The output of a convolution mixer: GELU, dropout, and a linear map gated by another one (GLU)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.dropout import dropout
from mmlm.parameters import linear


class GatedOutput(nn.Module):
    """a * sigmoid(b) with [a, b] = W dropout(gelu(y))."""

    def __init__(self, width: int, axis: str, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.out = linear(width, 2 * width, axis, "residual", bias=True)
        self.out.is_residual_output = True

    def forward(self, y_btd: Tensor) -> Tensor:
        """[b, t, d] -> [b, t, d]."""
        return F.glu(self.out(dropout(F.gelu(y_btd), self.dropout, self.training)), dim=-1)
