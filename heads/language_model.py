"""The language-model head: scores of vocabulary rows, computed only where a label has weight and only for the allowed rows.

Axes: b rows   t tokens   n labelled tokens   d width   v vocabulary rows
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.heads.rows import OutputRows
from mmlm.kernels.cross_entropy.fast import linear_cross_entropy
from mmlm.parameters import exact
from mmlm.stream import NO_LABEL, Batch
from mmlm.vocabulary import Vocabulary


class LanguageModelHead(OutputRows):
    """Hidden states -> cross-entropy of the labels, or scores."""

    def __init__(self, config: LanguageModelHeadConfig, width: int, vocabulary: Vocabulary, embedding: nn.Embedding) -> None:
        super().__init__(config.tied, embedding)
        self.config, self.vocabulary = config, vocabulary
        self._rows = vocabulary, self._allowed()

    @property
    def rows(self) -> Tensor | None:
        """Increasing ids [n] of the config's ranges, which may have grown; None: all can be predicted."""
        if self._rows[0] is not self.vocabulary:
            self._rows = self.vocabulary, self._allowed()
        return self._rows[1]

    def _allowed(self) -> Tensor | None:
        spans = [self.vocabulary.span(name) for name in self.config.ranges or []]
        return torch.cat([torch.arange(span.start, span.stop, device="cpu") for span in spans]).unique() if spans else None

    def loss(self, h_btd: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of weighted cross-entropies and sum of weights, at labelled tokens; tokens with options choose among these alone."""
        at = ((batch.labels != NO_LABEL) & (batch.weight > 0)).flatten().nonzero()[:, 0]
        h_nd, label_n = h_btd.flatten(0, 1).index_select(0, at), batch.labels.flatten()[at]
        weight_n = batch.weight.flatten()[at]
        total, total_weight = h_nd.new_zeros((), dtype=torch.float32), weight_n.sum()
        if batch.options is not None:
            options_n2 = batch.options.flatten(0, 1)[at]
            free = options_n2[:, 1] == 0
            for first in options_n2[~free, 0].unique().tolist():
                mine = ~free & (options_n2[:, 0] == first)
                number_n = options_n2[mine, 1]
                scores = self._scores(h_nd[mine], slice(first, first + int(number_n.max())))
                possible = torch.arange(scores.shape[1], device=scores.device) < number_n[:, None]
                total = total + (self._among(scores, possible, label_n[mine] - first) * weight_n[mine]).sum()
            h_nd, label_n, weight_n = h_nd[free], label_n[free], weight_n[free]
        if len(label_n):
            total = total + linear_cross_entropy(
                h_nd,
                self.matrix,
                label_n,
                weight_n,
                rows=self.rows,
                softcap=self.config.soft_cap,
                z_loss=self.config.z_loss,
                label_smoothing=self.config.label_smoothing,
            )
        return {"language_model": (total, total_weight)}

    def _among(self, scores_nv: Tensor, possible_nv: Tensor, label_n: Tensor) -> Tensor:
        """Losses [n] where only some rows are possible."""
        config = self.config
        partition_n = scores_nv.masked_fill(~possible_nv, -torch.inf).logsumexp(-1)
        chosen_n = scores_nv.gather(1, label_n[:, None])[:, 0]
        if config.label_smoothing:
            mean_n = (scores_nv * possible_nv).sum(-1) / possible_nv.sum(-1)
            chosen_n = (1 - config.label_smoothing) * chosen_n + config.label_smoothing * mean_n
        return partition_n - chosen_n + config.z_loss * partition_n.square()

    def loss_weights(self, batch: Batch) -> dict[str, float]:
        """The weight that `loss` will report, without computing it."""
        return {"language_model": float((batch.weight * (batch.labels != NO_LABEL)).sum())}

    def predict(self, h: Tensor, rows: range | Tensor | None = None) -> Tensor:
        """Scores [..., rows] of all rows, of one id range, or of given ids, in float32 (float64 for float64 states).

        Of all rows those outside the config's ranges, which are never trained, have minus infinity.
        """
        if rows is None:
            scores = self._scores(h, slice(None))
            if self.rows is None:
                return scores
            trained = self.rows.to(scores.device)
            return torch.full_like(scores, -torch.inf).index_copy(-1, trained, scores[..., trained])
        return self._scores(h, slice(rows.start, rows.stop) if isinstance(rows, range) else rows)

    def _scores(self, h: Tensor, rows: slice | Tensor) -> Tensor:
        scores, cap = exact(F.linear(h, self.matrix[rows].to(h.dtype))), self.config.soft_cap
        return scores if cap is None else cap * torch.tanh(scores / cap)
