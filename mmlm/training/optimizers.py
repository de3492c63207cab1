"""Optimizers by name, their parameter groups, and their state as named tensors and numbers.

Groups follow what a parameter is: matrices decay, vectors and whatever carries `no_weight_decay` do not; `lr_scale` on a parameter
multiplies its rate. Muon takes the matrices inside the network; embeddings, layers with a `vocab`, `sound` or `pixels` axis, which are its
two ends, and the taps of depthwise convolutions, whose rows have nothing to do with each other, stay with AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adafactor, AdamW, Optimizer

from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.kernels.dispatch import multiplies_bf16_faster
from mmlm.training.config import AdafactorConfig, AdamWConfig, LionConfig, MuonConfig, TrainConfig

Group = dict[str, Any]
QUINTIC = 3.4445, -4.7750, 2.0315  # of Newton-Schulz: raises small singular values fastest; Muon, arXiv:2502.16982, section 2.1
NOT_INSIDE = {"vocab", "sound", "pixels", "taps"}  # axes of matrices that are not Muon's


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that want a gradient, by name, each once. Raises RecipeError when there is none."""
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise RecipeError("adapt.freeze: every parameter of the model is frozen; nothing is left to train.")
    return found


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """Groups of equal weight decay and rate scale, in the order in which they first occur."""
    groups: dict[tuple[float, float], Group] = {}
    for parameter in parameters:
        decays = parameter.ndim >= 2 and not getattr(parameter, "no_weight_decay", False)
        scale = float(getattr(parameter, "lr_scale", 1.0))
        key = weight_decay if decays else 0.0, scale
        groups.setdefault(key, {"params": [], "weight_decay": key[0], "lr_scale": scale})["params"].append(parameter)
    return list(groups.values())


def adamw(config: AdamWConfig | MuonConfig, groups: list[Group], model: nn.Module) -> list[Optimizer]:
    """torch's fused AdamW: one pass over the memory, four times as fast as its default on a CPU."""
    return [AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)]


def muon(config: MuonConfig, groups: list[Group], model: nn.Module) -> list[Optimizer]:
    """Muon for matrices inside the network, AdamW for the rest, both at AdamW's rate."""
    looked_up = {id(p) for part in model.modules() if isinstance(part, nn.Embedding) for p in part.parameters(recurse=False)}

    def inside(parameter: nn.Parameter) -> bool:
        is_inside = id(parameter) not in looked_up and NOT_INSIDE.isdisjoint(getattr(parameter, "axes", ()))
        return min(parameter.shape, default=0) > 1 and parameter.ndim == 2 and is_inside

    parts: list[list[Group]] = [
        [{**group, "params": kept} for group in groups if (kept := [p for p in group["params"] if inside(p) == is_matrix])]
        for is_matrix in (True, False)
    ]
    found: list[Optimizer] = []
    if parts[0]:
        found.append(Muon(parts[0], config.momentum, config.num_iterations))
    if parts[1]:
        found += adamw(config, parts[1], model)
    return found


def adafactor(config: AdafactorConfig, groups: list[Group], model: nn.Module) -> list[Optimizer]:
    """torch's Adafactor."""
    return [Adafactor(groups, lr=0.0, beta2_decay=config.beta2_decay, d=config.clip_update)]


def lion(config: LionConfig, groups: list[Group], model: nn.Module) -> list[Optimizer]:
    """Lion."""
    return [Lion(groups, betas=(config.beta1, config.beta2))]


class Muon(Optimizer):
    """m <- momentum m + (1 - momentum) g;  w <- w - lr (0.2 sqrt(max(rows, columns)) O(lerp(g, m, momentum)) + decay w).

    O brings the singular values of a matrix near one. torch's own always finds it in bfloat16, which processors without units for that
    multiply many times as slowly; here it is found in float32 on them, and on the others as torch does, bit for bit.
    """

    def __init__(self, groups: list[Group], momentum: float, num_iterations: int) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "num_iterations": num_iterations, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                mean = self.state[parameter]["momentum_buffer"].lerp_(parameter.grad, 1.0 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(mean, group["momentum"]), group["num_iterations"])
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)


def orthogonal(matrix: Tensor, num_iterations: int) -> Tensor:
    """A matrix [m, n] with its singular values brought near one: x <- a x + b (x x^T) x + c (x x^T)^2 x, from x of norm one."""
    x_mn = matrix.to(torch.bfloat16 if multiplies_bf16_faster(matrix.device) else torch.float32)
    x_mn = x_mn.T if matrix.shape[0] > matrix.shape[1] else x_mn
    x_mn = x_mn / x_mn.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(num_iterations):
        gram_mm = x_mn @ x_mn.T
        x_mn = torch.addmm(x_mn, torch.addmm(gram_mm, gram_mm, gram_mm, beta=b, alpha=c), x_mn, beta=a)
    return x_mn.T if matrix.shape[0] > matrix.shape[1] else x_mn


class Lion(Optimizer):
    """update = sign(beta1 m + (1 - beta1) g);  w <- w - lr (update + decay w);  m <- beta2 m + (1 - beta2) g."""

    def __init__(self, groups: list[Group], betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            if not with_grad:
                continue
            grads: list[Tensor] = [p.grad for p in with_grad if p.grad is not None]
            for parameter in with_grad:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[p]["momentum"] for p in with_grad]
            updates = torch._foreach_lerp(momenta, grads, 1.0 - group["betas"][0])
            torch._foreach_sign_(updates)
            torch._foreach_mul_(with_grad, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(with_grad, updates, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, grads, 1.0 - group["betas"][1])


def build_optimizers(config: TrainConfig, model: nn.Module) -> list[Optimizer]:
    """The optimizers of a run over all trained parameters of the model."""
    groups = parameter_groups(trained_parameters(model).values(), config.weight_decay)
    return list(config.optimizer.build(groups, model))


def set_rate(optimizers: Iterable[Optimizer], rate: float) -> None:
    """Give every group its rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]


def optimizer_state(optimizers: Iterable[Optimizer], names: dict[Tensor, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, numbers) of all states, each by "<parameter>/<field>"."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for optimizer in optimizers:
        for parameter, fields in optimizer.state.items():
            for field, value in fields.items():
                place: dict[str, Any] = tensors if isinstance(value, Tensor) else numbers
                place[f"{names[parameter]}/{field}"] = value
    return tensors, numbers


def load_optimizer_state(
    optimizers: list[Optimizer], names: dict[Tensor, str], tensors: dict[str, Tensor], numbers: dict[str, Any], where: str
) -> None:
    """Give optimizers the state that `optimizer_state` returned. Raises CheckpointError naming what belongs to no parameter."""
    fields: dict[str, dict[str, Any]] = {}
    for key, value in {**tensors, **numbers}.items():
        name, _, field = key.rpartition("/")
        fields.setdefault(name, {})[field] = value
    if unknown := sorted(fields.keys() - set(names.values())):
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise CheckpointError(f"{where}: holds states of parameters that are not trained: {', '.join(unknown[:10])}{more}.")
    for optimizer in optimizers:
        content = optimizer.state_dict()
        in_order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbered = [number for group in content["param_groups"] for number in group["params"]]
        state = {number: fields[names[p]] for number, p in zip(numbered, in_order, strict=True) if names[p] in fields}
        try:
            optimizer.load_state_dict({"state": state, "param_groups": content["param_groups"]})
        except KeyError as error:
            raise CheckpointError(f"{where}: holds states of another optimizer for some parameters: {error} is missing.") from None
