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
    """[b, n, d] -> [b, n, d]. block: called with [b, n, w] and a layout, gives the same shape first.   saved_as: the config by which a
    saved encoder builds it again.   is_causal: whether tokens see those before them alone; off, but for looking at what it would do."""

    def __init__(self, size: int, width: int, block: nn.Module, norm: nn.Module, saved_as: FrozenBlockConfig) -> None:
        super().__init__()
        self.saved_as, self.is_causal = saved_as, False
        self.inner = linear(size, width, "features", "residual", bias=False)
        self.outer = linear(width, size, "residual", "features", bias=False)
        self.block, self.norm = block.eval(), norm.eval()
        for parameter in (*block.parameters(), *norm.parameters()):
            parameter.requires_grad_(False)

    def forward(self, x_bnd: Tensor) -> Tensor:
        """Tokens after the block."""
        layout = Layout.plain(*x_bnd.shape[:2], causal=self.is_causal, device=x_bnd.device)
        found_bnw, *_ = self.block(self.inner(x_bnd), layout)
        return self.outer(self.norm(found_bnw))

    def train(self, mode: bool = True) -> FrozenBlock:
        """The frozen part drops nothing."""
        super().train(mode)
        self.block.eval()
        return self


def begin(block: FrozenBlock, seed: int | None = None) -> None:
    """First weights of the two matrices: both keep the size of what passes."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (block.inner, block.outer):
            layer.weight.normal_(std=layer.in_features**-0.5, generator=generator)
