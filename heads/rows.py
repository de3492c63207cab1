"""The output rows of a head that scores ids: rows of the token embedding, or its own.

They are read as a matrix, so adapters do not go here.

Axes: d width   v vocabulary rows
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlm.parameters import name_axes
from mmlm.vocabulary import Vocabulary


class OutputRows(nn.Module):
    """Base of such heads. tied: use those of the embedding. span: the vocabulary rows that it has; None: all."""

    vocabulary: Vocabulary

    def __init__(self, tied: bool, embedding: nn.Embedding, span: slice | None = None) -> None:
        super().__init__()
        self._embedding = [embedding]  # in a list: the table belongs to the model, not to this head
        self._span = span
        self.weight = None if tied else nn.Parameter(torch.empty_like(self._shared))
        if self.weight is not None:
            name_axes(self.weight, "vocab", "residual")

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """Rows N(0, 1 / (3 width))."""
        if self.weight is not None:
            nn.init.normal_(self.weight, std=(3 * self.weight.shape[1]) ** -0.5)

    def extend(self, vocabulary: Vocabulary, init: str) -> None:
        """Follow a vocabulary that has grown, whose embedding has its rows already; new rows of its own are as `extended` says."""
        self.vocabulary = vocabulary
        if self.weight is not None:
            self.weight = extended(self.weight, len(self._shared) - len(self.weight), init)

    @property
    def matrix(self) -> Tensor:
        """The rows [v, d]."""
        return self._shared if self.weight is None else self.weight

    @property
    def _shared(self) -> Tensor:
        weight = self._embedding[0].weight
        return weight if self._span is None else weight[self._span]


@torch.no_grad()
def extended(weight: nn.Parameter, added: int, init: str) -> nn.Parameter:
    """Rows [v, d] with further ones behind them. init: mean (of the present rows) or random, N(0, 0.02^2)."""
    new = weight.mean(0, keepdim=True).repeat(added, 1)
    new = torch.randn_like(new) * 0.02 if init == "random" else new
    found = nn.Parameter(torch.cat([weight, new]), requires_grad=weight.requires_grad)
    name_axes(found, *weight.axes)
    return found
