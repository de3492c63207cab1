"""Linear layers whose parameters know the names of their axes, and how they begin.

`weight.axes` holds one name a dimension (residual, heads, ffn, state, experts, vocab, ...): tensor parallelism, pruning, merging and
distillation read these instead of parameter names. `no_weight_decay` and `lr_scale` on a parameter are read by the optimizer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Linear(nn.Linear):
    """torch's linear layer; `is_residual_output` marks those that write into the residual stream."""

    is_residual_output = False


def linear(inputs: int, outputs: int, from_axis: str, to_axis: str, *, bias: bool) -> Linear:
    """A linear layer [inputs] -> [outputs] with named axes."""
    layer = Linear(inputs, outputs, bias=bias)
    name_axes(layer.weight, to_axis, from_axis)
    if bias:
        name_axes(layer.bias, to_axis)
        layer.bias.no_weight_decay = True
    return layer


def name_axes(parameter: Tensor, *axes: str) -> None:
    """Give a parameter the names of its axes, one a dimension."""
    parameter.axes = axes  # type: ignore[attr-defined]


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where a value would be drawn for them."""

    DRAWN = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in self.DRAWN or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """What is made here has parameters and buffers of a shape without values, and draws none: `give_memory` makes them real.

    torch draws values of such tensors through the front end of its compiler, whose import takes longer than reading a small model.
    """
    with torch.device("meta"), _Undrawn():
        yield


def give_memory(module: nn.Module) -> None:
    """Make parameters and buffers that have a shape alone real, with any values; what a parameter knows (its axes, how it learns) stays."""
    known = {name: dict(vars(each)) for name, each in module.named_parameters(remove_duplicate=False)}
    module._apply(lambda each: torch.empty(each.shape, dtype=each.dtype))  # `to_empty` imports the same front end for strides
    for name, each in module.named_parameters(remove_duplicate=False):
        vars(each).update(known[name])


def initialize(module: nn.Module, num_layers: int) -> None:
    """N(0, 1 / (3 inputs)) for linear layers and embeddings, which is GPT-2's 0.02 at width 768 and keeps scores of narrow models alive;
    residual outputs scaled by 1 / sqrt(2 layers); biases zero.

    A module with a method `reset_parameters_own` sets its other parameters itself afterwards; one that `keeps_weights` is left alone.
    """
    kept = {part for each in module.modules() if getattr(each, "keeps_weights", False) for part in each.modules()}
    for part in module.modules():
        if part in kept:
            continue
        if isinstance(part, nn.Linear):
            residual = getattr(part, "is_residual_output", False)
            std = (3 * part.in_features) ** -0.5
            nn.init.normal_(part.weight, std=std / math.sqrt(2 * num_layers) if residual else std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=(3 * part.embedding_dim) ** -0.5)
    for part in module.modules():
        own = getattr(part, "reset_parameters_own", None)
        if own is not None:
            with torch.no_grad():
                own()


def log_uniform_steps(bias: Tensor, low: float, high: float) -> None:
    """Fill biases so that their softplus, a time step, is log-uniform within low and high, and at least 1e-4."""
    step = torch.empty_like(bias).uniform_(math.log(low), math.log(high)).exp().clamp_min(1e-4)
    bias.copy_(step + torch.log(-torch.expm1(-step)))


def inner_width(expand: float, width: int) -> int:
    """expand * width without its fraction; an expand that was written as a ratio of whole numbers is not cut short by its rounding."""
    return int(round(expand * width, 6))


def exact(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


class Derived:
    """What follows from parameters: made anew where a gradient is wanted, else kept until one of them changes.

    Changes are seen by comparing numbers: a fused optimizer writes without raising a tensor's version.
    """

    def __init__(self) -> None:
        self._seen: list[Tensor] = []
        self._found: Any = None

    def __call__(self, parameters: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What `make` returns for these parameters as they are now."""
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return make()
        if not (len(parameters) == len(self._seen) and all(map(_same, parameters, self._seen))):
            self._seen, self._found = [p.detach().clone() for p in parameters], make()
        return self._found

    def __deepcopy__(self, memo: dict[int, Any]) -> Derived:
        return Derived()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
