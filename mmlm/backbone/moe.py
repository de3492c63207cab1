"""Mixture of experts.

Each token is sent to its top_k experts by the router's probabilities, computed in float32 (float64 for float64 inputs); each expert runs
once on the tokens it got.
Sources: arXiv:1701.06538; balance loss E * sum_e f_e P_e of Switch, arXiv:2101.03961 eq. 4; router z-loss of ST-MoE, arXiv:2202.08906.

Axes: n tokens   e experts
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmlm.backbone.config import MoeConfig, SwigluConfig
from mmlm.backbone.feed_forward import FeedForward
from mmlm.layout import Layout
from mmlm.parameters import exact, linear


class MixtureOfExperts(nn.Module):
    """[b, t, d] -> [b, t, d], and the losses `balance` and `router_z`, means over tokens that are not padding, weighted."""

    aux_names = ("balance", "router_z")

    def __init__(self, config: MoeConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.router = linear(width, config.num_experts, "residual", "experts", bias=False)
        expert = SwigluConfig(hidden=config.hidden)
        self.experts = nn.ModuleList(FeedForward(expert, width) for _ in range(config.num_experts))
        shared = SwigluConfig(hidden=config.shared_hidden or config.hidden)
        self.shared = nn.ModuleList(FeedForward(shared, width) for _ in range(config.num_shared))
        gated = config.num_shared and config.shared_gate
        self.shared_gate = linear(width, 1, "residual", "gate", bias=False) if gated else None

    def forward(self, x_btd: Tensor, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
        """y [b, t, d] and the auxiliary losses."""
        config, x_nd, real_n = self.config, x_btd.flatten(0, 1), (layout.document > 0).flatten()
        scores_ne = exact(self.router(x_nd))
        probabilities_ne = scores_ne.softmax(-1)
        weight_nk, chosen_nk = probabilities_ne.topk(config.top_k, dim=-1)
        if config.renormalize:
            weight_nk = weight_nk / weight_nk.sum(-1, keepdim=True)
        taken_nk = self._taken(chosen_nk, probabilities_ne, real_n)
        y_nd = sum((expert(x_nd, layout)[0] for expert in self.shared), start=torch.zeros_like(x_nd))
        if self.shared_gate is not None:
            y_nd = y_nd * torch.sigmoid(self.shared_gate(x_nd))
        for number, expert in enumerate(self.experts):
            token, slot = ((chosen_nk == number) & taken_nk).nonzero(as_tuple=True)
            if len(token):
                out, _ = expert(x_nd[token], layout)
                y_nd = y_nd.index_add(0, token, (out * weight_nk[token, slot, None]).to(y_nd.dtype))
        chosen_nk, scores_ne, probabilities_ne = chosen_nk[real_n], scores_ne[real_n], probabilities_ne[real_n]
        tokens = max(len(chosen_nk), 1)
        load_e = torch.bincount(chosen_nk.flatten(), minlength=config.num_experts) / (tokens * config.top_k)
        balance = config.num_experts * (load_e * probabilities_ne.sum(0) / tokens).sum()
        z = torch.logsumexp(scores_ne, dim=-1).square().sum() / tokens
        return y_nd.view_as(x_btd), {"balance": config.balance_weight * balance, "router_z": config.router_z_weight * z}

    def _taken(self, chosen_nk: Tensor, probabilities_ne: Tensor, real_n: Tensor) -> Tensor:
        """bool [n, k], which choices find room: all, or in training as many an expert as its capacity, padding never counted."""
        config = self.config
        if config.capacity_factor is None or not self.training:
            return torch.ones_like(chosen_nk, dtype=torch.bool)
        room = math.ceil(config.capacity_factor * config.top_k * int(real_n.sum()) / config.num_experts)
        wanted_ne = torch.zeros_like(probabilities_ne, dtype=torch.bool).scatter(1, chosen_nk, True) & real_n[:, None]
        if config.priority == "probability":
            order_ne = torch.where(wanted_ne, probabilities_ne.detach(), -1.0).argsort(dim=0, descending=True, stable=True)
        else:
            order_ne = torch.arange(len(real_n), device=real_n.device)[:, None].expand_as(wanted_ne)
        ahead_ne = wanted_ne.gather(0, order_ne).cumsum(0)
        place_ne = torch.zeros_like(ahead_ne).scatter(0, order_ne, ahead_ne)
        return ((place_ne <= room) & wanted_ne).gather(1, chosen_nk)
