"""Cells of a table as vectors: numeric channels, text hashes and column-name hashes through one hidden layer.

What the channels are is said in tokenizers/table_cells.py. Source: the feature tokenizer of FT-Transformer, arXiv:2106.11959.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.encoders.config import CellEncoderConfig
from mmlm.parameters import linear


class CellEncoder(nn.Module):
    """Features [n, f] -> vectors [n, size]."""

    def __init__(self, config: CellEncoderConfig, inputs: int) -> None:
        super().__init__()
        self.size = config.hidden
        self.inner = linear(inputs, config.hidden, "cell", "cell_hidden", bias=True)

    def forward(self, features_nf: Tensor) -> Tensor:
        """Vectors [n, size]."""
        return F.gelu(self.inner(features_nf), approximate="tanh")
