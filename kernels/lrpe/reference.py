"""Relative positions of linear attention as their equation reads: cosines and sines of a rotation apart. Source: LRPE, arXiv:2307.09270."""

from __future__ import annotations

import torch
from torch import Tensor


def lrpe_reference(q_bthk: Tensor, k_bthk: Tensor, angle_bthk: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[x cos(angle), x sin(angle)] of queries and keys."""
    exact = torch.promote_types(angle_bthk.dtype, torch.float32)
    angle = angle_bthk.to(exact)
    apart = (torch.cat([x.to(exact) * angle.cos(), x.to(exact) * angle.sin()], dim=-1) for x in (q_bthk, k_bthk))
    q, k = (x.to(dtype) for x in apart)
    return q, k
