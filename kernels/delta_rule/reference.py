"""The delta rule, token by token: DeltaNet (arXiv:2406.06484, eq. 3) and, with a decay, gated DeltaNet (arXiv:2412.06464, eq. 10).

Axes: b rows   t tokens   g groups of heads that share query and key   h heads   k key channels   v value channels
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmlm.kernels.recurrence import exact_type, token_by_token


class DeltaRule(NamedTuple):
    """What every back end takes; `delta_rule` tells what it means."""

    query_btgk: Tensor
    key_btgk: Tensor
    value_bthv: Tensor
    beta_bth: Tensor
    decay_bth: Tensor | None
    document_bt: Tensor
    state_bhkv: Tensor | None
    continues_b: Tensor | None
    chunk_size: int

    def wants_gradients(self) -> bool:
        """Whether a backward pass may follow."""
        tensors = (self.query_btgk, self.key_btgk, self.value_bthv, self.beta_bth, self.decay_bth, self.state_bhkv)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def delta_rule_reference(given: DeltaRule) -> tuple[Tensor, Tensor]:
    """S <- exp(decay_t) S;  S <- S + key_t (beta_t (value_t - S^T key_t))^T;  y_t = S^T query_t;  S = 0 where a document begins.

    Padding changes nothing.
    """
    b, _, heads, v = given.value_bthv.shape
    exact = exact_type(given.value_bthv, given.beta_bth)
    query, key = (part.to(exact).repeat_interleave(heads // part.shape[2], dim=2) for part in (given.query_btgk, given.key_btgk))
    value, beta = given.value_bthv.to(exact), given.beta_bth.to(exact)
    decay = None if given.decay_bth is None else given.decay_bth.to(exact)

    def take(i: int, s: Tensor) -> tuple[Tensor, Tensor]:
        if decay is not None:
            s = s * decay[:, i, :, None, None].exp()
        correction = beta[:, i, :, None] * (value[:, i] - (s * key[:, i, :, :, None]).sum(-2))
        s = s + key[:, i, :, :, None] * correction[:, :, None]
        return s, (s * query[:, i, :, :, None]).sum(-2)

    s = value.new_zeros(b, heads, key.shape[-1], v) if given.state_bhkv is None else given.state_bhkv.to(exact)
    outputs, s = token_by_token(take, s, given.document_bt, given.continues_b)
    return (torch.stack(outputs, dim=1) if outputs else torch.zeros_like(value)).to(given.value_bthv.dtype), s
