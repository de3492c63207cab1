"""A scalar regression head: one number per token that has a target."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.heads.config import RegressionHeadConfig
from mmlm.parameters import exact, linear
from mmlm.stream import Batch
from mmlm.vocabulary import Vocabulary


class RegressionHead(nn.Module):
    """Hidden states [b, t, d] -> numbers [b, t]. Targets are the batch's tag `channel` (float [b, t], NaN for none)."""

    def __init__(self, config: RegressionHeadConfig, width: int, vocabulary: Vocabulary, embedding: nn.Embedding) -> None:
        super().__init__()
        self.config = config
        self.out = linear(width, 1, "residual", "scalar", bias=True)

    def predict(self, h: Tensor) -> Tensor:
        """Numbers [...] of hidden states [..., d], in float32 (float64 for float64 states)."""
        return exact(self.out(h)[..., 0])

    def loss(self, h_btd: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of losses and number of targets; a batch without the tag has none."""
        target_bt = self._targets(batch)
        known = torch.isfinite(target_bt)
        got = self.predict(h_btd[known])
        want = target_bt[known].to(got.dtype)
        kinds: dict[str, Any] = {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.huber_loss}
        return {"regression": (kinds[self.config.loss](got, want, reduction="sum"), known.sum().float())}

    def loss_weights(self, batch: Batch) -> dict[str, float]:
        """The weight that `loss` will report, without computing it."""
        return {"regression": float(torch.isfinite(self._targets(batch)).sum())}

    def _targets(self, batch: Batch) -> Tensor:
        return batch.tags.get(self.config.channel, torch.full_like(batch.weight, torch.nan))
