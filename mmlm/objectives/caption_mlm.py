"""Hidden words of a caption are said from those around them that the tower sees and from the picture.

The text tower reads the caption once more, some words shown as a mask, its layers looking at the whole picture through gates that are
closed at first; gradients flow into both towers. What looks and what stands for a hidden word are parts of the loss, not of the towers.
Source: masked language modelling with fusion of LightCLIP, arXiv:2312.00674; all hidden words are shown as the mask.

Axes: b samples   t tokens   w width   n hidden words
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import RecipeError
from mmlm.encoders.fusion import Fusion
from mmlm.encoders.towers import Towers
from mmlm.objectives.config import CaptionMlmConfig


class CaptionMlm(nn.Module):
    """widths: of the stages of the picture tower. Raises RecipeError where the text tower has fewer layers than stages or another width
    than the heads need."""

    def __init__(self, config: CaptionMlmConfig, width: int, num_layers: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        stages = num_layers if config.stages is None else config.stages
        if stages > num_layers:
            raise RecipeError(f"task.caption_mlm.stages: the text tower has {num_layers} layers, not {stages}.")
        if width % config.num_heads:
            raise RecipeError(f"task.caption_mlm.num_heads: {config.num_heads} do not share the text tower's width of {width}.")
        self.fusion = Fusion(width, num_layers, widths, stages, config.num_heads)
        self.mask_w = nn.Parameter(torch.randn(width) * 0.02)

    def forward(self, towers: Towers, ids_bt: Tensor, hidden_bt: Tensor, stages: Sequence[Tensor]) -> Tensor:
        """Sum of the cross-entropies of the hidden words."""

        def look(layer: int, x_btw: Tensor) -> Tensor:
            found: Tensor = self.fusion(layer, x_btw, stages)
            return found

        h_btw = towers.states(ids_bt, hidden_bt, self.mask_w, look)
        return F.cross_entropy(towers.word_scores(h_btw[hidden_bt]).float(), ids_bt[hidden_bt], reduction="sum")
