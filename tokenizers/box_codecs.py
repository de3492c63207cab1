"""Other ways to say a box of a picture in bins, for `mmlm.tokenizers.boxes`, of shares of its sides as there.

    absolute    x1 y1 x2 y2            the pixels of a canvas of num_bins x num_bins that the box covers, the last ones included
    residual    point dx dy w h        the cell of a grid that holds the middle, how far the middle lies from that of the cell, the size

On a canvas boxes of whole pixels are exact. An offset has a cell to itself, so that with a grid of g x g middles are g times as exact as
sizes. Source: GiT, arXiv:2403.09394, which says offsets from a grid point that its queries know; here the point is said too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmlm.tokenizers.boxes import Box, BoxBins, BoxTokenizer, checked_share
from mmlm.tokenizers.config import ResidualBoxesConfig

NEAR = 1e-6  # of a pixel: shares that are whole pixels but for their last digit


class AbsoluteBoxes(BoxTokenizer):
    """Boxes as the pixels of a canvas that they cover."""

    def bins(self, box: Sequence[float]) -> list[int]:
        """The first and last pixels of a box, across and down. Raises DataError as BoxTokenizer does."""
        size, (x1, y1, x2, y2) = self.config.num_bins, checked_share(box)
        first = [min(math.floor(value * size + NEAR), size - 1) for value in (x1, y1)]
        return [*first, *(max(math.ceil(value * size - NEAR) - 1, at) for value, at in zip((x2, y2), first, strict=True))]

    def box(self, bins: Sequence[int]) -> Box:
        """The box of four bins as they are."""
        size, (x1, y1, x2, y2) = self.config.num_bins, bins
        return x1 / size, y1 / size, (x2 + 1) / size, (y2 + 1) / size

    def is_fault(self, bins: Sequence[int]) -> bool:
        """Whether corners are out of order; a pixel is a box."""
        return bins[2] < bins[0] or bins[3] < bins[1]

    def following(self, begun: Sequence[int]) -> range:
        """The last pixel does not lie before the first."""
        return range(0 if len(begun) < 2 else begun[len(begun) - 2], self.config.num_bins)


class ResidualBoxes(BoxBins):
    """Boxes as a cell of a grid, an offset of the middle within it, and width and height."""

    count = 5
    config: ResidualBoxesConfig

    def bins(self, box: Sequence[float]) -> list[int]:
        """The five bins of a box. Raises DataError as BoxTokenizer does."""
        (x1, y1, x2, y2), grid = checked_share(box), self.config.grid
        middles = [(x1 + x2) / 2 * grid, (y1 + y2) / 2 * grid]
        across, down = (min(int(middle), grid - 1) for middle in middles)
        offsets = [self._bin(middle - cell) for middle, cell in zip(middles, (across, down), strict=True)]
        return [down * grid + across, *offsets, *(max(self._bin(size), 1) for size in (x2 - x1, y2 - y1))]

    def _bin(self, share: float) -> int:
        return int(share * (self.config.num_bins - 1) + 0.5)

    def box(self, bins: Sequence[int]) -> Box:
        """The box of five bins as they are, cut to the picture."""
        grid, last = self.config.grid, self.config.num_bins - 1
        point, *rest = bins
        dx, dy, wide, high = (index / last for index in rest)
        x, y = (min(point % grid + dx, grid) / grid, min(point // grid + dy, grid) / grid)
        return max(x - wide / 2, 0.0), max(y - high / 2, 0.0), min(x + wide / 2, 1.0), min(y + high / 2, 1.0)

    def rank(self, box: Box) -> Box:
        """From the top down, then from the left."""
        return box[1], box[0]

    def is_fault(self, bins: Sequence[int]) -> bool:
        """Whether there is no such point of the grid, or a box has no extent."""
        return bins[0] >= self.config.grid**2 or not (bins[3] and bins[4])

    def in_order(self, bins: list[int]) -> list[int]:
        """The last point of the grid for one that is none; without extent a box stays as it is, with an area of 0."""
        return [min(bins[0], self.config.grid**2 - 1), *bins[1:]]

    def following(self, begun: Sequence[int]) -> range:
        """A point of the grid, offsets, and sizes of at least a bin."""
        if not begun:
            return range(self.config.grid**2)
        return range(int(len(begun) > 2), self.config.num_bins)
