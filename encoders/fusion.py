"""Layers of a text tower that look at a picture, for training alone: gated cross-attention before each, closed at first.

    x <- x + tanh(gate) attention(norm(x), norm(stage))        stage: of the picture tower, as far up in it as the layer is in its own

Source: Flamingo's gate, arXiv:2204.14198, section 2.2; fusion at every stage of LightCLIP, arXiv:2312.00674, details chosen here.

Axes: b samples   t tokens   g patches   w width of the text tower   v width of a stage
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Fusion(nn.Module):
    """widths: of the stages of the picture tower.   num_layers: of the text tower, of which the last num_stages look."""

    def __init__(self, width: int, num_layers: int, widths: Sequence[int], num_stages: int, num_heads: int) -> None:
        super().__init__()
        self.first = num_layers - num_stages
        self.stage_of = [-(-(layer + 1) * len(widths) // num_layers) - 1 for layer in range(num_layers)]
        self.looks = nn.ModuleList(GatedLook(width, widths[self.stage_of[layer]], num_heads) for layer in range(self.first, num_layers))

    def forward(self, layer: int, x_btw: Tensor, stages: Sequence[Tensor]) -> Tensor:
        """What a layer of the text tower reads instead of x_btw."""
        if layer < self.first:
            return x_btw
        found: Tensor = self.looks[layer - self.first](x_btw, stages[self.stage_of[layer]])
        return found


class GatedLook(nn.Module):
    """One of them."""

    def __init__(self, width: int, seen_width: int, num_heads: int) -> None:
        super().__init__()
        self.norm, self.seen_norm = nn.LayerNorm(width), nn.LayerNorm(seen_width)
        self.attention = nn.MultiheadAttention(width, num_heads, kdim=seen_width, vdim=seen_width, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x_btw: Tensor, seen_bgv: Tensor) -> Tensor:
        """x and what the gate lets through."""
        seen_bgv = self.seen_norm(seen_bgv)
        look_btw, _ = self.attention(self.norm(x_btw), seen_bgv, seen_bgv, need_weights=False)
        return x_btw + self.gate.tanh() * look_btw
