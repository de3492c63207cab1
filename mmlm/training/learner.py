"""A model under its objective: what the trainer calls."""

from __future__ import annotations

from torch import Tensor, nn

from mmlm.model import MultimodalLM
from mmlm.objectives.base import Objective
from mmlm.stream import Batch


class Learner(nn.Module):
    """`model(batch)` gives losses as sums and weights, whatever the objective does with the model."""

    def __init__(self, model: MultimodalLM, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def begin_step(self, step: int, steps: int) -> None:
        """Told before each training step: how many were taken, and how many the run has."""
        self.objective.begin_step(step, steps)

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Loss sums and weights by name."""
        return self.objective.losses(self.model, batch)

    def loss_weights(self, batch: Batch) -> dict[str, float]:
        """The weights that forward will report, without a forward pass."""
        return self.objective.loss_weights(self.model, batch)
