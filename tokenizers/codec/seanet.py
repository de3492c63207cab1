"""EnCodec's causal convolutions and recurrences run piece by piece, faster than the package and with memory that does not grow.

Norms of weights are folded into them once; each layer keeps the few inputs that its next piece needs, so pieces together are the whole.
The recurrence reads its weights for every step, which is what it costs; so a piece is cut into parts that run side by side, each from the
state that the part before was found to end with, until no state changes any more: the states are those of running step by step, to the
rounding of float32. Where that does not settle after a few rounds, the steps are run one by one.

Source: EnCodec, arXiv:2210.13438, section 3.1; the layers are those of the package encodec 0.1.1.
Axes: b sounds   c channels   n places   t steps   p parts of a piece
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import require

PARTS, ROUNDS, SETTLED = 8, 3, 1e-6
SHORTEST = 4 * PARTS  # steps that are worth being cut into parts
State = dict[int, Any]


class Causal:
    """A causal encoder or decoder of the package, as layers that carry states. Weights are those at the time it is made."""

    def __init__(self, network: nn.Module) -> None:
        self.layers = [_layer(part) for part in network.model]

    def __call__(self, x_bcn: Tensor, states: State, *, is_last: bool) -> Tensor:
        """A piece [b, c, n]. states: empty for the first piece, changed in place. is_last: what follows is the end."""
        for number, layer in enumerate(self.layers):
            x_bcn, states[number] = layer(x_bcn, states.get(number), is_last)
        return x_bcn


def _layer(part: nn.Module) -> Any:
    kind = type(part).__name__
    return {"SConv1d": _Conv, "SConvTranspose1d": _Transposed, "SLSTM": _Recurrence, "SEANetResnetBlock": _Residual, "ELU": _Elu}[kind](
        part
    )


class _Elu:
    def __init__(self, part: nn.Module) -> None:
        pass

    def __call__(self, x: Tensor, state: Any, is_last: bool) -> tuple[Tensor, Any]:
        return F.elu_(x), None  # every layer before it gives a tensor of its own


class _Conv:
    def __init__(self, part: Any) -> None:
        conv = part.conv.conv
        self.weight, self.bias = _folded(conv), conv.bias.detach()
        self.stride, self.dilation, self.taps = conv.stride[0], conv.dilation[0], conv.kernel_size[0]
        self.before = (self.taps - 1) * self.dilation - (self.stride - 1)
        self.package = require("encodec.modules.conv", "speech")

    def __call__(self, x: Tensor, state: Tensor | None, is_last: bool) -> tuple[Tensor, Tensor | None]:
        if self.before == 0 and self.stride == 1:
            return F.conv1d(x, self.weight, self.bias), None
        before = self.before if state is None else 0
        whole = x if state is None else torch.cat([state, x], dim=-1)
        reach = (self.taps - 1) * self.dilation + 1
        after = -(whole.shape[-1] + before - reach) % self.stride if is_last else 0
        if before or after:
            whole = self.package.pad1d(whole, (before, after), mode="reflect")
        y = F.conv1d(whole, self.weight, self.bias, self.stride, 0, self.dilation)
        return y, whole[..., whole.shape[-1] - self.before :].clone()


class _Transposed:
    def __init__(self, part: Any) -> None:
        conv = part.convtr.convtr
        self.weight, self.bias, self.stride = _folded(conv), conv.bias.detach(), conv.stride[0]

    def __call__(self, x: Tensor, state: Tensor | None, is_last: bool) -> tuple[Tensor, Tensor]:
        whole = x if state is None else torch.cat([state, x], dim=-1)
        y = F.conv_transpose1d(whole, self.weight, self.bias, self.stride)
        start = 0 if state is None else self.stride
        return y[..., start : start + x.shape[-1] * self.stride].contiguous(), x[..., -1:].clone()


class _Residual:
    def __init__(self, part: Any) -> None:
        _, first, _, second = part.block
        self.shortcut, self.first, self.second = _layer(part.shortcut), _layer(first), _layer(second)

    def __call__(self, x: Tensor, state: Tensor | None, is_last: bool) -> tuple[Tensor, Tensor | None]:
        y, _ = self.shortcut(x, None, is_last)
        inner, state = self.first(F.elu_(x), state, is_last)
        return y.add_(self.second(F.elu_(inner), None, is_last)[0]), state


class _Recurrence:
    def __init__(self, part: Any) -> None:
        lstm = part.lstm
        self.layers = []
        for number in range(lstm.num_layers):
            into, again, bias, more = (
                getattr(lstm, f"{name}_l{number}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            self.layers.append([into, again.T.contiguous(), bias + more])  # products with few rows are faster this way round

    def __call__(self, x_bcn: Tensor, state: Any, is_last: bool) -> tuple[Tensor, Any]:
        x_tbc = x_bcn.permute(2, 0, 1).contiguous()
        y, states = x_tbc, []
        for number, weights in enumerate(self.layers):
            y, last = _lstm(y, weights, None if state is None else state[number])
            states.append(last)
        return (y + x_tbc).permute(1, 2, 0).contiguous(), states


def _lstm(x_tbc: Tensor, weights: list[Tensor], state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(outputs [t, b, c], last state) of one layer."""
    into, turned, bias = weights
    t, b, c = x_tbc.shape
    gates_tbg = F.linear(x_tbc, into, bias)
    begin = state or (x_tbc.new_zeros(b, c), x_tbc.new_zeros(b, c))
    if b > 1 or t < SHORTEST:
        return _steps(gates_tbg, turned, begin)
    size = -(-t // PARTS)
    parts = [gates_tbg[at : at + size, 0] for at in range(0, t, size)]
    gates_tpg = nn.utils.rnn.pad_sequence(parts)  # the last part may be shorter; what runs beyond its end is left out
    starts = [torch.cat([one, one.new_zeros(len(parts) - 1, c)]) for one in begin]
    for _ in range(ROUNDS):
        y_tpc, ends = _steps(gates_tpg, turned, (starts[0], starts[1]))
        found = [torch.cat([one[:1], end[:-1]]) for one, end in zip(begin, ends)]
        is_settled = all(float((new - old).abs().max()) <= SETTLED for new, old in zip(found, starts))
        starts = found
        if is_settled:
            y = y_tpc.transpose(0, 1).flatten(0, 1)[:t, None]
            if len(parts[-1]) == size:
                return y, (ends[0][-1:], ends[1][-1:])
            _, last = _steps(gates_tpg[: len(parts[-1]), -1:], turned, (starts[0][-1:], starts[1][-1:]))
            return y, last
    return _steps(gates_tbg, turned, begin)


def _steps(gates_tbg: Tensor, turned: Tensor, begin: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Step by step. gates: what the inputs give to input, forget, cell and output gate."""
    h, c = begin
    found = gates_tbg.new_empty(*gates_tbg.shape[:2], h.shape[1])
    size = h.shape[1]
    for step in range(len(gates_tbg)):
        gates = torch.addmm(gates_tbg[step], h, turned)
        cell = torch.tanh(gates[:, 2 * size : 3 * size])
        gates.sigmoid_()
        c = torch.addcmul(gates[:, size : 2 * size] * c, gates[:, :size], cell)
        h = torch.mul(gates[:, 3 * size :], torch.tanh(c), out=found[step])
    return found, (h.clone(), c)


def _folded(conv: Any) -> Tensor:
    """The weight that a convolution works with, its norm multiplied in."""
    if not hasattr(conv, "weight_g"):
        return conv.weight.detach()
    size = torch.linalg.vector_norm(conv.weight_v, dim=tuple(range(1, conv.weight_v.ndim)), keepdim=True)
    return (conv.weight_v * (conv.weight_g / size)).detach()
