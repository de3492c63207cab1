"""Softmax attention over packed sequences, along one axis of a grid, or over a cache.

Axes: b rows   t tokens   d model width   h query heads   g key and value heads   k channels of a head   n sequences   l their tokens
Source: arXiv:1706.03762; grouped heads arXiv:2305.13245; query and key norm as in Qwen3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import AttentionConfig
from mmlm.backbone.norms import RmsNorm
from mmlm.backbone.rope import Rope
from mmlm.base.errors import RecipeError
from mmlm.kernels.attention.behind import behind_trunk
from mmlm.kernels.attention.fast import attention, packed_attention, takes_documents
from mmlm.kernels.documents import documents
from mmlm.kernels.rope.fast import rope
from mmlm.layout import Layout
from mmlm.parameters import exact, linear


class Attention(nn.Module):
    """One layer of attention. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: AttentionConfig, width: int) -> None:
        super().__init__()
        if config.head_size is None and width % config.num_heads:
            raise RecipeError(f"attention: width {width} is not a multiple of num_heads {config.num_heads}; give head_size.")
        self.config = config
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads or config.num_heads
        self.head_size = config.head_size or width // config.num_heads
        self.sizes = [self.num_heads * self.head_size, *[self.num_kv_heads * self.head_size] * 2]
        self.qkv = linear(width, sum(self.sizes), "residual", "heads", bias=config.qkv_bias)
        self.out = linear(self.sizes[0], width, "heads", "residual", bias=config.out_bias)
        self.out.is_residual_output = True
        self.gate = linear(width, self.sizes[0], "residual", "heads", bias=config.qkv_bias) if config.gate else None
        self.rope = Rope(config.rope, self.head_size) if config.rope else None
        self.q_norm = RmsNorm(self.head_size, config.qk_norm_eps) if config.qk_norm else None
        self.k_norm = RmsNorm(self.head_size, config.qk_norm_eps) if config.qk_norm else None

    @property
    def shares_trunks(self) -> bool:
        """Whether every token sees the whole of what stands before it, which rows behind one prefix can then meet together."""
        return self.config.window is None and self.config.soft_cap is None and not self.config.alibi

    def _slopes(self, device: torch.device) -> Tensor | None:
        return alibi_slopes(self.num_heads).to(device) if self.config.alibi else None

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """An empty state with room for max_length tokens. Raises RecipeError where this layer cannot go token by token."""
        if self.config.over is not None:
            raise RecipeError(f"attention over {self.config.over!r} works on whole grids and cannot go token by token.")
        if self.config.causal is False:
            raise RecipeError("attention with causal: false sees later tokens and cannot go token by token.")
        shape = (batch, self.num_kv_heads, max(max_length, 1), self.head_size)
        tensors = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("key", "value")}
        return State(tensors, {"key": "kv", "value": "kv"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses."""
        causal = layout.causal if self.config.causal is None else self.config.causal
        if state is not None:
            return self._continue(x_btd, layout, state, causal), state, {}
        q, k, v = self._project(x_btd, *self._angles(layout))
        if self._goes_by_rows(x_btd, layout):
            document = None if layout.is_simple else layout.document
            rows = (part.transpose(1, 2) for part in (q, k, v))
            y = attention(*rows, **self._rules(causal, x_btd.device), document_bt=document).transpose(1, 2)
        else:
            plan = layout.plan(self.config.over, causal=causal)
            q, k, v = (part.flatten(0, 1) for part in (q, k, v))
            y = packed_attention(q, k, v, plan, **self._rules(causal, x_btd.device))
        return self._finish(y.reshape(*x_btd.shape[:2], -1), x_btd), None, {}

    def _goes_by_rows(self, x_btd: Tensor, layout: Layout) -> bool:
        """Whether rows go to the kernel as they lie, packed ones with their documents. Padding between tokens would lengthen distances."""
        config = self.config
        if config.over is not None or not layout.has_documents_alone:
            return False
        if layout.is_simple:
            return True
        if config.sinks or not takes_documents(x_btd, self.head_size):
            return False
        return (config.window is None and not config.alibi) or documents(layout.document).padded_at_end

    def _angles(self, layout: Layout) -> tuple[Tensor | None, Tensor | None]:
        """cos and sin at every token; shared by all layers with the same rotation."""
        rope = self.rope
        return (None, None) if rope is None else layout.memo(("rope", rope.key), lambda: rope.angles(layout.position))

    def _rules(self, causal: bool, device: torch.device) -> dict[str, Any]:
        """What the configuration says of scores, as arguments of the kernels."""
        config = self.config
        return {
            "causal": causal, "window": config.window, "sinks": config.sinks, "scale": config.score_scale, "softcap": config.soft_cap,
            "slopes_h": self._slopes(device),
        }  # fmt: skip

    def _project(self, x: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [..., h, k], keys and values [..., g, k] of vectors [..., d]; normed and turned."""
        q, k, v = (part.unflatten(-1, (-1, self.head_size)) for part in self.qkv(x).split(self.sizes, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if cos is not None and sin is not None:
            q, k = rope(q, k, cos, sin)
        return q, k, v

    def _finish(self, y: Tensor, x: Tensor) -> Tensor:
        """Attended values [..., h * k] through the gate, which reads the input [..., d], and the output projection."""
        return self.out(y if self.gate is None else y * torch.sigmoid(self.gate(x)))

    def _continue(self, x_btd: Tensor, layout: Layout, state: State, causal: bool) -> Tensor:
        """The new tokens (documents padded at their end) attend to the cached ones and to one another; the state takes them in."""
        b, t, _ = x_btd.shape
        q, k, v = self._project(x_btd, *self._angles(layout))
        real = layout.document > 0
        if state.trunk and not (self.shares_trunks and layout.reach is None):
            state.unshare()
        state.room_for(t)
        trunk = state.trunk_size
        before = state.length
        place = before[:, None] + torch.arange(t, device=before.device)
        rows = torch.arange(b, device=before.device)[:, None].expand(b, t)
        for name, new in (("key", k), ("value", v)):
            kept = state.tensors[name]
            kept[rows[real], :, place[real] - trunk] = new[real].to(kept.dtype)
        state.length = before + real.sum(1)
        index = torch.arange(trunk, int(state.length.max()), device=before.device)
        visible = index <= place[:, :, None]
        if not (causal and layout.is_simple):
            among = layout.dense(causal=causal)
            new_at = index[None] - before[:, None]
            inside = (new_at >= 0) & (new_at < t)
            looked = among.gather(2, new_at.clamp(0, t - 1)[:, None].expand(b, t, len(index)))
            visible = torch.where(inside[:, None], looked, index < before[:, None, None])
            if (reached := layout.reached(len(index))) is not None:
                visible = visible & reached
        config = self.config
        if config.window is not None:
            visible = visible & ((place[:, :, None] - index < config.window) | (index < config.sinks))
        key, value = (state.tensors[name][:, :, : len(index)].to(q.dtype) for name in ("key", "value"))
        if trunk:
            above_k, above_v = (state.trunk[name].to(q.dtype) for name in ("key", "value"))
            y = behind_trunk(q.transpose(1, 2), above_k, above_v, key, value, visible, config.score_scale)
        else:
            y = self._over_cache(q.transpose(1, 2), key, value, visible, place)
        return self._finish(y.transpose(1, 2).flatten(2), x_btd)

    def _over_cache(self, q_bhtk: Tensor, k_bglk: Tensor, v_bglk: Tensor, visible_btl: Tensor, place_bt: Tensor) -> Tensor:
        """Attention of new tokens over the cached ones [b, h, t, k]."""
        config = self.config
        bias = self._bias(place_bt, torch.arange(k_bglk.shape[2], device=place_bt.device), q_bhtk)
        if config.soft_cap is None:
            mask = visible_btl[:, None] if bias is None else torch.where(visible_btl[:, None], bias, -torch.inf)
            return F.scaled_dot_product_attention(
                q_bhtk, k_bglk, v_bglk, attn_mask=mask, scale=config.score_scale, enable_gqa=self.num_heads != self.num_kv_heads
            )
        k, v = (exact(part).repeat_interleave(self.num_heads // self.num_kv_heads, dim=1) for part in (k_bglk, v_bglk))
        scores = exact(q_bhtk) @ k.transpose(-1, -2) * (config.score_scale or self.head_size**-0.5)
        scores = config.soft_cap * torch.tanh(scores / config.soft_cap)
        scores = scores if bias is None else scores + bias
        seen = visible_btl[:, None]
        p = torch.where(seen, scores, -torch.inf).softmax(-1)
        return (torch.where(seen.any(-1, keepdim=True), p, 0) @ v).to(q_bhtk.dtype)

    def looks(self, x_btd: Tensor, layout: Layout) -> Tensor:
        """How much each token looks at each other, [b, h, t, t], of rows without padding: to be shown, not to be fast."""
        b, t, _ = x_btd.shape
        q, k, _ = self._project(x_btd, *self._angles(layout))
        place = torch.arange(t, device=x_btd.device)
        visible = layout.dense(causal=self.config.causal)
        if self.config.window is not None:
            visible = visible & ((place[:, None] - place < self.config.window) | (place < self.config.sinks))
        each = torch.eye(t, device=q.device, dtype=q.dtype).expand(b, self.num_kv_heads, t, t)
        return self._over_cache(q.transpose(1, 2), k.transpose(1, 2), each, visible, place.expand(b, t))

    def _bias(self, place_bt: Tensor, index_l: Tensor, like: Tensor) -> Tensor | None:
        """What ALiBi adds to the scores [b, h, t, l]."""
        if (slopes := self._slopes(like.device)) is None:
            return None
        return -slopes.to(like)[:, None, None] * (place_bt[:, :, None] - index_l).abs()[:, None]


def alibi_slopes(num_heads: int) -> Tensor:
    """float32 [h]: 2^(-8 i / h) for powers of two; else those of the next lower power and every other one of the next higher."""
    power = 1 << (num_heads.bit_length() - 1)
    found = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    found += [2 ** (-8 * (2 * head + 1) / (2 * power)) for head in range(num_heads - power)]
    return torch.tensor(found)
