"""Feed-forward layers: SwiGLU and GEGLU (arXiv:2002.05202), GELU, and squared ReLU (arXiv:2109.08668)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.config import GegluConfig, GeluConfig, MoeConfig, Relu2Config, SwigluConfig
from mmlm.kernels.swiglu.fast import swiglu
from mmlm.layout import Layout
from mmlm.parameters import linear


def hidden_width(config: SwigluConfig | GegluConfig | GeluConfig | Relu2Config | MoeConfig, width: int) -> int:
    """Inner width: as given, else 4 times the width, or for the gated forms 8/3 of it, rounded up to a multiple of 64."""
    return config.hidden or (4 * width if isinstance(config, GeluConfig | Relu2Config) else -(-8 * width // (3 * 64)) * 64)


class FeedForward(nn.Module):
    """[b, t, d] -> [b, t, d]. The gated forms compute gate and up in one product."""

    def __init__(self, config: SwigluConfig | GegluConfig | GeluConfig | Relu2Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.gated = isinstance(config, SwigluConfig | GegluConfig)
        self.hidden = hidden_width(config, width)
        self.up = linear(width, self.hidden * (2 if self.gated else 1), "residual", "ffn", bias=config.bias)
        self.down = linear(self.hidden, width, "ffn", "residual", bias=config.bias)
        self.down.is_residual_output = True

    def forward(self, x_btd: Tensor, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
        """y [b, t, d] and no auxiliary losses."""
        h = self.up(x_btd)
        match self.config:
            case SwigluConfig():
                h = swiglu(h)
            case Relu2Config():
                h = F.relu(h).square()
            case GeluConfig():
                h = _gelu(h, self.config.approximate)
            case GegluConfig():
                gate, up = h.chunk(2, dim=-1)
                h = _gelu(gate, self.config.approximate) * up
        return self.down(h), {}


def _gelu(x: Tensor, approximate: bool) -> Tensor:
    return F.gelu(x, approximate="tanh" if approximate else "none")
