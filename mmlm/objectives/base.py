"""What an objective is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from mmlm.stream import Batch, Stream, pack
from mmlm.vocabulary import Vocabulary

Losses = dict[str, tuple[Tensor, Tensor]]


class Model(Protocol):
    """What an objective needs of a model."""

    def losses(self, batch: Batch) -> Losses:
        """Sum and weight of every loss of one pass."""

    def loss_weights(self, batch: Batch) -> dict[str, float]:
        """The weights that `losses` will report, without a forward pass."""


class Objective:
    """Turns streams into a batch and a model's states into losses. Subclasses change `prepare`, or all."""

    shift = True
    causal = True

    def begin_step(self, step: int, steps: int) -> None:
        """Told before each training step: how many were taken, and how many the run has."""

    def prepare(self, stream: Stream, vocabulary: Vocabulary, rng: np.random.Generator) -> Stream:
        """The stream as the model shall see it. All randomness comes from rng, which belongs to this sample."""
        return stream

    def collate(self, streams: Sequence[Stream], vocabulary: Vocabulary) -> Batch:
        """Prepared streams as one batch."""
        batch = pack(streams, vocabulary, shift=self.shift)
        batch.layout.causal = self.causal
        return batch

    def losses(self, model: Model, batch: Batch) -> Losses:
        """Loss sums and weights by name."""
        return model.losses(batch)

    def loss_weights(self, model: Model, batch: Batch) -> dict[str, float]:
        """The weights that `losses` will report, without a forward pass."""
        return model.loss_weights(batch)
