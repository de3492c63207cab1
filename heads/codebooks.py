"""Several predictions at one token, one of each codebook: every named range of the vocabulary has a softmax of its own.

The rows of all ranges are one matrix, so that a head of a codebook is a part of it.
Sources: parallel heads arXiv:2306.05284, section 2.1; rows shared with the embedding of the same codebook arXiv:2301.02111, section 4.2.2.

Axes: b rows   t tokens   u codebooks   n labelled cells   d width   v vocabulary rows
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import DataError, RecipeError
from mmlm.heads.config import CodebooksHeadConfig
from mmlm.heads.rows import OutputRows
from mmlm.kernels.cross_entropy.fast import linear_cross_entropy
from mmlm.parameters import exact
from mmlm.stream import NO_LABEL, Batch
from mmlm.vocabulary import Vocabulary


class CodebooksHead(OutputRows):
    """Hidden states -> cross-entropy of the labelled cells, or scores of a range."""

    def __init__(self, config: CodebooksHeadConfig, width: int, vocabulary: Vocabulary, embedding: nn.Embedding) -> None:
        spans = _spans(config, vocabulary)
        if not spans:
            raise RecipeError(f"a head of codebooks needs ranges such as codec.0, but the vocabulary has {', '.join(vocabulary.sizes)}.")
        super().__init__(config.tied, embedding, _extent(spans))
        self.config, self.vocabulary, self.spans = config, vocabulary, spans
        self._first = _extent(spans).start

    def extend(self, vocabulary: Vocabulary, init: str) -> None:
        """Follow a vocabulary that has grown, in its ranges or by further codebooks."""
        self.spans = _spans(self.config, vocabulary)
        self._span = _extent(self.spans)
        super().extend(vocabulary, init)

    def loss(self, h_btd: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of weighted cross-entropies over labelled cells, each among the ids of its own range, and the sum of their weights.

        Raises DataError for a label in none of the ranges.
        """
        total = h_btd.new_zeros((), dtype=torch.promote_types(h_btd.dtype, torch.float32))
        if batch.code_labels is None:
            return {"codebooks": (total, batch.weight.new_zeros(()))}
        labels_nu, weight_n = batch.code_labels.flatten(0, 1), batch.weight.flatten()
        token, book = ((labels_nu != NO_LABEL) & (weight_n > 0)[:, None]).nonzero().unbind(1)
        label_n, weight_n = labels_nu[token, book], weight_n[token]
        h_nd, matrix, found = h_btd.flatten(0, 1), self.matrix, 0
        for span in self.spans.values():
            mine = ((label_n >= span.start) & (label_n < span.stop)).nonzero()[:, 0]
            if not len(mine):
                continue
            found += len(mine)
            total = total + linear_cross_entropy(
                h_nd.index_select(0, token[mine]),
                matrix,
                label_n[mine] - self._first,
                weight_n[mine],
                rows=range(span.start - self._first, span.stop - self._first),
                z_loss=self.config.z_loss,
                label_smoothing=self.config.label_smoothing,
            )
        if found < len(label_n):
            names = {self.vocabulary.name_of(index) for index in label_n.unique().tolist()} - self.spans.keys()
            raise DataError(f"the head of codebooks predicts {', '.join(self.spans)}, but the batch asks for {', '.join(sorted(names))}.")
        return {"codebooks": (total, weight_n.sum())}

    def loss_weights(self, batch: Batch) -> dict[str, float]:
        """The weight that `loss` will report, without computing it."""
        if batch.code_labels is None:
            return {"codebooks": 0.0}
        return {"codebooks": float(((batch.code_labels != NO_LABEL) * batch.weight[..., None]).sum())}

    def predict(self, h: Tensor, name: str) -> Tensor:
        """Scores [..., ids of the range] of one range, in float32 (float64 for float64 states)."""
        span = self.spans[name]
        return exact(F.linear(h, self.matrix[span.start - self._first : span.stop - self._first].to(h.dtype)))


def _spans(config: CodebooksHeadConfig, vocabulary: Vocabulary) -> dict[str, range]:
    """The ranges of a head by their names."""
    names = config.ranges or [name for name in vocabulary.sizes if name.rpartition(".")[2].isdigit()]
    return {name: vocabulary.span(name) for name in names}


def _extent(spans: dict[str, range]) -> slice:
    """The vocabulary rows from the first of the ranges to the last."""
    return slice(min(span.start for span in spans.values()), max(span.stop for span in spans.values()))
