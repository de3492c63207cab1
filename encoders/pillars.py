"""Points of LiDAR as a map seen from above, in plain PyTorch.

    points within the range -> the cell of each -> numbers of each point, beside its cell's mean and middle -> one matrix, norm, ReLU
    -> the largest of each cell -> canvas [b, c, h, w] -> convolutions at three scales, joined -> map [b, d, h / 2, w / 2]

No number of points a cell, and no loop over them. With bins of height the canvas has a third axis, which two convolutions see before it is
folded into the channels.

Sources: PointPillars, arXiv:1812.05784; dynamic voxels, arXiv:1910.06528; SECOND, Yan et al. 2018, for the scales.

Axes: n points   k cells   b samples   c, d channels   h, w cells along y and x   z bins of height
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlm.base.errors import DataError, RecipeError
from mmlm.encoders.config import PillarsConfig

NUMBERS = 9  # of a point: x, y, z, intensity, three from the mean of its cell, two from its middle


class Pillars(nn.Module):
    """Points to a canvas and a map. size: channels of the map.   grid: cells of the canvas along y and x.   units: what each number of a
    point is told in, so that all are about as large: metres for heights, halves of the range and of a cell for places."""

    def __init__(self, config: PillarsConfig, inputs: int | None = None) -> None:
        super().__init__()
        if inputs is not None:
            raise RecipeError("encoder pillars: gives a map of whole sweeps; in a model view_aware reads it.")
        self.config = config
        (x1, y1, _), (x2, y2, _) = config.low, config.high
        self.grid, half = config.grid, config.cell / 2
        self.units = ((x2 - x1) / 2, (y2 - y1) / 2, 1.0, 1.0, half, half, 1.0, half, half)
        self.linear, self.norm = nn.Linear(NUMBERS, config.channels, bias=False), nn.BatchNorm1d(config.channels)
        channels = config.channels
        self.fold = None
        if config.height_bins > 1:
            self.fold = nn.ModuleList([nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2)])
            self.flat = nn.Conv2d(channels * config.height_bins, channels, 1)
        self.down = nn.ModuleList(_step(channels * 2**at, channels * 2 ** (at + 1)) for at in range(3))
        self.up = nn.ModuleList(nn.Conv2d(channels * 2 ** (at + 1), channels, 1) for at in range(3))
        self.size = 3 * channels

    def canvas(self, points_n4: Tensor, sample_n: Tensor | None = None, samples: int = 1) -> Tensor:
        """[b, c, h, w], or [b, c, z, h, w] with bins of height; 0 where no point is. sample_n: which sample each point is of."""
        config, (height, width), bins = self.config, self.grid, self.config.height_bins
        if points_n4.ndim != 2 or points_n4.shape[1] != 4:
            raise DataError(f"points are [n, 4], but these are {list(points_n4.shape)}.")
        sample_n = torch.zeros(len(points_n4), dtype=torch.long, device=points_n4.device) if sample_n is None else sample_n
        low, high = points_n4.new_tensor(config.low), points_n4.new_tensor(config.high)
        inside = ((points_n4[:, :3] >= low) & (points_n4[:, :3] < high)).all(1)
        points_n4, sample_n = points_n4[inside], sample_n[inside]
        at_n2 = ((points_n4[:, :2] - low[:2]) / config.cell).long()
        at_n2 = torch.minimum(at_n2, at_n2.new_tensor([width - 1, height - 1]))
        level_n = ((points_n4[:, 2] - low[2]) / (high[2] - low[2]) * bins).long().clamp(max=bins - 1)
        cell_n = ((sample_n * bins + level_n) * height + at_n2[:, 1]) * width + at_n2[:, 0]
        cells = samples * bins * height * width
        count_k1 = points_n4.new_zeros(cells, 1).index_add_(0, cell_n, torch.ones_like(points_n4[:, :1])).clamp_min_(1)
        mean_k3 = points_n4.new_zeros(cells, 3).index_add_(0, cell_n, points_n4[:, :3]) / count_k1
        middle_n2 = low[:2] + (at_n2 + 0.5) * config.cell
        numbers_n = torch.cat([points_n4, points_n4[:, :3] - mean_k3[cell_n], points_n4[:, :2] - middle_n2], dim=1)
        numbers_n = numbers_n / numbers_n.new_tensor(self.units)
        made_nc = F.relu(self._normed(self.linear(numbers_n))) if len(numbers_n) else numbers_n.new_zeros(0, config.channels)
        channels = made_nc.shape[1]
        # behind a ReLU nothing is below 0, which is what cells without points hold
        flat = made_nc.new_zeros(cells, channels).scatter_reduce(0, cell_n[:, None].expand(-1, channels), made_nc, "amax")
        canvas = flat.view(samples, bins, height, width, channels).permute(0, 4, 1, 2, 3)
        return canvas if bins > 1 else canvas[:, :, 0]

    def _normed(self, made_nc: Tensor) -> Tensor:
        """The same over the spread of its channels; that of a batch, or, where one point has none, what is known of earlier ones."""
        if len(made_nc) > 1:
            return self.norm(made_nc)
        norm = self.norm
        return F.batch_norm(made_nc, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    def forward(self, points_n4: Tensor, sample_n: Tensor | None = None, samples: int = 1) -> Tensor:
        """The map [b, size, h / 2, w / 2]."""
        x = self.canvas(points_n4, sample_n, samples)
        if self.fold is not None:
            for layer in self.fold:
                x = F.relu(layer(x))
            x = F.relu(self.flat(x.flatten(1, 2)))
        found = []
        for down, up in zip(self.down, self.up, strict=True):
            x = down(x)
            found.append(F.relu(up(x)))
        size = found[0].shape[2:]
        return torch.cat([each if each.shape[2:] == size else F.interpolate(each, size, mode="nearest") for each in found], dim=1)


def _step(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())
