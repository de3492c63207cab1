"""Positions in the queries and keys of linear attention: relative ones on one to three axes (MD-LRPE), or rotary ones.

    x -> [x cos(angle), x sin(angle)]

With m axes, channel j of a head stands for axis j // ceil(k / m) and has the angle position * theta, so that the product of a query and a
key is a sum of q_j k_j cos(difference of positions on that axis * theta). theta is learned, one set for each head, shared by the axes.
Source: arXiv:2307.09270 (LRPE), arXiv:2405.21022 (several axes).

Axes: b rows   t tokens   p position axes   h heads   k channels of a head   m axes in use   j frequencies
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlm.backbone.config import LrpeConfig, RopeConfig
from mmlm.backbone.rope import Rope
from mmlm.base.errors import RecipeError
from mmlm.kernels.lrpe.fast import lrpe
from mmlm.kernels.rope.fast import rope
from mmlm.layout import Layout
from mmlm.parameters import exact, name_axes


class Lrpe(nn.Module):
    """The learned frequencies, and their angles for a layout's positions."""

    def __init__(self, config: LrpeConfig, num_heads: int, head_size: int) -> None:
        super().__init__()
        self.config, self.head_size = config, head_size
        self.theta = nn.Parameter(torch.empty(num_heads, -(-head_size // config.num_axes)))
        self.theta.no_weight_decay = True
        name_axes(self.theta, "num_heads", "head")
        self.reset_parameters_own()

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """Wavelengths from 2 pi to 2 pi base, in geometric steps over all heads."""
        count = self.theta.numel()
        steps = torch.arange(count, dtype=torch.float64, device="cpu") / count
        self.theta.copy_((self.config.base**-steps).view_as(self.theta))

    def angles(self, layout: Layout) -> Tensor:
        """[b, t, h, k] of a layout's positions, b being one where all rows have the same. Raises RecipeError for missing axes."""
        axes = self.config.num_axes
        if layout.position.shape[-1] < axes:
            raise RecipeError(f"lrpe.num_axes is {axes}, but the data has {layout.position.shape[-1]} position axes.")
        position_btm = layout.memo(("lrpe", axes), lambda: _alike(layout.position[..., :axes]))
        angle = position_btm.to(exact(self.theta).dtype)[:, :, None, :, None] * exact(self.theta)[:, None]
        return angle.flatten(-2)[..., : self.head_size]


class Positions(nn.Module):
    """What a linear mixer's config says of positions, put into queries and keys. factor: their channels afterwards over those before."""

    def __init__(self, lrpe: LrpeConfig | None, rope: RopeConfig | None, num_heads: int, head_size: int) -> None:
        super().__init__()
        self.lrpe = Lrpe(lrpe, num_heads, head_size) if lrpe else None
        self.rope = Rope(rope, head_size) if rope else None
        self.factor = 2 if lrpe else 1

    def forward(self, q_bthk: Tensor, k_bthk: Tensor, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions in them, in a dtype."""
        if self.lrpe is not None:
            return lrpe(q_bthk, k_bthk, self.lrpe.angles(layout), dtype)
        if self.rope is not None:
            turned = self.rope
            cos, sin = layout.memo(("rope", turned.key), lambda: turned.angles(layout.position))
            q_bthk, k_bthk = rope(q_bthk, k_bthk, cos, sin)
        return q_bthk.to(dtype), k_bthk.to(dtype)


def _alike(position_btm: Tensor) -> Tensor:
    """The first row alone where all rows have the same positions."""
    return position_btm[:1] if bool((position_btm == position_btm[:1]).all()) else position_btm
