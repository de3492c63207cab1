"""A fixed number of learned queries that look at many vectors: what a long or large input is to a decoder.

    queries -> (attention among them -> attention to the vectors -> feed-forward) x layers -> norm

Source: Q-Former of BLIP-2, arXiv:2301.12597, without its text side; norms stand before each part.

Axes: b samples   k queries   n vectors   d width   h heads   e channels of a head
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlm.encoders.config import QueryFormerConfig
from mmlm.parameters import linear


class QueryFormer(nn.Module):
    """Vectors [b, n, width] -> [b, k, width]."""

    def __init__(self, config: QueryFormerConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.queries = nn.Parameter(torch.randn(config.num_queries, width) * width**-0.5)
        self.layers = nn.ModuleList(QueryLayer(width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)

    def reset_parameters_own(self) -> None:
        """Queries differ from the start, or all would learn the same."""
        nn.init.normal_(self.queries, std=1.0)

    def forward(
        self,
        vectors_bnd: Tensor,
        added_bd: Tensor | None = None,
        mask_bn: Tensor | None = None,
        *,
        begins_bkd: Tensor | None = None,
        bias_kn: Tensor | None = None,
    ) -> Tensor:
        """added_bd: what is added to the queries of each sample, begins_bkd: to each query of each. mask_bn: which vectors are there; of a
        sample at least one is. bias_kn: added to the scores of each query and vector."""
        q_bkd = self.queries.expand(len(vectors_bnd), -1, -1)
        if added_bd is not None:
            q_bkd = q_bkd + added_bd[:, None]
        if begins_bkd is not None:
            q_bkd = q_bkd + begins_bkd
        seen = None if mask_bn is None else mask_bn[:, None, None]
        if bias_kn is not None:
            seen = bias_kn[None, None].to(q_bkd) if seen is None else bias_kn.masked_fill(~seen, -torch.inf).to(q_bkd)
        for layer in self.layers:
            q_bkd = layer(q_bkd, vectors_bnd, seen)
        out: Tensor = self.norm(q_bkd)
        return out


class QueryLayer(nn.Module):
    """Queries look at one another, then at the vectors."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.among, self.across = QueryAttention(width, num_heads), QueryAttention(width, num_heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.up = linear(width, 4 * width, "query", "query_ffn", bias=True)
        self.down = linear(4 * width, width, "query_ffn", "query", bias=True)

    def forward(self, q_bkd: Tensor, vectors_bnd: Tensor, seen: Tensor | None) -> Tensor:
        """[b, k, d] again. seen: which vectors, or what is added to the scores; it spreads to [b, h, k, n]."""
        held = self.norms[0](q_bkd)
        q_bkd = q_bkd + self.among(held, held, None)
        q_bkd = q_bkd + self.across(self.norms[1](q_bkd), vectors_bnd, seen)
        return q_bkd + self.down(F.gelu(self.up(self.norms[2](q_bkd)), approximate="tanh"))


class QueryAttention(nn.Module):
    """Attention of queries to vectors, or to themselves."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = linear(width, width, "query", "heads", bias=False)
        self.kv = linear(width, 2 * width, "query", "heads", bias=False)
        self.out = linear(width, width, "heads", "query", bias=True)

    def forward(self, q_bkd: Tensor, x_bnd: Tensor, seen: Tensor | None) -> Tensor:
        """[b, k, d]. seen: as in QueryLayer."""
        q_bhke = self.q(q_bkd).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_bhne, v_bhne = self.kv(x_bnd).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if seen is not None and seen.dtype != torch.bool:
            seen = seen.to(q_bhke.dtype)
        out_bhke = F.scaled_dot_product_attention(q_bhke, k_bhne, v_bhne, attn_mask=seen)
        out: Tensor = self.out(out_bhke.transpose(1, 2).flatten(2))
        return out
