"""Rotary positions as their equation reads. Source: RoFormer, arXiv:2104.09864, eq. 34, with channel j paired with j + half."""

from __future__ import annotations

import torch
from torch import Tensor


def turn_reference(x_bthk: Tensor, cos_btj: Tensor, sin_btj: Tensor) -> Tensor:
    """Each pair (x_j, x_{j + pairs}) turned by its angle, one after the other; channels from 2 pairs on pass."""
    exact = torch.promote_types(x_bthk.dtype, torch.float32)
    x, cos, sin = x_bthk.to(exact), cos_btj.to(exact), sin_btj.to(exact)
    pairs = cos.shape[-1]
    channels = list(x.unbind(-1))
    for j in range(pairs):
        c, s, left, right = cos[..., j, None], sin[..., j, None], channels[j], channels[j + pairs]
        channels[j], channels[j + pairs] = left * c - right * s, right * c + left * s
    return torch.stack(channels, dim=-1).to(x_bthk.dtype)
