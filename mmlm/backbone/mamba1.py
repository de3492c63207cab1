"""Mamba: a state-space recurrence whose time step, input and output maps depend on the token.

    [x, z] = W_in u;  x <- silu(conv(x));  [r, B, C] = W_select x;  s = softplus(W_step r + bias)
    h_t = a_t h_{t-1} + s_t x_t B_t^T;  y_t = h_t C_t + D x_t;  out = W_out (y * silu(z))
with a_t = exp(s_t A) for each channel and state (arXiv:2312.00752), or 2 exp(s_t A) - 1 with `negative_eigenvalues` (arXiv:2411.12537).
With `select_norm` r, B and C are RMS-normed, each with weights of its own (Jamba, arXiv:2403.19887).
The state is reset where a document of a packed row begins and is kept in float32 (float64 for float64 inputs).

Axes: b rows   t tokens   d width   i inner channels   n states of a channel
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import Mamba1Config
from mmlm.backbone.norms import RmsNorm
from mmlm.base.errors import RecipeError
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.selective_scan.fast import selective_scan
from mmlm.layout import Layout
from mmlm.parameters import exact, inner_width, linear, log_uniform_steps, name_axes


def step_rank(config: Mamba1Config, width: int) -> int:
    """Channels that time steps are made of."""
    return config.step_rank or math.ceil(width / 16)


class Mamba1(nn.Module):
    """One Mamba layer. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: Mamba1Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.inner = inner_width(config.expand, width)
        if not self.inner:
            raise RecipeError(f"mamba1: expand {config.expand} leaves nothing of width {width}; expand * width must be at least 1.")
        self.sizes = [step_rank(config, width), config.state_size, config.state_size]
        self.input = linear(width, 2 * self.inner, "residual", "ssm", bias=config.bias)
        self.select = linear(self.inner, sum(self.sizes), "ssm", "ssm_select", bias=False)
        self.step = linear(self.sizes[0], self.inner, "ssm_rank", "ssm", bias=False)
        norms = (("ssm_rank", self.sizes[0]), ("state", config.state_size), ("state", config.state_size)) if config.select_norm else ()
        self.select_norms = nn.ModuleList(RmsNorm(size, config.norm_eps, axis) for axis, size in norms)
        self.out = linear(self.inner, width, "ssm", "residual", bias=config.bias)
        self.out.is_residual_output = True
        self.conv_weight = nn.Parameter(torch.empty(self.inner, config.conv_size))
        self.conv_bias = nn.Parameter(torch.empty(self.inner)) if config.conv_bias else None
        self.step_bias = nn.Parameter(torch.empty(self.inner))
        self.decay_log = nn.Parameter(torch.empty(self.inner, config.state_size))
        self.skip = nn.Parameter(torch.empty(self.inner))
        name_axes(self.conv_weight, "ssm", "taps")
        name_axes(self.decay_log, "ssm", "state")
        for parameter in (self.step_bias, self.skip, self.conv_bias):
            if parameter is not None:
                name_axes(parameter, "ssm")
        for parameter in (self.step_bias, self.decay_log, self.skip, self.conv_bias):
            if parameter is not None:
                parameter.no_weight_decay = True
        self.reset_parameters_own()

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """Decays -1 to -n for the states of a channel, time steps log-uniform within min_step and max_step, skip one."""
        config = self.config
        bound = 1 / math.sqrt(config.conv_size)
        self.conv_weight.uniform_(-bound, bound)
        if self.conv_bias is not None:
            self.conv_bias.zero_()
        bound = self.sizes[0] ** -0.5
        self.step.weight.uniform_(-bound, bound)
        log_uniform_steps(self.step_bias, config.min_step, config.max_step)
        self.decay_log.copy_(torch.arange(1, config.state_size + 1).log().expand_as(self.decay_log))
        self.skip.fill_(1)

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length."""
        tensors = {
            "conv": torch.zeros(batch, self.inner, self.config.conv_size - 1, dtype=dtype, device=device),
            "state": torch.zeros(batch, self.inner, self.config.state_size, device=device),
        }
        return State(tensors, {"conv": "conv", "state": "recurrent"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that a recurrence cannot express.
        """
        layout.require_left_to_right("mamba1")
        held = state.tensors if state is not None else {}
        x, gate = self.input(x_btd).split(self.inner, dim=-1)
        x, conv = causal_conv1d(x, self.conv_weight, self.conv_bias, layout.document, held.get("conv"))
        low, key, query = self.select(x).split(self.sizes, dim=-1)
        if self.select_norms:
            low, key, query = (norm(part) for norm, part in zip(self.select_norms, (low, key, query), strict=True))
        y, last = selective_scan(
            x,
            self.step(low),
            exact(self.step_bias),
            -exact(self.decay_log).exp(),
            key,
            query,
            exact(self.skip),
            gate,
            layout.document,
            held.get("state"),
            negative=self.config.negative_eigenvalues,
        )
        if state is not None:
            state.tensors = {"conv": conv.to(held["conv"].dtype), "state": last}
            state.length = state.length + (layout.document > 0).sum(1)
        return self.out(y), state, {}
