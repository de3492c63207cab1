"""LightNet: linear attention with an additive recurrence, which forgets as a softmax over the tokens does and not with the distance.

    q = silu(W_q x), k = W_k x, v = W_v x;   z_t = log of the sum over s <= t of exp(k_s), for each key channel
    S_t = exp(z_{t-1} - z_t) S_{t-1} + exp(k_t - z_t) v_t^T = softmax over s <= t of k, times v;   y_t = S_t^T q_t
    out = W_o (norm(y) * gate(x)),  gate of two projections with few channels between
Where a layout is not causal the softmax goes over the whole document: one pass, the same for any order of its tokens. Positions are in
queries and keys (MD-LRPE on one to three axes). S and z are reset where a document of a packed row begins and are kept in float32
(float64 for float64 inputs); a state of length 0 has no z yet.
Source: arXiv:2405.21022.

Axes: b rows   t tokens   d width   h heads   k key channels, twice as many with LRPE   v value channels   i all heads' channels
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import LightNetConfig
from mmlm.backbone.lrpe import Positions
from mmlm.backbone.norms import RmsNorm
from mmlm.backbone.sequences import by_sequence, linear_attention
from mmlm.base.errors import RecipeError
from mmlm.kernels.gla.fast import gla
from mmlm.kernels.running_softmax.fast import running_softmax
from mmlm.layout import Layout
from mmlm.parameters import exact, linear

GATES = {"silu": F.silu, "sigmoid": torch.sigmoid}


class LightNet(nn.Module):
    """One LightNet layer. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: LightNetConfig, width: int) -> None:
        super().__init__()
        if config.head_size is None and width % config.num_heads:
            raise RecipeError(f"lightnet: width {width} is not a multiple of num_heads {config.num_heads}; give head_size.")
        self.config, self.num_heads = config, config.num_heads
        self.head_size = config.head_size or width // config.num_heads
        inner, rank = self.num_heads * self.head_size, (config.gate_rank or config.num_heads) if config.output_gate else 0
        self.sizes = [inner, inner, inner, rank]
        self.input = linear(width, sum(self.sizes), "residual", "heads", bias=config.bias)
        self.gate = linear(rank, inner, "rank", "heads", bias=config.bias) if config.output_gate else None
        self.out = linear(inner, width, "heads", "residual", bias=config.bias)
        self.out.is_residual_output = True
        self.positions = Positions(config.lrpe, config.rope, self.num_heads, self.head_size)
        self.norm = RmsNorm(self.head_size, config.norm_eps, "head")

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length. Raises RecipeError where this layer cannot go token by token."""
        if self.config.causal is False:
            raise RecipeError("lightnet with causal: false sees later tokens and cannot go token by token.")
        keys = self.positions.factor * self.head_size
        tensors = {
            "state": torch.zeros(batch, self.num_heads, keys, self.head_size, device=device),
            "log_sum": torch.zeros(batch, self.num_heads * self.head_size, device=device),
        }
        return State(tensors, dict.fromkeys(tensors, "recurrent"), torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that this layer cannot express.
        """
        causal = layout.causal if self.config.causal is None else self.config.causal
        layout.require_left_to_right("lightnet", or_whole=True)
        if state is not None and not causal:
            raise RecipeError("lightnet that sees later tokens cannot go token by token; the layout must be causal.")
        q, k_bti, v, gate = self.input(x_btd).split(self.sizes, dim=-1)
        q, v = (part.unflatten(-1, (self.num_heads, self.head_size)) for part in (F.silu(q), v))
        y_bthv = self._over_all_before(q, k_bti, v, layout, state) if causal else self._over_documents(q, k_bti, v, layout)
        y_bti = self.norm(y_bthv).flatten(2)
        if self.gate is not None and self.config.output_gate is not None:
            y_bti = y_bti * GATES[self.config.output_gate](self.gate(gate))
        return self.out(y_bti), state, {}

    def _over_all_before(self, q: Tensor, k_bti: Tensor, v: Tensor, layout: Layout, state: State | None) -> Tensor:
        """y [b, t, h, v] of the recurrence; the state takes the tokens in."""
        held = state.tensors if state is not None else {}
        goes_on = state.length > 0 if state is not None else None
        weight, decay, log_sum = running_softmax(k_bti, layout.document, held.get("log_sum"), continues=goes_on)
        q, k = self.positions(q, weight.view(q.shape), layout, v.dtype)
        decay = decay.view(v.shape[:3] + (-1,)).repeat(1, 1, 1, self.positions.factor)
        y_bthv, last = gla(q, k, v, decay, layout.document, held.get("state"), continues=goes_on)
        if state is not None:
            state.tensors = {"state": last, "log_sum": log_sum}
            state.length = state.length + (layout.document > 0).sum(1)
        return y_bthv

    def _over_documents(self, q: Tensor, k_bti: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """y [b, t, h, v] of sums over whole documents."""
        weight = by_sequence(layout, lambda k: exact(k).softmax(1), k_bti, who="lightnet")
        q, k = self.positions(q, weight.view(q.shape), layout, v.dtype)
        return by_sequence(layout, linear_attention, q, k, v, who="lightnet").view_as(v)
