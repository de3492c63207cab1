"""Mamba-2: a state-space recurrence with one decay per head, computed in chunks by matrix products.

    [z, x, B, C, dt] = W_in u;  [x, B, C] <- silu(conv(x, B, C));  dt <- softplus(dt + bias)
    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t;  out = W_out norm(y * silu(z))
Source: arXiv:2405.21060. The state is reset where a document of a packed row begins and is kept in float32 (float64 for float64 inputs).

Axes: b rows   t tokens   d width   i inner width   h heads   p channels of a head   g groups   s state channels   c convolved channels
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import Mamba2Config
from mmlm.base.errors import RecipeError
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.ssd.fast import ssd
from mmlm.layout import Layout
from mmlm.parameters import exact, inner_width, linear, log_uniform_steps, name_axes


class Mamba2(nn.Module):
    """One Mamba-2 layer. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: Mamba2Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.inner = inner_width(config.expand, width)
        if self.inner % config.head_size:
            raise RecipeError(f"mamba2: inner width {self.inner} (expand * width) is not a multiple of head_size {config.head_size}.")
        self.num_heads = self.inner // config.head_size
        if self.num_heads % config.num_groups or self.inner % config.norm_groups:
            raise RecipeError(
                f"mamba2: num_groups {config.num_groups} must divide the {self.num_heads} heads and norm_groups "
                f"{config.norm_groups} the inner width {self.inner}."
            )
        shared = config.num_groups * config.state_size
        self.sizes = [self.inner, self.inner + 2 * shared, self.num_heads]
        self.input = linear(width, sum(self.sizes), "residual", "ssm", bias=config.bias)
        self.out = linear(self.inner, width, "ssm", "residual", bias=config.bias)
        self.out.is_residual_output = True
        self.conv_weight = nn.Parameter(torch.empty(self.sizes[1], config.conv_size))
        self.conv_bias = nn.Parameter(torch.empty(self.sizes[1])) if config.conv_bias else None
        self.step_bias = nn.Parameter(torch.empty(self.num_heads))
        self.decay_log = nn.Parameter(torch.empty(self.num_heads))
        self.skip = nn.Parameter(torch.empty(self.num_heads))
        self.norm_weight = nn.Parameter(torch.empty(self.inner))
        name_axes(self.conv_weight, "ssm", "taps")
        for parameter in (self.step_bias, self.decay_log, self.skip, self.norm_weight, self.conv_bias):
            if parameter is not None:
                parameter.no_weight_decay = True
                name_axes(parameter, "ssm" if parameter.shape[0] != self.num_heads else "ssm_heads")
        self.reset_parameters_own()

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """Decay U(1, 16), time steps log-uniform within min_step and max_step, skip and norm one."""
        config = self.config
        bound = 1 / math.sqrt(config.conv_size)
        self.conv_weight.uniform_(-bound, bound)
        if self.conv_bias is not None:
            self.conv_bias.zero_()
        log_uniform_steps(self.step_bias, config.min_step, config.max_step)
        self.decay_log.uniform_(1, 16).log_()
        self.skip.fill_(1)
        self.norm_weight.fill_(1)

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length."""
        config = self.config
        tensors = {
            "conv": torch.zeros(batch, self.sizes[1], config.conv_size - 1, dtype=dtype, device=device),
            "state": torch.zeros(batch, self.num_heads, config.head_size, config.state_size, device=device),
        }
        return State(tensors, {"conv": "conv", "state": "recurrent"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that a recurrence cannot express.
        """
        layout.require_left_to_right("mamba2")
        config, held = self.config, state.tensors if state is not None else {}
        z, xbc, step = self.input(x_btd).split(self.sizes, dim=-1)
        xbc, conv = causal_conv1d(xbc, self.conv_weight, self.conv_bias, layout.document, held.get("conv"))
        shared = config.num_groups * config.state_size
        x, key, query = xbc.split([self.inner, shared, shared], dim=-1)
        step = F.softplus(exact(step) + exact(self.step_bias)).clamp(*config.step_limit)
        x_bthp = x.unflatten(-1, (self.num_heads, config.head_size))
        y_bthp, last = ssd(
            x_bthp,
            step,
            -exact(self.decay_log).exp(),
            key.unflatten(-1, (config.num_groups, -1)),
            query.unflatten(-1, (config.num_groups, -1)),
            layout.document,
            held.get("state"),
            chunk_size=config.chunk_size,
        )
        y_bti = (y_bthp + self.skip[:, None] * x_bthp).flatten(2)
        if state is not None:
            state.tensors = {"conv": conv.to(held["conv"].dtype), "state": last}
            state.length = state.length + (layout.document > 0).sum(1)
        return self.out(self._norm(exact(y_bti) * F.silu(exact(z))).to(x_btd.dtype)), state, {}

    def _norm(self, y_bti: Tensor) -> Tensor:
        groups = y_bti.unflatten(-1, (self.config.norm_groups, -1))
        scale = torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return (groups * scale).flatten(-2) * exact(self.norm_weight)
