"""Sweeps of LiDAR as a few vectors, of the whole scene or of one of six views.

    points -> map seen from above -> one matrix, places of the cells, vectors of the views -> learned queries look at the cells -> vectors

Each view has a learned vector, zero at first. Of one view that vector alone is added, to the cells of its sector and to the queries; of the
whole scene each cell gets that of its own sector and the queries the mean. So the view is known by these vectors and by nothing else.

Source: view-aware transformer of LiDAR-LLM, arXiv:2312.14074; that sectors are cut by the azimuth of a cell, and the whole scene, are
chosen here, and so is that queries may stand on a grid: each begins with what the cells around it hold, and looks at what is near.
Queries that begin alike for every sweep come out nearly alike for a long time: after 3,600 sweeps by less than 1 % of their size.

Axes: n points   s sweeps   c channels of the map   m cells of the map   k queries   d width   v views
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmlm.base.errors import DataError, RecipeError
from mmlm.encoders.config import ViewAwareConfig
from mmlm.encoders.pillars import Pillars
from mmlm.encoders.query_former import QueryFormer
from mmlm.encoders.views import VIEWS, view_of
from mmlm.parameters import linear

NUMBERS = 5  # of a point: x, y, z, intensity, and the view that its sweep is asked about, -1 for the whole scene
FREQUENCIES = 6  # of the sines of each coordinate of a cell
FARTHEST = 20.0  # most that is taken off a score: beyond it the numbers would be too small to be normal, which are slow


class ViewAware(nn.Module):
    """Points [n, 5] of several sweeps -> vectors [s * k, size]. inputs: numbers of a point. Raises RecipeError where these are not 5."""

    sector_m: Tensor
    sines_mf: Tensor
    sines_kf: Tensor | None
    bias_km: Tensor | None

    def __init__(self, config: ViewAwareConfig, inputs: int) -> None:
        super().__init__()
        if inputs != NUMBERS:
            raise RecipeError(f"encoder view_aware: reads points of {NUMBERS} numbers, x, y, z, intensity and the view, not of {inputs}.")
        self.config, width = config, config.queries.width
        self.size = width
        self.pillars = Pillars(config.pillars)
        self.cells = linear(self.pillars.size, width, "map", "query", bias=True)
        self.places = linear(4 * FREQUENCIES, width, "places", "query", bias=False)
        self.norm = nn.LayerNorm(width)
        self.views_vd = nn.Parameter(torch.zeros(len(VIEWS), width)) if config.view_vectors else None
        self.former = QueryFormer(config.queries)
        around = math.prod(config.pillars.map_grid) // config.queries.num_queries
        self.around = None if config.near is None else linear(around * width, width, "around", "query", bias=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Of every cell of the map its sector and sines of its place, which follow from the config."""
        middles = self.middles()
        self.register_buffer("sector_m", torch.tensor([view_of(x, y) for x, y in middles]), persistent=False)
        self.register_buffer("sines_mf", self._sines(middles), persistent=False)
        standing = self.standing()
        self.register_buffer("sines_kf", None if standing is None else self._sines(standing), persistent=False)
        bias_km = None
        if standing is not None and self.config.near is not None:
            far_km = torch.cdist(torch.tensor(standing), torch.tensor(middles)) / self.config.near
            bias_km = -(far_km.square() / 2).clamp_max(FARTHEST)
        self.register_buffer("bias_km", bias_km, persistent=False)

    def _sines(self, places: list[tuple[float, float]]) -> Tensor:
        """Sines and cosines of places, x and y in metres: [places, 4 * FREQUENCIES]."""
        config = self.config.pillars
        low, high = torch.tensor(config.low[:2]), torch.tensor(config.high[:2])
        shares_m2 = (torch.tensor(places) - low) / (high - low)
        angles_m2f = shares_m2[..., None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES))
        return torch.cat([angles_m2f.sin(), angles_m2f.cos()], -1).flatten(1)

    def _squares(self, x_smd: Tensor) -> Tensor:
        """The cells around each query that stands somewhere, side by side: [s, k, cells * d]."""
        side, (height, width) = self.config.side, self.config.pillars.map_grid
        x_sywxvd = x_smd.unflatten(1, (side, height // side, side, width // side))
        return x_sywxvd.transpose(2, 3).flatten(3).flatten(1, 2)

    def standing(self) -> list[tuple[float, float]] | None:
        """Where the queries stand, x and y in metres, row after row along y; None: nowhere."""
        if self.config.near is None:
            return None
        config, side = self.config.pillars, self.config.side
        xs, ys = (
            [low + (at + 0.5) * (high - low) / side for at in range(side)]
            for low, high in zip(config.low[:2], config.high[:2], strict=True)
        )
        return [(x, y) for y in ys for x in xs]

    def middles(self) -> list[tuple[float, float]]:
        """x and y in metres of the middle of each cell of the map, which are two of the canvas along a side; row after row along y."""
        config, (height, width) = self.config.pillars, self.config.pillars.map_grid
        ys, xs = (
            [low + (at + 0.5) * 2 * config.cell for at in range(count)] for low, count in ((config.low[1], height), (config.low[0], width))
        )
        return [(x, y) for y in ys for x in xs]

    def forward(self, points_n5: Tensor, sizes_s: Tensor) -> Tensor:
        """sizes_s: points of each sweep. Raises DataError for a sweep that is asked about several views, or about one that is none."""
        count = len(sizes_s)
        sample_n = torch.repeat_interleave(torch.arange(count, device=points_n5.device), sizes_s)
        asked_n = points_n5[:, 4].long()
        asked_s = asked_n[sizes_s.cumsum(0) - sizes_s]
        if bool((asked_n != asked_s[sample_n]).any()) or int(asked_s.min()) < -1 or int(asked_s.max()) >= len(VIEWS):
            raise DataError(f"a sweep is asked about one view, 0 to {len(VIEWS) - 1}, or about the whole scene, -1.")
        map_scm = self.pillars(points_n5[:, :4], sample_n, count).flatten(2)
        x_smd = self.cells(map_scm.transpose(1, 2)) + self.places(self.sines_mf)
        added_sd = None
        if self.views_vd is not None:
            is_whole_s1 = (asked_s < 0)[:, None]
            own_sd = self.views_vd[asked_s.clamp_min(0)]
            here_sm = is_whole_s1 | (self.sector_m == asked_s[:, None])
            x_smd = x_smd + self.views_vd[self.sector_m] * here_sm[..., None]
            added_sd = torch.where(is_whole_s1, self.views_vd.mean(0), own_sd)
        x_smd = self.norm(x_smd)
        begins_skd = None
        if self.around is not None and self.sines_kf is not None:
            begins_skd = self.places(self.sines_kf) + self.around(self._squares(x_smd))
        return self.former(x_smd, added_sd, begins_bkd=begins_skd, bias_kn=self.bias_km).flatten(0, 1)
