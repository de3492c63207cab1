"""A sweep of LiDAR as a fixed number of tokens, which an encoder of whole sweeps fills.

Axes: n points
"""

from __future__ import annotations

import numpy as np
import torch

from mmlm.base.errors import DataError
from mmlm.stream import Segment
from mmlm.tokenizers.base import SavedConfig
from mmlm.tokenizers.config import SweepTokensConfig

LIDAR = "lidar"
WHOLE = -1  # in place of the number of a view: the whole scene


class SweepTokens(SavedConfig):
    """Points, float32 [n, 4], to a segment whose features are the points with the view that is asked about."""

    num_features = 5
    file = "sweep.json"

    def __init__(self, config: SweepTokensConfig) -> None:
        self.config = config

    @property
    def sizes(self) -> dict[str, int]:
        """One id, which the encoder's vectors replace."""
        return {LIDAR: 1}

    def encode(self, points_n4: np.ndarray, view: int | None = None) -> Segment:
        """A sweep as a segment without loss. view: its number; None: the whole scene. Raises DataError for anything but points [n, 4]."""
        if points_n4.ndim != 2 or points_n4.shape[1] != 4 or not len(points_n4):
            raise DataError(f"a sweep is points [n, 4], but this is {list(points_n4.shape)}.")
        asked = np.full((len(points_n4), 1), WHOLE if view is None else view, dtype=np.float32)
        features = torch.from_numpy(np.concatenate([points_n4.astype(np.float32), asked], axis=1))
        return Segment(LIDAR, torch.zeros(self.config.num_tokens, dtype=torch.long), features=features, encoder=LIDAR, whole=True)

    def decode(self, segment: Segment) -> np.ndarray:
        """The points [n, 4]."""
        assert segment.features is not None
        return segment.features[:, :4].numpy()
