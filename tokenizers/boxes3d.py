"""Boxes in space as words: [x, y, z, length, width, height, heading], each number a bin of a fixed range.

x points ahead, y to the left, z up, from the sensor on, in metres; x, y and z are of the middle of the box; the heading is the angle of its
length against x, in radians, counted to the left. A bin stands for its middle, so that no number is off by more than half a bin; headings
go round, so that the last bin lies beside the first.

Source: LiDAR-LLM, arXiv:2312.14074, whose boxes are words too; bins of a fixed range are chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmlm.base.errors import DataError
from mmlm.tokenizers.boxes import Box, BoxBins
from mmlm.tokenizers.config import Boxes3dConfig


class Box3dTokenizer(BoxBins):
    """Boxes [x, y, z, length, width, height, heading] in metres and radians."""

    count = 7
    config: Boxes3dConfig

    @property
    def turn(self) -> float:
        """The angle after which headings begin again."""
        return 2 * math.pi if self.config.turn == "full" else math.pi

    def reaches(self, box: Sequence[float]) -> bool:
        """Whether the middle of a box lies within the range."""
        return all(low <= at < high for at, low, high in zip(box, self.config.low, self.config.high, strict=False))

    def bins(self, box: Sequence[float]) -> list[int]:
        """The seven bins of a box. Raises DataError where its middle leaves the range, or a size is not above 0."""
        config, total = self.config, self.config.num_bins
        values = [float(value) for value in box]
        told = f"box {[round(value, 3) for value in values]}"
        if len(values) != self.count or not all(map(math.isfinite, values)):
            raise DataError(f"{told}: seven finite numbers are needed: x, y, z, length, width, height, heading.")
        if not self.reaches(values):
            raise DataError(f"{told}: its middle lies outside the range {config.low} to {config.high}.")
        if min(values[3:6]) <= 0:
            raise DataError(f"{told}: length, width and height must be above 0.")
        places = [(at - low) / (high - low) for at, low, high in zip(values, config.low, config.high, strict=False)]
        sizes = [size / most for size, most in zip(values[3:6], config.largest, strict=True)]
        return [*(min(int(share * total), total - 1) for share in (*places, *sizes)), round((values[6] / self.turn + 0.5) * total) % total]

    def box(self, bins: Sequence[int]) -> Box:
        """The box of seven bins."""
        config, total = self.config, self.config.num_bins
        middle = [(index + 0.5) / total for index in bins[:6]]
        places = [low + share * (high - low) for share, low, high in zip(middle, config.low, config.high, strict=False)]
        sizes = [share * most for share, most in zip(middle[3:], config.largest, strict=True)]
        return (*places, *sizes, (bins[6] / total - 0.5) * self.turn)

    def rank(self, box: Box) -> Box:
        """The nearest first."""
        return math.hypot(box[0], box[1]), box[0]
