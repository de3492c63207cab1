"""Attention of many rows that go on from one prefix: the prefix is read once for all, and joined with what each row has of its own.

Softmax over two parts of the keys is their two softmaxes weighted by the sums of their exponentials, as blocks are joined in FlashAttention
(arXiv:2205.14135, section 3.1). Nothing is as large as rows times prefix: the scores are never held, keys and values never repeated.

Axes: b rows   h query heads   g key and value heads   t new tokens   n tokens of the prefix   l own tokens   k channels
"""

from __future__ import annotations

import torch
from torch import Tensor


def behind_trunk(
    q_bhtk: Tensor, above_k: Tensor, above_v: Tensor, own_k: Tensor, own_v: Tensor, visible_btl: Tensor, scale: float | None
) -> Tensor:
    """Attention [b, h, t, k] to all of above [1, g, n, k], and to own [b, g, l, k] where `visible` bool [b, t, l] says so."""
    b, h, t, size = q_bhtk.shape
    g = own_k.shape[1]
    scale = size**-0.5 if scale is None else scale
    far_q = q_bhtk.unflatten(1, (g, h // g)).transpose(0, 1).reshape(1, g, -1, size)
    far, far_sum = _attend(far_q, above_k, above_v, None, scale)
    far = far.unflatten(2, (b, h // g, t)).squeeze(0).transpose(0, 1).flatten(1, 2)
    far_sum = far_sum.unflatten(2, (b, h // g, t)).squeeze(0).transpose(0, 1).flatten(1, 2)
    near, near_sum = _attend(q_bhtk, own_k, own_v, visible_btl[:, None], scale)
    seen = visible_btl.any(-1)[:, None]
    share = torch.where(seen, torch.sigmoid(near_sum - far_sum), 0)[..., None]
    return (torch.where(seen[..., None], near, 0) * share + far * (1 - share)).to(q_bhtk.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of the sum of the exponentials of its scores [b, h, t], the latter in float32 or better."""
    if _fused(q):
        bias = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
    exact = torch.promote_types(q.dtype, torch.float32)
    k, v = (part.to(exact).repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    scores = q.to(exact) @ k.transpose(-1, -2) * scale
    scores = scores if mask is None else torch.where(mask, scores, -torch.inf)
    sums = scores.logsumexp(-1)
    return (scores - sums[..., None]).exp() @ v, sums


def _fused(q: Tensor) -> bool:
    """Whether PyTorch has a form for these numbers that gives the sums too."""
    return q.device.type == "cpu" and q.dtype != torch.float16
