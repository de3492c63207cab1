"""Matrices of a network that only predicts, laid out once as oneDNN's products want them, with the GELU behind them in the same pass.

A product in bfloat16 rearranges its weights at each call, and a GELU of its own reads and writes all values again; on a CPU with AMX both
cost as much as the product, with AVX512-BF16 a tenth of it. Only what is surely called as a layer is changed: `nn.Linear` itself, none of
its subclasses.

Axes: o outputs   i inputs
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlm.kernels.dispatch import multiplies_bf16_faster

logger = logging.getLogger(__name__)

FIRST_HALVES = {"timm.layers.mlp.Mlp": ("fc1", "act")}  # classes whose second part is called on what the first gives, and on nothing else


class PackedLinear(nn.Module):
    """A linear layer, or one and its GELU, of weights in bfloat16 that stay as they are. weight: for who reads it instead of calling."""

    def __init__(self, layer: nn.Linear, gelu: nn.GELU | None = None) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.approximate = None if gelu is None else gelu.approximate
        self.packed_oi = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., o] of [..., i]."""
        if x.dtype != torch.bfloat16 or not x.numel():
            y = F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
            return y if self.approximate is None else F.gelu(y, approximate=self.approximate)
        name, algorithm = ("none", "") if self.approximate is None else ("gelu", self.approximate)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed_oi, self.bias, name, [], algorithm)
        return found


def can_pack() -> bool:
    """Whether this machine and this torch have such products."""
    if not (torch.backends.mkldnn.is_available() and multiplies_bf16_faster(torch.device("cpu"))):
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        logger.warning("torch %s has no packed products for a CPU; pictures are encoded without them.", torch.__version__)
        return False
    return True


@torch.no_grad()
def pack_(network: nn.Module) -> nn.Module:
    """Change the linear layers of a network in bfloat16 on the CPU; returns it."""
    for parent in list(network.modules()):
        children = list(parent.named_children())
        pairs = list(zip(children, children[1:], strict=False)) if type(parent) is nn.Sequential else []
        if names := FIRST_HALVES.get(f"{type(parent).__module__}.{type(parent).__qualname__}"):
            pairs = [((names[0], getattr(parent, names[0])), (names[1], getattr(parent, names[1])))]
        for (first, layer), (second, after) in pairs:
            if type(after) is nn.GELU and _fits(layer):
                setattr(parent, first, PackedLinear(layer, after))
                setattr(parent, second, nn.Identity())
        for name, layer in parent.named_children():
            if _fits(layer):
                setattr(parent, name, PackedLinear(layer))
    return network


def _fits(layer: Any) -> bool:
    return type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu"
