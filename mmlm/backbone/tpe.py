"""Positions by exponentially decaying sums along each axis (MD-TPE): told once, after the input, to mixers that know none.

    y_t = sum over s <= t of decay^(t - s) x_s along an axis;   out = sum over axes of W_a norm(gain_a * y)
decay: one number a head, within 0 and 1, learned. Where a layout is not causal the sums of both directions are added. The recurrence is
that of Mamba-2 with one state channel, whose keys and queries are constant.
Source: arXiv:2405.21022, section 3; details chosen here: both directions, one gain a channel for the product of constant key and query.

Axes: b rows   t tokens   d width   n sequences   l their tokens   h heads   p channels of a head   a axes
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import TpeConfig
from mmlm.backbone.norms import RmsNorm
from mmlm.backbone.sequences import by_sequence
from mmlm.base.errors import RecipeError
from mmlm.kernels.ssd.fast import ssd
from mmlm.layout import Layout
from mmlm.parameters import exact, linear, name_axes


class Tpe(nn.Module):
    """Decaying sums along the tokens or the named axes. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: TpeConfig, width: int) -> None:
        super().__init__()
        if width % config.num_heads:
            raise RecipeError(f"tpe: width {width} is not a multiple of num_heads {config.num_heads}.")
        self.config, self.num_heads = config, config.num_heads
        axes = max(1, len(config.over))
        self.decay = nn.Parameter(torch.empty(axes, config.num_heads))
        self.gain = nn.Parameter(torch.empty(axes, width))
        self.norms = nn.ModuleList(RmsNorm(width, config.norm_eps) for _ in range(axes))
        self.outs = nn.ModuleList(linear(width, width, "residual", "residual", bias=False) for _ in range(axes))
        for out in self.outs:
            out.is_residual_output = True
        name_axes(self.decay, "axes", "num_heads")
        name_axes(self.gain, "axes", "residual")
        self.decay.no_weight_decay = self.gain.no_weight_decay = True
        self.reset_parameters_own()

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """Decays that halve after 1 to 64 tokens, in geometric steps; gains one."""
        reach = torch.logspace(0, 6, self.num_heads, base=2, dtype=torch.float64, device="cpu")
        self.decay.copy_(torch.logit(0.5 ** (1 / reach)).expand_as(self.decay))
        self.gain.fill_(1)

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length. Raises RecipeError where this layer cannot go token by token."""
        if self.config.over:
            raise RecipeError(f"tpe over {', '.join(self.config.over)} works on whole grids and cannot go token by token.")
        if self.config.causal is False:
            raise RecipeError("tpe with causal: false sees later tokens and cannot go token by token.")
        width = self.gain.shape[1]
        tensors = {"state": torch.zeros(batch, self.num_heads, width // self.num_heads, 1, device=device)}
        return State(tensors, {"state": "recurrent"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that this layer cannot express, or an axis that the data has not.
        """
        causal = layout.causal if self.config.causal is None else self.config.causal
        layout.require_left_to_right("tpe", or_whole=True)
        if state is not None and not causal:
            raise RecipeError("tpe that sees later tokens cannot go token by token; the layout must be causal.")
        sums: list[Tensor] = []
        axes: list[str | None] = [*self.config.over] or [None]
        for axis, decay_h in zip(axes, F.logsigmoid(exact(self.decay)).unbind()):
            if axis is None and causal:
                held = state.tensors["state"] if state is not None else None
                y_btd, last = self._sums(x_btd, decay_h, layout.document, held)
                if state is not None:
                    state.tensors = {"state": last}
                    state.length = state.length + (layout.document > 0).sum(1)
            else:
                y_btd = by_sequence(layout, lambda x, decay_h=decay_h: self._along(x, decay_h, causal), x_btd, over=axis, who="tpe")
            sums.append(y_btd)
        parts = zip(sums, self.gain.unbind(), self.norms, self.outs)
        return sum(out(norm(y_btd * gain)) for y_btd, gain, norm, out in parts), state, {}

    def _along(self, x_nld: Tensor, decay_h: Tensor, causal: bool) -> Tensor:
        """The sums of whole sequences [n, l, d]."""
        document = torch.ones(x_nld.shape[:2], dtype=torch.int32, device=x_nld.device)
        y_nld = self._sums(x_nld, decay_h, document, None)[0]
        return y_nld if causal else y_nld + self._sums(x_nld.flip(1), decay_h, document, None)[0].flip(1)

    def _sums(self, x_btd: Tensor, decay_h: Tensor, document_bt: Tensor, held: Tensor | None) -> tuple[Tensor, Tensor]:
        x_bthp = x_btd.unflatten(-1, (self.num_heads, -1))
        ones = torch.ones(x_bthp.shape[:3], dtype=decay_h.dtype, device=x_btd.device)
        same = torch.ones(*x_bthp.shape[:2], 1, 1, dtype=x_btd.dtype, device=x_btd.device)
        y_bthp, last = ssd(x_bthp, ones, decay_h, same, same, document_bt, held)
        return y_bthp.flatten(2), last
