"""H3: two state-space systems and two multiplications, to recall and to compare tokens (arXiv:2212.14052).

    q, k, v = W x;  k <- shift(k) + D_s k;  s = k v^T per head;  s <- diag(s) + D_d s;  o = q s;  out = W_o o
The shift system remembers the last tokens one by one; read out by learned weights it is a free kernel over them (its input vector is fixed
at the first unit vector, as it begins in the paper). The diagonal system, one a head for all products k_i v_j, is that of S4D.

Axes: b rows   t tokens   d width   h heads   i channels of a key   j channels of a value   k taps
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import H3Config, S4Config
from mmlm.backbone.s4 import StateSpace, recurrent
from mmlm.base.errors import RecipeError
from mmlm.kernels.long_conv.fast import long_conv
from mmlm.kernels.long_conv.ssm import ssm_conv
from mmlm.layout import Layout
from mmlm.parameters import linear, name_axes


class H3(nn.Module):
    """One H3 layer. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: H3Config, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        if width % config.head_size:
            raise RecipeError(f"h3: width {width} is not a multiple of head_size {config.head_size}.")
        self.num_heads = width // config.head_size
        self.input = linear(width, 3 * width, "residual", "heads", bias=config.bias)
        self.out = linear(width, width, "heads", "residual", bias=config.bias)
        self.out.is_residual_output = True
        self.shift = nn.Parameter(torch.empty(width, config.shift_size))
        self.shift_skip = nn.Parameter(torch.empty(width))
        name_axes(self.shift, "heads", "taps")
        name_axes(self.shift_skip, "heads")
        for parameter in (self.shift, self.shift_skip):
            parameter.no_weight_decay = True
        self.shift.lr_scale = config.system_lr_scale
        shared = {name: getattr(config, name) for name in ("state_size", "init", "min_step", "max_step", "system_lr_scale")}
        self.systems = StateSpace(self.num_heads, S4Config(form="diagonal", **shared), "ssm_heads")
        self.reset_parameters_own()

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """Weights of the shift uniform within 1 / sqrt(taps), its skip N(0, 1)."""
        bound = 1 / math.sqrt(self.config.shift_size)
        self.shift.uniform_(-bound, bound)
        self.shift_skip.normal_()

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length."""
        config = self.config
        tensors = {
            "shift": torch.zeros(batch, self.width, config.shift_size - 1, dtype=dtype, device=device),
            "state": recurrent(batch, self.num_heads, config.head_size**2, config.state_size, dtype=dtype, device=device),
        }
        return State(tensors, {"shift": "conv", "state": "recurrent"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that a recurrence cannot express.
        """
        layout.require_left_to_right("h3")
        held = {} if state is None else state.tensors
        query, key, value = self.input(x_btd).chunk(3, dim=-1)
        shifted, tail = long_conv(key, self.shift, layout.document, held.get("shift"))
        key = shifted + self.shift_skip.to(key.dtype) * key
        heads = (-1, self.config.head_size)
        pairs_bthm = (key.unflatten(-1, heads)[..., None] * value.unflatten(-1, heads)[..., None, :]).flatten(-2)
        kept_bthm, last = ssm_conv(pairs_bthm, self.systems.system(), layout.document, held.get("state"))
        kept_bthm = kept_bthm + self.systems.skip.to(pairs_bthm.dtype)[:, None] * pairs_bthm
        if state is not None and tail is not None and last is not None:
            state.tensors = {"shift": tail.to(held["shift"].dtype), "state": last}
            state.length = state.length + (layout.document > 0).sum(1)
        found = (query.unflatten(-1, heads)[..., None] * kept_bthm.unflatten(-1, heads)).sum(-2)
        return self.out(found.flatten(-2)), state, {}
