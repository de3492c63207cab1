"""A softmax over all tokens so far, channel by channel, one token after the other. Source: LightNet, arXiv:2405.21022.

Axes: b rows   t tokens   i channels
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmlm.kernels.recurrence import exact_type, token_by_token


class RunningSoftmax(NamedTuple):
    """What every back end takes; `running_softmax` tells what it means."""

    logits_bti: Tensor
    document_bt: Tensor
    state_bi: Tensor | None
    continues_b: Tensor | None


def running_softmax_reference(given: RunningSoftmax) -> tuple[Tensor, Tensor, Tensor]:
    """z_t = log(exp(z_{t-1}) + exp(k_t));  weight_t = exp(k_t - z_t);  decay_t = z_{t-1} - z_t;  z = -inf where a document begins.

    The state is a pair (highest logit, sum of powers beside it), whose zero is the empty sum. The decay of a first token is told as 0.
    """
    exact = exact_type(given.logits_bti)
    logits = given.logits_bti.to(exact)

    def take(i: int, state: Tensor) -> tuple[Tensor, Tensor]:
        (high, total), k = state.unbind(1), logits[:, i]
        first = total == 0
        top = torch.where(first, k, torch.maximum(high, k))
        old, new = torch.where(first, 0, total * (high - top).exp()), (k - top).exp()
        decay = torch.where(first, 0, high - top + (torch.where(first, 1, total) / (old + new)).log())
        return torch.stack([top, old + new], dim=1), torch.stack([new / (old + new), decay], dim=1)

    b, _, channels = logits.shape
    pair = logits.new_zeros(b, 2, channels)
    if given.state_bi is not None:
        pair = torch.stack([given.state_bi.to(exact), torch.ones_like(given.state_bi, dtype=exact)], dim=1)
    outputs, pair = token_by_token(take, pair, given.document_bt, given.continues_b)
    weight, decay = torch.stack(outputs, dim=2).unbind(1) if outputs else (torch.zeros_like(logits), torch.zeros_like(logits))
    return weight, decay, pair[:, 0] + torch.where(pair[:, 1] == 0, 1, pair[:, 1]).log()
