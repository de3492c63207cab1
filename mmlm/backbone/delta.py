"""DeltaNet, gated DeltaNet and DeltaProduct: a fast-weight matrix per head that replaces what it holds for a key by a new value.

    [q, k, v, z, b, a] = W_in x;  [q, k, v] <- silu(conv(q, k, v));  q <- q / |q| / sqrt(size);  k <- k / |k|
    beta = sigmoid(b), twice that with negative eigenvalues;  log decay = -exp(A) softplus(a + bias) if gated
    S <- decay S;  S <- S + k (beta (v - S^T k))^T;  y = S^T q;  out = W_out (norm(y) * silu(z))
The transition I - beta k k^T has the eigenvalue 1 - beta: with beta up to 2 it turns to -1, which is what tracking a state needs
(arXiv:2411.12537). With several micro-steps a token has as many keys, values and betas, taken in one after the other, the decay before the
first and the reading after the last (DeltaProduct, arXiv:2502.10297). The state is reset where a document of a packed row begins and is
kept in float32 (float64 for float64 inputs).
Sources: arXiv:2406.06484 (DeltaNet), arXiv:2412.06464 (gated).

Axes: b rows   t tokens   d width   c convolved channels   m micro-steps, one after the other   g key heads   h value heads   k key channels
v value channels
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import DeltaNetConfig
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.rms_norm.fast import rms_norm
from mmlm.layout import Layout
from mmlm.parameters import exact, linear, log_uniform_steps, name_axes

GATES = {"silu": F.silu, "sigmoid": torch.sigmoid}


class DeltaNet(nn.Module):
    """One layer of the delta rule. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: DeltaNetConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads, self.num_key_heads = config.num_heads, config.num_key_heads or config.num_heads
        self.key_size, self.value_size = config.key_size, config.value_size or config.key_size
        self.micro_steps = config.num_micro_steps
        keys, values = self.num_key_heads * self.key_size, self.num_heads * self.value_size
        self.convolved = [keys, keys * self.micro_steps, values * self.micro_steps]
        self.sizes = [
            sum(self.convolved),
            values if config.output_gate else 0,
            self.num_heads * self.micro_steps,
            self.num_heads if config.gated else 0,
        ]
        self.input = linear(width, sum(self.sizes), "residual", "heads", bias=config.bias)
        self.out = linear(values, width, "heads", "residual", bias=config.bias)
        self.out.is_residual_output = True
        self.conv_weight = nn.Parameter(torch.empty(self.sizes[0], config.conv_size))
        self.conv_bias = nn.Parameter(torch.empty(self.sizes[0])) if config.conv_bias else None
        self.step_bias = nn.Parameter(torch.empty(self.num_heads)) if config.gated else None
        self.decay_log = nn.Parameter(torch.empty(self.num_heads)) if config.gated else None
        self.norm_weight = nn.Parameter(torch.empty(self.value_size)) if config.output_norm else None
        name_axes(self.conv_weight, "heads", "taps")
        for parameter, axis in (
            (self.conv_bias, "heads"),
            (self.step_bias, "num_heads"),
            (self.decay_log, "num_heads"),
            (self.norm_weight, "head"),
        ):
            if parameter is not None:
                parameter.no_weight_decay = True
                name_axes(parameter, axis)
        self.reset_parameters_own()

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """Decay U(0, 16) kept from 0, time steps log-uniform within min_step and max_step, norm one."""
        config = self.config
        bound = 1 / math.sqrt(config.conv_size)
        self.conv_weight.uniform_(-bound, bound)
        if self.conv_bias is not None:
            self.conv_bias.zero_()
        if self.step_bias is not None and self.decay_log is not None:
            log_uniform_steps(self.step_bias, config.min_step, config.max_step)
            self.decay_log.uniform_(0.01, 16).log_()
        if self.norm_weight is not None:
            self.norm_weight.fill_(1)

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length."""
        tensors = {
            "conv": torch.zeros(batch, self.sizes[0], self.config.conv_size - 1, dtype=dtype, device=device),
            "state": torch.zeros(batch, self.num_heads, self.key_size, self.value_size, device=device),
        }
        return State(tensors, {"conv": "conv", "state": "recurrent"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that a recurrence cannot express.
        """
        layout.require_left_to_right("deltanet")
        config, held, steps = self.config, state.tensors if state is not None else {}, self.micro_steps
        qkv_btc, gate, beta, step = self.input(x_btd).split(self.sizes, dim=-1)
        qkv_btc, conv = causal_conv1d(qkv_btc, self.conv_weight, self.conv_bias, layout.document, held.get("conv"))
        query, key, value = qkv_btc.split(self.convolved, dim=-1)
        query_btgk = _unit(query.unflatten(-1, (self.num_key_heads, self.key_size))) * self.key_size**-0.5
        key_bmgk = _unit(key.unflatten(-1, (steps, self.num_key_heads, self.key_size)).flatten(1, 2))
        value_bmhv = value.unflatten(-1, (steps, self.num_heads, self.value_size)).flatten(1, 2)
        beta_bmh = exact(beta).sigmoid().unflatten(-1, (steps, self.num_heads)).flatten(1, 2)
        if config.negative_eigenvalues:
            beta_bmh = 2 * beta_bmh
        decay_bmh = None
        if self.step_bias is not None and self.decay_log is not None:
            decay_bmh = -exact(self.decay_log).exp() * F.softplus(exact(step) + exact(self.step_bias))
        document = layout.document
        if steps > 1:
            query_btgk = F.pad(query_btgk[:, :, None], (0, 0, 0, 0, steps - 1, 0)).flatten(1, 2)  # read after the last
            decay_bmh = None if decay_bmh is None else F.pad(decay_bmh[:, :, None], (0, 0, 0, steps - 1)).flatten(1, 2)
            document = layout.memo(("micro-steps", steps), lambda: layout.document.repeat_interleave(steps, dim=1))
        y_bthv, last = delta_rule(
            query_btgk,
            key_bmgk,
            value_bmhv,
            beta_bmh,
            decay_bmh,
            document,
            state_bhkv=held.get("state"),
            chunk_size=config.chunk_size,
        )
        y_bthv = y_bthv[:, steps - 1 :: steps]
        if state is not None:
            state.tensors = {"conv": conv.to(held["conv"].dtype), "state": last}
            state.length = state.length + (layout.document > 0).sum(1)
        if self.norm_weight is not None:
            y_bthv = rms_norm(exact(y_bthv), self.norm_weight, config.norm_eps)
        if config.output_gate:
            y_bthv = exact(y_bthv) * GATES[config.output_gate](exact(gate)).view(y_bthv.shape)
        return self.out(y_bthv.flatten(2).to(x_btd.dtype)), state, {}


def _unit(x: Tensor) -> Tensor:
    """x over its length, in the dtype of x."""
    long = exact(x)
    return (long * torch.rsqrt(long.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
