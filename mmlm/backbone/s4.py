"""S4 and S4D: one fixed linear system a channel, a convolution in training and a recurrence in generation.

    h' = A h + b u;  y = 2 Re(c h) + D u, discretised with a learned step per channel;  out = GLU(W dropout(gelu(y)))
    dplr        A = diag(rate) - p p^*, bilinear (arXiv:2111.00396); the HiPPO matrix of Legendre polynomials is of this form
    diagonal    A = diag(rate), zero-order hold or bilinear (S4D, arXiv:2206.11893)
The published S4 learns c (I - A^L) for one length L; here c itself is learned, so that a layer has no length. Real parts of the rates are
-exp(.), which keeps the system stable. The state is reset where a document of a packed row begins and is kept in float32.

Axes: b rows   t tokens   d width, channels   n modes, half the state channels   z state channels
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import S4Config
from mmlm.backbone.gated_output import GatedOutput
from mmlm.kernels.long_conv.ssm import ssm_conv
from mmlm.kernels.long_conv.systems import Diagonal, DiagonalPlusLowRank, System
from mmlm.layout import Layout
from mmlm.parameters import Derived, name_axes


class StateSpace(nn.Module):
    """The parameters of `channels` systems, and the systems they make."""

    def __init__(self, channels: int, config: S4Config, axis: str) -> None:
        super().__init__()
        self.config = config
        modes = config.state_size // 2
        self.step_log = nn.Parameter(torch.empty(channels))
        self.damping_log = nn.Parameter(torch.empty(channels, modes))
        self.frequency = nn.Parameter(torch.empty(channels, modes))
        self.low_rank = nn.Parameter(torch.empty(channels, modes, 2)) if config.form == "dplr" else None
        self.input = nn.Parameter(torch.empty(channels, modes, 2))
        self.output = nn.Parameter(torch.empty(channels, modes, 2))
        self.skip = nn.Parameter(torch.empty(channels))
        for parameter in self.parameters():
            parameter.no_weight_decay = True
            name_axes(parameter, *(axis, "state", "parts")[: parameter.ndim])
        for parameter in (self.step_log, self.damping_log, self.frequency, self.low_rank, self.input):
            if parameter is not None:
                parameter.lr_scale = config.system_lr_scale
        self._system = Derived()
        self.reset_parameters_own()

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """The rates of the config's init, the same for all channels; steps log-uniform; output and skip N(0, 1)."""
        config = self.config
        rate, low_rank, given = hippo(config.state_size) if config.init == "legs" else spread(config.state_size, config.init)
        self.step_log.uniform_(math.log(config.min_step), math.log(config.max_step))
        self.damping_log.copy_((-rate.real).log().expand_as(self.damping_log))
        self.frequency.copy_(rate.imag.expand_as(self.frequency))
        if self.low_rank is not None:
            self.low_rank.copy_(torch.view_as_real(low_rank).expand_as(self.low_rank))
        self.input.copy_(torch.view_as_real(given).expand_as(self.input))
        self.output.normal_(std=math.sqrt(0.5))
        self.skip.normal_()

    def system(self) -> System:
        """The discretised systems."""
        return self._system(list(self.parameters()), self._make)

    def _make(self) -> System:
        step = self.step_log.double().exp()
        rate = torch.complex(-self.damping_log.double().exp(), self.frequency.double())
        given, output = (torch.view_as_complex(part.double()) for part in (self.input, self.output))
        if self.low_rank is not None:
            return DiagonalPlusLowRank(rate, torch.view_as_complex(self.low_rank.double()), given, output, step)
        turn = step[:, None] * rate
        if self.config.discretization == "bilinear":
            return Diagonal((1 + turn / 2) / (1 - turn / 2), output * given * step[:, None] / (1 - turn / 2))
        return Diagonal(turn.exp(), output * given * torch.expm1(turn) / rate)


class S4(nn.Module):
    """One S4 or S4D layer. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: S4Config, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.systems = StateSpace(width, config, "residual")
        self.mix = GatedOutput(width, "residual", config.dropout)

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zero states; their size does not depend on max_length."""
        tensors = {"state": recurrent(batch, self.width, 1, self.config.state_size, dtype=dtype, device=device)}
        return State(tensors, {"state": "recurrent"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that a recurrence cannot express.
        """
        layout.require_left_to_right("s4")
        held = None if state is None else state.tensors["state"]
        y_btdm, last = ssm_conv(x_btd[..., None], self.systems.system(), layout.document, held)
        if state is not None and last is not None:
            state.tensors = {"state": last}
            state.length = state.length + (layout.document > 0).sum(1)
        return self.mix(y_btdm[..., 0] + self.systems.skip.to(x_btd.dtype) * x_btd), state, {}


def recurrent(*shape: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A zero state: float64 for float64 inputs, else float32."""
    return torch.zeros(*shape, dtype=torch.promote_types(dtype, torch.float32), device=device)


def hippo(state_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS with the inputs of Legendre polynomials, as rates, p and b of n modes, by growing frequency (complex128).

    A = V (diag(rate) - p p^*) V^*, for A + P P^T = -1/2 + S with S skew-symmetric, so that one unitary V serves.
    """
    order = torch.arange(state_size, dtype=torch.float64)
    root = (2 * order + 1).sqrt()
    a = -(root[:, None] * root).tril(-1) - torch.diag(order + 1)
    p = (order + 0.5).sqrt()
    skew = a + p[:, None] * p + 0.5 * torch.eye(state_size, dtype=torch.float64)
    frequency, vectors = torch.linalg.eigh(-1j * skew)
    above = slice(state_size // 2, None)  # the other half are the conjugates
    rate = torch.complex(torch.full_like(frequency, -0.5), frequency)[above]
    to_modes = vectors.conj().T[above]
    return rate, to_modes @ p.to(to_modes.dtype), to_modes @ root.to(to_modes.dtype)


def spread(state_size: int, init: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rates of S4D with frequencies in closed form, without low rank and with inputs 1: "lin" pi n, "inv" z / pi (z / (2 n + 1) - 1)."""
    order = torch.arange(state_size // 2, dtype=torch.float64)
    frequency = math.pi * order if init == "lin" else state_size / math.pi * (state_size / (2 * order + 1) - 1)
    ones = torch.ones_like(order).to(torch.complex128)
    return torch.complex(torch.full_like(order, -0.5), frequency), torch.zeros_like(ones), ones
