"""A block of a pretrained decoder as the last layer of an encoder of pictures.

    tokens -> matrix to the decoder's width -> block and final norm of the decoder, frozen -> matrix back

The block sees all tokens of a picture at once, without causal mask and without positions; gradients pass through it to what is before.
Source: arXiv:2310.12973.

Axes: b pictures   n tokens   d numbers of the encoder   w width of the decoder
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlm.encoders.config import FrozenBlockConfig
from mmlm.layout import Layout
from mmlm.parameters import linear


class FrozenBlock(nn.Module):
    """[b, n, d] -> [b, n, d]. block: a decoder of this block and the final norm, called with [b, n, w] and a layout; its first result is
    of the same shape.   saved_as: the config by which a saved encoder builds it again.   is_causal: whether tokens see those before them
    alone; off, but for looking at what that would do."""

    def __init__(self, size: int, width: int, block: nn.Module, saved_as: FrozenBlockConfig) -> None:
        super().__init__()
        self.saved_as, self.is_causal = saved_as, False
        self.inner = linear(size, width, "features", "residual", bias=False)
        self.outer = linear(width, size, "residual", "features", bias=False)
        self.block = block.eval().requires_grad_(False)
        self._begin()

    def forward(self, x_bnd: Tensor) -> Tensor:
        """Tokens after the block."""
        layout = Layout.plain(*x_bnd.shape[:2], causal=self.is_causal, device=x_bnd.device)
        found_bnw, _ = self.block(self.inner(x_bnd), layout)
        return self.outer(found_bnw)

    def train(self, mode: bool = True) -> FrozenBlock:
        """The frozen part drops nothing."""
        super().train(mode)
        self.block.eval()
        return self

    @torch.no_grad()
    def _begin(self) -> None:
        """First weights of the two matrices: both keep the size of what passes."""
        for layer in (self.inner, self.outer):
            layer.weight.normal_(std=layer.in_features**-0.5)
