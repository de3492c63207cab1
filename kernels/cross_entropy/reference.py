"""The terms of the language-model loss from full logits.

Axes: n tokens   d width   v vocabulary rows
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logit_terms_reference(
    x_nd: Tensor,
    weight_vd: Tensor,
    target_n: Tensor,
    bias_v: Tensor | None,
    run: range,
    softcap: float | None,
    product_dtype: torch.dtype,
    more: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of z = cap tanh((x weight^T + bias) / cap) over a run of rows.

    Of each token: log sum_v exp z_v, z at the target, mean of z, entropy, argmax.
    """
    exact = torch.promote_types(x_nd.dtype, torch.float32)
    part = slice(run.start, run.stop)
    z = F.linear(x_nd.to(product_dtype), weight_vd[part].to(product_dtype)).to(exact)
    if bias_v is not None:
        z = z + bias_v[part].to(exact)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    log_p = z.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return z.logsumexp(-1), z.gather(1, target_n[:, None])[:, 0], z.mean(-1), entropy, z.argmax(-1)
