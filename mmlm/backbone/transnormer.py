"""TransNormer: linear attention whose output is normed instead of divided (NormAttention), and attention inside blocks (DiagAttention).

    linear   q = phi(W_q x), k = phi(W_k x), v = W_v x;   y_t = S_t^T q_t,  S_t = sum over s <= t of k_s v_s^T;   out = W_o norm(y)
    blocks   softmax or relu attention within blocks of tokens counted from the document's start, relu with the norm
A denominator would scale the gradient of a query without bound; a norm does not (the paper, section 3). The linear form is the recurrence
of Mamba-2 with decay one; its state grows with the number of tokens and is kept in float32 (float64 for float64 inputs). The state of the
blocks form is the keys and values of the block that is open.
Source: arXiv:2210.10340; gate: arXiv:2307.14995.

Axes: b rows   t tokens   d width   h heads   k key channels   v value channels   n blocks or documents   w tokens of a block
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import TransNormerConfig
from mmlm.backbone.lrpe import Positions
from mmlm.backbone.norms import RmsNorm
from mmlm.backbone.sequences import by_sequence, linear_attention
from mmlm.base.errors import RecipeError
from mmlm.kernels.attention.fast import attention
from mmlm.kernels.attention.plan import reorder
from mmlm.kernels.documents import documents
from mmlm.kernels.ssd.fast import ssd
from mmlm.layout import Layout
from mmlm.parameters import exact, linear


class TransNormer(nn.Module):
    """One layer in one of the two forms. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: TransNormerConfig, width: int) -> None:
        super().__init__()
        if config.head_size is None and width % config.num_heads:
            raise RecipeError(f"transnormer: width {width} is not a multiple of num_heads {config.num_heads}; give head_size.")
        self.config, self.num_heads = config, config.num_heads
        self.head_size = config.head_size or width // config.num_heads
        inner = self.num_heads * self.head_size
        self.input = linear(width, inner * (4 if config.gate else 3), "residual", "heads", bias=config.bias)
        self.out = linear(inner, width, "heads", "residual", bias=config.bias)
        self.out.is_residual_output = True
        is_linear = config.form == "linear"
        self.positions = Positions(config.lrpe if is_linear else None, config.rope, self.num_heads, self.head_size)
        sizes = (self.head_size, "head") if config.norm_heads else (inner, "heads")
        self.norm = RmsNorm(sizes[0], config.norm_eps, sizes[1]) if is_linear or config.scores == "relu" else None

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length. Raises RecipeError where this layer cannot go token by token."""
        if self.config.causal is False:
            raise RecipeError("transnormer with causal: false sees later tokens and cannot go token by token.")
        if self.config.form == "linear":
            shape = (batch, self.num_heads, self.head_size, self.positions.factor * self.head_size)
            tensors = {"state": torch.zeros(shape, device=device)}
        else:
            shape = (batch, self.config.block_size, self.num_heads, self.head_size)
            tensors = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("key", "value")}
        return State(tensors, dict.fromkeys(tensors, "recurrent"), torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that this layer cannot express.
        """
        causal = layout.causal if self.config.causal is None else self.config.causal
        layout.require_left_to_right("transnormer", or_whole=True)
        if state is not None and not causal:
            raise RecipeError("transnormer that sees later tokens cannot go token by token; the layout must be causal.")
        q, k, v, *gate = self.input(x_btd).unflatten(-1, (-1, self.num_heads, self.head_size)).unbind(2)
        if self.config.form == "linear":
            q, k = self._feature(q), self._feature(k)
        if gate:
            v = F.silu(v)
        q, k = self.positions(q, k, layout, v.dtype)
        work = self._linear if self.config.form == "linear" else self._blocks
        y_bthv = work(q, k, v, layout, state, causal)
        if state is not None:
            state.length = state.length + (layout.document > 0).sum(1)
        y = self._normed(y_bthv)
        if gate:
            y = y * F.silu(gate[0].flatten(2))
        return self.out(y), state, {}

    def _feature(self, x: Tensor) -> Tensor:
        kind = self.config.feature
        return x if kind == "none" else F.elu(x) if kind == "elu" else F.elu(x) + 1

    def _normed(self, y_bthv: Tensor) -> Tensor:
        if self.norm is None:
            return y_bthv.flatten(2)
        return self.norm(y_bthv).flatten(2) if self.config.norm_heads else self.norm(y_bthv.flatten(2))

    def _linear(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, state: State | None, causal: bool) -> Tensor:
        """Linear attention [b, t, h, v]."""
        if not causal:
            return by_sequence(layout, linear_attention, q, k, v, who="transnormer").view_as(v)
        held = state.tensors["state"] if state is not None else None
        like = {"dtype": exact(v).dtype, "device": v.device}
        ones, zeros = torch.ones(v.shape[:3], **like), torch.zeros(v.shape[2], **like)
        y_bthv, last = ssd(v, ones, zeros, k, q, layout.document, held)
        if state is not None:
            state.tensors = {"state": last}
        return y_bthv

    def _blocks(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, state: State | None, causal: bool) -> Tensor:
        """Attention within blocks [b, t, h, v]."""
        if state is None:
            size = self.config.block_size
            blocks = layout.memo(("blocks", size), lambda: _cut(*_places(layout.document), size))
            return self._within(q, k, v, blocks, causal)[0]
        if v.shape[1] == 1:
            return self._step(q, k, v, layout, state)
        size, held = self.config.block_size, state.tensors
        open_b = state.length % size  # tokens in the open block
        real, place = _places(layout.document.clamp_max(1))
        slot = torch.arange(size, device=open_b.device)
        real = torch.cat([slot < open_b[:, None], real], dim=1)
        place = torch.cat([slot.expand(len(place), size), place + open_b[:, None]], dim=1)
        blocks = _cut(real, place, size)
        k, v = (torch.cat([held[name].to(new.dtype), new], dim=1) for name, new in (("key", k), ("value", v)))
        y, *kept = self._within(F.pad(q, (0, 0, 0, 0, size, 0)), k, v, blocks, causal)
        last = torch.where(real, blocks.number, -1).amax(1)
        for name, new in zip(("key", "value"), kept):
            held[name] = torch.where((last >= 0)[:, None, None, None], new[last.clamp_min(0)].to(held[name].dtype), held[name])
        return y[:, size:]

    def _within(self, q: Tensor, k: Tensor, v: Tensor, blocks: _Blocks, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs [b, t, h, v]; keys and values in blocks [n, w, h, channels]."""
        q_n, k_n, v_n = (blocks.take(x) for x in (q, k, v))
        mask = None if causal or blocks.filled is None else blocks.filled[:, None, None]
        y_n = self._scores(q_n, k_n, v_n, causal, mask)
        return blocks.put_back(y_n, v.shape), k_n, v_n

    def _scores(self, q_nwhk: Tensor, k_nwhk: Tensor, v_nwhv: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_nwhk, k_nwhk, v_nwhv))
        if self.config.scores == "softmax":
            return attention(q, k, v, causal=causal, mask=mask, scale=self.head_size**-0.5).transpose(1, 2)
        scores = F.relu(q @ k.transpose(-1, -2)) * self.head_size**-0.5
        if causal:
            scores = scores.tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, 0)
        return (scores @ v).transpose(1, 2)

    def _step(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, state: State) -> Tensor:
        """One token a row: it goes into its slot of the open block and looks at the slots up to that."""
        held, slot = state.tensors, (state.length % self.config.block_size)[:, None]
        index = torch.arange(self.config.block_size, device=slot.device)
        here = (index == slot) & (layout.document > 0)
        for name, new in (("key", k), ("value", v)):
            held[name] = torch.where(here[:, :, None, None], new.to(held[name].dtype), held[name])
        seen = (index <= slot)[:, None, None]
        return self._scores(q, held["key"].to(q.dtype), held["value"].to(v.dtype), False, seen)


@dataclass(frozen=True)
class _Blocks:
    """Tokens in blocks. index [n w + 1]: the token of each slot, or one past the last for none; back [b t + 1]: the slot of each token, or
    one past the last.   filled: bool [n, w], None where all slots are.   number: long [b, t], the block of each token."""

    index: Tensor
    back: Tensor
    filled: Tensor | None
    number: Tensor
    size: int

    def take(self, x: Tensor) -> Tensor:
        """[b, t, ...] -> [n, w, ...], zero in free slots."""
        if self.filled is None:
            return x.reshape(-1, self.size, *x.shape[2:])
        rows = reorder(F.pad(x.flatten(0, 1).flatten(1), (0, 0, 0, 1)), self.index, self.back)
        return rows[:-1].view(-1, self.size, *x.shape[2:])

    def put_back(self, y: Tensor, shape: torch.Size) -> Tensor:
        """[n, w, ...] -> [b, t, ...], zero at padding."""
        if self.filled is None:
            return y.reshape(shape)
        return reorder(F.pad(y.flatten(0, 1).flatten(1), (0, 0, 0, 1)), self.back, self.index)[:-1].view(shape)


def _places(document: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are real, and the place of each in its document [b, t]."""
    known = documents(document)
    count = known.real.cumsum(1)
    first = torch.ones_like(count[:, :1], dtype=torch.bool)
    begins = known.real & torch.cat([first, known.segment[:, 1:] != known.segment[:, :-1]], dim=1)
    return known.real, count - torch.where(begins, count, 0).cummax(1).values


def _cut(real_bt: Tensor, place_bt: Tensor, size: int) -> _Blocks:
    """The blocks of tokens at these places, in the order of their first tokens."""
    real, place = real_bt.flatten(), place_bt.flatten()
    number = (real & (place % size == 0)).cumsum(0) - 1
    slots = (int(number[-1]) + 1) * size
    token = torch.arange(len(real), device=real.device)
    back = torch.where(real, number * size + place % size, slots)
    index = torch.full((slots + 1,), len(real), device=real.device).scatter(0, back, token)
    index[-1] = len(real)
    filled = (index[:-1] < len(real)).view(-1, size)
    full = slots == len(real) and bool(filled.all())
    return _Blocks(index, torch.cat([back, back.new_full((1,), slots)]), None if full else filled, number.view_as(real_bt), size)
