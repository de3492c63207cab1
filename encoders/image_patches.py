"""Patches of pictures as vectors, each by itself: one matrix, or a stem of strided convolutions over the patch and its margin.

A stem of convolutions of a whole picture sees of it, at each place of its last map, a square that is larger than its stride: with a margin
a patch carries that square, and its convolutions are those of the whole picture.

Axes: n patches   f features
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from mmlm.base.errors import RecipeError
from mmlm.encoders.config import PatchMatrixConfig, PatchStemConfig
from mmlm.parameters import linear


class PatchMatrix(nn.Module):
    """Features [n, f] as they are: the projector behind every encoder is the matrix (SOLO, arXiv:2407.06438)."""

    def __init__(self, config: PatchMatrixConfig, inputs: int) -> None:
        super().__init__()
        self.size = inputs

    def forward(self, features_nf: Tensor) -> Tensor:
        """The same features."""
        return features_nf


class PatchStem(nn.Module):
    """Features [n, f] -> vectors [n, size]: convolutions until one place is left, and what a patch says of its place.

    Each convolution moves by its kernel within a patch, so it is one matrix over squares of what came before. inputs: 3 times the pixels of
    a square, and config.places numbers. Raises RecipeError where the kernels do not bring the square to one place.
    """

    def __init__(self, config: PatchStemConfig, inputs: int) -> None:
        super().__init__()
        self.side, self.places = _side(inputs, config.places), config.places
        self.size, self.kernels = config.channels[-1], list(config.kernels)
        if math.prod(self.kernels) != self.side:
            made = math.prod(self.kernels)
            raise RecipeError(f"encoder patch_stem: kernels {self.kernels} make {made} pixels, but patch and margins {self.side}.")
        sizes = [3, *config.channels]
        self.layers = nn.ModuleList(
            linear(before * kernel * kernel, after, "square", "patch", bias=True)
            for before, after, kernel in zip(sizes, sizes[1:], self.kernels, strict=False)
        )
        self.place = linear(config.places, self.size, "places", "patch", bias=True) if config.places else None
        self.inner = linear(self.size, self.size, "patch", "patch_hidden", bias=True)

    def forward(self, features_nf: Tensor) -> Tensor:
        """Vectors [n, size]."""
        pixels = 3 * self.side * self.side
        x_nyxc = features_nf[:, :pixels].view(-1, 3, self.side, self.side).permute(0, 2, 3, 1)
        for layer, kernel in zip(self.layers, self.kernels, strict=True):
            x_nyxc = F.gelu(layer(squares(x_nyxc, kernel)), approximate="tanh")
        y_nf = x_nyxc.flatten(1)
        if self.place is not None:
            y_nf = y_nf + self.place(features_nf[:, pixels:])
        return y_nf + F.gelu(self.inner(y_nf), approximate="tanh")


def squares(x_nyxc: Tensor, side: int) -> Tensor:
    """[n, y / side, x / side, c * side * side]: the numbers of each square, channel by channel, as a convolution's weights have them."""
    count, height, width, channels = x_nyxc.shape
    parts = x_nyxc.reshape(count, height // side, side, width // side, side, channels)
    return parts.permute(0, 1, 3, 5, 2, 4).reshape(count, height // side, width // side, channels * side * side)


def _side(inputs: int, places: int) -> int:
    """Pixels along a side of the square that a patch carries."""
    side = round(((inputs - places) / 3) ** 0.5)
    if 3 * side * side + places != inputs:
        raise RecipeError(
            f"encoder patch_stem: {inputs} numbers are not the pixels of a square and {places} of its place; see its `places`."
        )
    return side
