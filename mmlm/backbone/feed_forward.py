"""Feed-forward layers: SwiGLU (arXiv:2002.05202) and GELU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.config import GeluConfig, SwigluConfig
from mmlm.kernels.swiglu.fast import swiglu
from mmlm.layout import Layout
from mmlm.parameters import linear


class FeedForward(nn.Module):
    """[b, t, d] -> [b, t, d]. SwiGLU computes gate and up in one product."""

    def __init__(self, config: SwigluConfig | GeluConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.gated = isinstance(config, SwigluConfig)
        self.hidden = config.hidden or (-(-8 * width // (3 * 64)) * 64 if self.gated else 4 * width)
        self.up = linear(width, self.hidden * (2 if self.gated else 1), "residual", "ffn", bias=config.bias)
        self.down = linear(self.hidden, width, "ffn", "residual", bias=config.bias)
        self.down.is_residual_output = True

    def forward(self, x_btd: Tensor, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
        """y [b, t, d] and no auxiliary losses."""
        h = self.up(x_btd)
        if isinstance(self.config, SwigluConfig):
            return self.down(swiglu(h)), {}
        return self.down(F.gelu(h, approximate="tanh" if self.config.approximate else "none")), {}
