"""Words and patches that match: each pair of a picture and a text of the batch is scored by how well its words find patches.

    score_ij = sum over words and patches of plan cos(word, patch)        plan: see `transport`, no gradient through it
    loss     = cross-entropy of softmax(scale score) to the own pair, mean of both directions

The scale is learned here and belongs to no exported network. Source: token-level alignment of LightCLIP, arXiv:2312.00674 (relaxed
bipartite matching, details chosen here); FILIP, arXiv:2111.07783, is the plan `max`.

Axes: b samples of this process   n samples of all processes   m words   g patches   d shared space   p pairs
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.objectives.config import TokenMatchingConfig
from mmlm.objectives.contrastive import contrast
from mmlm.objectives.transport import plan

MOST_SCALE = math.log(100.0)


def pair_scores(patches_agd: Tensor, words_cmd: Tensor, is_word_cm: Tensor, config: TokenMatchingConfig) -> Tensor:
    """How well each of c texts matches each of a pictures [a, c]; tokens are of length 1."""
    pictures, texts = len(patches_agd), len(words_cmd)
    cosines_pmn = torch.einsum("agd,cmd->acmg", patches_agd, words_cmd).flatten(0, 1)
    plan_pmn = plan(cosines_pmn.detach(), is_word_cm.repeat(pictures, 1), config)
    return (plan_pmn * cosines_pmn).sum((1, 2)).view(pictures, texts)


class TokenMatching(nn.Module):
    """The loss with its scale."""

    def __init__(self, config: TokenMatchingConfig) -> None:
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(
        self, patches_bgd: Tensor, words_bmd: Tensor, all_patches_ngd: Tensor, all_words_nmd: Tensor, is_word_nm: Tensor, first: int
    ) -> Tensor:
        """Sum over the samples of this process, which are those from `first` on among all."""
        patches_bgd, words_bmd, all_patches_ngd, all_words_nmd = (
            F.normalize(each.float(), dim=-1) for each in (patches_bgd, words_bmd, all_patches_ngd, all_words_nmd)
        )
        scale = self.log_scale.clamp(max=MOST_SCALE).exp()
        of_pictures_bn = pair_scores(patches_bgd, all_words_nmd, is_word_nm, self.config)
        if len(all_patches_ngd) == len(patches_bgd):
            of_texts_bn = of_pictures_bn.T
        else:
            is_word_bm = is_word_nm[first : first + len(words_bmd)]
            of_texts_bn = pair_scores(all_patches_ngd, words_bmd, is_word_bm, self.config).T
        return (contrast(scale * of_pictures_bn, first) + contrast(scale * of_texts_bn, first)) / 2
