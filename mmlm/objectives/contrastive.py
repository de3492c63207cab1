"""Pictures and texts that belong together score above those that do not: CLIP's loss, with targets that may soften while training goes on.

    scores of a picture  s_j = scale cos(picture, text_j)                      and of a text over the pictures alike
    targets              (1 - alpha) 1[j = its own] + alpha spread_j           spread: over the others alone, its own gets nothing of it
    loss                 cross-entropy of softmax(s) to the targets, less the targets' entropy, mean of both directions

With alpha 0 this is CLIP's loss. The entropy, which no gradient sees, makes 0 what is reached where the targets are met; without it the
loss would rise with alpha. `similarity` spreads by softmax of the cosines at a temperature, no gradient flows through them.
Source: CLIP, arXiv:2103.00020; progressively softened targets of LightCLIP, arXiv:2312.00674, details of the spread chosen here.

Axes: b samples of this process   n samples of all processes   d shared space
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.objectives.config import SoftClipConfig


def soft_targets(cosines_bn: Tensor, first: int, alpha: float, config: SoftClipConfig) -> Tensor:
    """What each of b rows should give to n columns [b, n]; its own is column `first` + its number."""
    rows, columns = cosines_bn.shape
    own = torch.arange(rows, device=cosines_bn.device)[:, None] + first == torch.arange(columns, device=cosines_bn.device)
    if alpha == 0 or columns == 1:
        return own.to(cosines_bn.dtype)
    if config.spread == "uniform":
        spread_bn = (~own).to(cosines_bn.dtype) / (columns - 1)
    else:
        spread_bn = (cosines_bn.detach() / config.temperature).masked_fill(own, -torch.inf).softmax(-1)
    return torch.where(own, 1.0 - alpha, alpha * spread_bn)


def divergence(scores_bn: Tensor, targets_bn: Tensor) -> Tensor:
    """KL(targets || softmax(scores)) of each row [b]."""
    cross_b = -(targets_bn * scores_bn.log_softmax(-1)).sum(-1)
    return cross_b - torch.special.entr(targets_bn).sum(-1)


def soft_clip(
    pictures_bd: Tensor, texts_bd: Tensor, all_pictures_nd: Tensor, all_texts_nd: Tensor, scale: Tensor, first: int, alpha: float,
    config: SoftClipConfig,
) -> Tensor:  # fmt: skip
    """Sum over the samples of this process; vectors are of any length. first: place of the first of them among all."""
    pictures_bd, texts_bd, all_pictures_nd, all_texts_nd = (
        F.normalize(each.float(), dim=-1) for each in (pictures_bd, texts_bd, all_pictures_nd, all_texts_nd)
    )
    total = pictures_bd.new_zeros(())
    for rows_bd, columns_nd in ((pictures_bd, all_texts_nd), (texts_bd, all_pictures_nd)):
        cosines_bn = rows_bd @ columns_nd.T
        total = total + divergence(scale * cosines_bn, soft_targets(cosines_bn, first, alpha, config)).sum() / 2
    return total


def contrast(scores_bn: Tensor, first: int) -> Tensor:
    """Sum over rows of the cross-entropy to their own column."""
    own_b = torch.arange(len(scores_bn), device=scores_bn.device) + first
    return F.cross_entropy(scores_bn, own_b, reduction="sum")
