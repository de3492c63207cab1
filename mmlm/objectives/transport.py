"""Plans that say how much of each word goes to each patch, for many pairs of a text and a picture at once. No gradient flows through them.

    relaxed     each word gives 1/m of the mass, each patch takes at most capacity/n; the cheapest such plan, by proximal steps of inexact
                transport. A word more, which costs nothing and counts for nothing, takes the room that is left over
    hungarian   one word, one patch: the exact linear assignment; of more words than patches some stay without one
    max         each word to its best patch, however full that is

Source: IPOT, arXiv:1802.04307, with the order of updates that leaves the patches' capacities exact; FILIP, arXiv:2111.07783 (max).

Axes: p pairs   m words   n patches
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlm.base.errors import require
from mmlm.objectives.config import TokenMatchingConfig


@torch.no_grad()
def plan(cosines_pmn: Tensor, is_word_pm: Tensor, config: TokenMatchingConfig) -> Tensor:
    """The plan [p, m, n]; what is no word has none. Every pair needs a word."""
    makers = {"relaxed": relaxed, "hungarian": hungarian, "max": one_sided}
    return makers[config.plan](cosines_pmn.float(), is_word_pm, config)


def relaxed(cosines_pmn: Tensor, is_word_pm: Tensor, config: TokenMatchingConfig) -> Tensor:
    """By `config.iterations` proximal steps of strength `config.sharpness`; the capacities hold exactly, each word's 1/m in the limit."""
    patches, capacity = cosines_pmn.shape[-1], config.capacity
    kernel_pmn = torch.exp((cosines_pmn - 1) * config.sharpness) * is_word_pm[..., None]
    given_pm = is_word_pm / is_word_pm.sum(-1, keepdim=True)
    plan_pmn, dummy_pn = is_word_pm[..., None].expand_as(cosines_pmn).to(cosines_pmn), torch.ones_like(cosines_pmn[:, 0])
    scale_pn = torch.full_like(dummy_pn, 1 / patches)
    for _ in range(config.iterations):
        plan_pmn, had_pn = kernel_pmn * plan_pmn, dummy_pn
        for _ in range(config.inner):
            rows_pm = given_pm / torch.einsum("pmn,pn->pm", plan_pmn, scale_pn).clamp_min(1e-30)
            dummy_p = (capacity - 1) / (had_pn * scale_pn).sum(-1).clamp_min(1e-30)
            taken_pn = torch.einsum("pmn,pm->pn", plan_pmn, rows_pm) + dummy_p[:, None] * had_pn
            scale_pn = capacity / patches / taken_pn.clamp_min(1e-30)
        plan_pmn = rows_pm[..., None] * plan_pmn * scale_pn[:, None]
        dummy_pn = dummy_p[:, None] * had_pn * scale_pn
    return plan_pmn


def hungarian(cosines_pmn: Tensor, is_word_pm: Tensor, config: TokenMatchingConfig) -> Tensor:
    """One pair after the other; for few pairs."""
    optimize = require("scipy.optimize", "vision")
    found_pmn = torch.zeros_like(cosines_pmn)
    for pair, (cosines_mn, is_word_m) in enumerate(zip(cosines_pmn, is_word_pm, strict=True)):
        words = is_word_m.nonzero()[:, 0]
        rows, columns = optimize.linear_sum_assignment(cosines_mn[words].cpu().numpy(), maximize=True)
        found_pmn[pair, words[torch.as_tensor(rows)], torch.as_tensor(columns)] = 1 / len(words)
    return found_pmn


def one_sided(cosines_pmn: Tensor, is_word_pm: Tensor, config: TokenMatchingConfig) -> Tensor:
    """All of a word to one patch."""
    best_pm = cosines_pmn.argmax(-1)
    found_pmn = torch.zeros_like(cosines_pmn).scatter_(-1, best_pm[..., None], 1.0)
    return found_pmn * (is_word_pm / is_word_pm.sum(-1, keepdim=True))[..., None]
