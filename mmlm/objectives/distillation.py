"""Learning from a teacher: its probabilities instead of labels, and its layers where the student has others.

    kl      temperature^2 KL(p_teacher || p_student), mean over the tokens that carry a label
    layers  sum over layers with another mixer of |student layer(x) - teacher layer(x)|, x being the teacher's input to the layer, mean over
            tokens that are not padding
Source: arXiv:1503.02531, section 2; the layer loss of MaTVLM, arXiv:2503.13440, with the norm taken token by token (details chosen here).

Axes: b rows   t tokens   d width   n labelled tokens   v vocabulary rows
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlm.base.errors import RecipeError
from mmlm.objectives.base import Losses, Objective
from mmlm.objectives.config import DistillationConfig
from mmlm.parameters import exact
from mmlm.stream import NO_LABEL, Batch

ROWS_AT_ONCE = 512  # labelled tokens whose full scores are held


class Distillation(Objective):
    """Needs `set_teacher` before the first loss. The teacher is never trained and never saved."""

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config
        self._teacher: list[Any] = []

    @property
    def teacher_name(self) -> str:
        """What `set_teacher` is to load."""
        return self.config.teacher

    def set_teacher(self, teacher: nn.Module) -> None:
        """The model to learn from: another of ours with the same vocabulary."""
        self._teacher = [teacher.eval().requires_grad_(False)]

    def _teacher_on(self, device: torch.device) -> Any:
        """The teacher where the student is, which alone the trainer moves."""
        if self._teacher[0].device != device:
            self._teacher[0].to(device)
        return self._teacher[0]

    def losses(self, model: Any, batch: Batch) -> Losses:
        """`kl`, `layers` where mixers differ, and the model's own losses where `label_weight` asks for them."""
        if not self._teacher:
            raise RecipeError("objective.teacher: the teacher has not been loaded.")
        teacher = self._teacher_on(model.device)
        held, wanted = teacher.vocabulary, model.vocabulary
        if held != wanted:
            raise RecipeError(f"objective.teacher: {self.config.teacher} has the vocabulary {held.sizes}, the model {wanted.sizes}.")
        if batch.code_labels is not None:
            raise RecipeError("objective: distillation copies the language-model head, but the batch asks for several codebooks a token.")
        found, matched = self._teacher_states(teacher, model, batch)
        h_btd, aux = model.hidden(batch)
        at = ((batch.labels != NO_LABEL) & (batch.weight > 0)).flatten().nonzero()[:, 0]
        weight_n = batch.weight.flatten()[at]
        total = h_btd.new_zeros((), dtype=torch.float32)
        for rows in torch.arange(len(at), device=at.device).split(ROWS_AT_ONCE):
            theirs, ours = (h.flatten(0, 1)[at[rows]] for h in (found, h_btd))
            heads = model.heads["language_model"], teacher.heads["language_model"]
            kl_n = checkpoint(self._divergence, *heads, ours, theirs, use_reentrant=False)
            total = total + (kl_n * weight_n[rows]).sum()
        losses: Losses = {"kl": (total, weight_n.sum())}
        tokens = torch.tensor(float(batch.num_tokens))
        losses |= {name: (value * tokens, tokens) for name, value in aux.items()}
        if matched:
            losses["layers"] = (torch.stack(matched).sum(), tokens)
        if self.config.label_weight:
            for head in model.heads.values():
                for name, (value, weight) in head.loss(h_btd, batch).items():
                    losses[name] = (self.config.label_weight * value, weight)
        return losses

    def loss_weights(self, model: Any, batch: Batch) -> dict[str, float]:
        """The weights that `losses` will report, without a forward pass."""
        found = {name: float(batch.num_tokens) for name in model.aux_names}
        found["kl"] = float((batch.weight * (batch.labels != NO_LABEL)).sum())
        if self.config.match_layers and self._differing(self._teacher[0], model):
            found["layers"] = float(batch.num_tokens)
        if self.config.label_weight:
            for head in model.heads.values():
                found |= head.loss_weights(batch)
        return found

    def _divergence(self, mine: Any, its: Any, ours_nd: Tensor, theirs_nd: Tensor) -> Tensor:
        """float32 [n]."""
        heat = self.config.temperature
        log_s = exact(mine.predict(ours_nd) / heat).log_softmax(-1)
        log_t = exact(its.predict(theirs_nd) / heat).log_softmax(-1)
        first, second = (log_t, log_s) if self.config.direction == "forward" else (log_s, log_t)
        apart = (first - second).masked_fill(first.isneginf(), 0)  # before the product: its gradient would be NaN where both are infinite
        return heat**2 * (first.exp() * apart).sum(-1)

    def _teacher_states(self, teacher: Any, model: Any, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The teacher's last hidden states, and the sums of the layer losses."""
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        hooks = [
            teacher.backbone.layers[index].register_forward_hook(
                lambda _, given, found, index=index: kept.__setitem__(index, (given[0], found[0]))
            )
            for index in (self._differing(teacher, model) if self.config.match_layers else [])
        ]
        try:
            with torch.no_grad():
                h_btd, _ = teacher.hidden(batch)
        finally:
            for hook in hooks:
                hook.remove()
        real = batch.layout.document > 0
        matched = []
        for index, (x_btd, y_btd) in kept.items():
            mine, _, _ = model.backbone.layers[index](x_btd, batch.layout)
            matched.append((exact(mine) - exact(y_btd)).square().sum(-1).clamp_min(1e-12).sqrt()[real].sum())
        return h_btd, matched

    @staticmethod
    def _differing(teacher: Any, model: Any) -> list[int]:
        its, own = teacher.config.backbone, model.config.backbone
        if len(its.layers) != len(own.layers):
            raise RecipeError("objective.match_layers: teacher and student differ in their number of layers; say match_layers: false.")
        found = [index for index, (theirs, ours) in enumerate(zip(its.layers, own.layers, strict=True)) if theirs.mixer != ours.mixer]
        if found and its.width != own.width:
            told = f"the teacher is {its.width} wide, the student {own.width}, so that no layer reads what the other does"
            raise RecipeError(f"objective.match_layers: {told}; say match_layers: false.")
        return found
