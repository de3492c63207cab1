"""Patches of pictures as vectors, each by itself: one matrix, or a stem of strided convolutions over the patch and its margin.

A stem of convolutions of a whole picture sees of it, at each place of its last map, a square that is larger than its stride: with a margin
a patch carries that square, and its convolutions are those of the whole picture.

Axes: n patches   f features
"""

from __future__ import annotations

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
    """Features [n, f] -> vectors [n, size]: 3 x 3 convolutions of step 2, until one place is left, and what a patch says of its place.

    inputs: 3 times the pixels of a square, and config.places numbers. Raises RecipeError where the square does not shrink to one place.
    """

    def __init__(self, config: PatchStemConfig, inputs: int) -> None:
        super().__init__()
        self.side, self.places = _side(inputs, config.places), config.places
        self.size = config.channels[-1]
        layers, before, side = list[nn.Module](), 3, self.side
        for channels in config.channels:
            layers.append(nn.Conv2d(before, channels, 3, stride=2))
            before, side = channels, (side - 3) // 2 + 1
        if side != 1:
            sizes = f"{len(config.channels)} convolutions leave {max(side, 0)} places of a side of {self.side} pixels"
            raise RecipeError(f"encoder patch_stem: {sizes}; patch + 2 * margin must be 2 ** (n + 1) - 1 or one more for n of them.")
        self.layers = nn.ModuleList(layers)
        self.place = linear(config.places, self.size, "places", "patch", bias=True) if config.places else None
        self.inner = linear(self.size, self.size, "patch", "patch_hidden", bias=True)

    def forward(self, features_nf: Tensor) -> Tensor:
        """Vectors [n, size]."""
        pixels = 3 * self.side * self.side
        x = features_nf[:, :pixels].view(-1, 3, self.side, self.side)
        for layer in self.layers:
            x = F.gelu(layer(x), approximate="tanh")
        y_nf = x.flatten(1)
        if self.place is not None:
            y_nf = y_nf + self.place(features_nf[:, pixels:])
        return y_nf + F.gelu(self.inner(y_nf), approximate="tanh")


def _side(inputs: int, places: int) -> int:
    """Pixels along a side of the square that a patch carries."""
    side = round((max(inputs - places, 0) / 3) ** 0.5)
    if 3 * side * side + places != inputs:
        raise RecipeError(
            f"encoder patch_stem: {inputs} numbers are not the pixels of a square and {places} of its place; see its `places`."
        )
    return side
