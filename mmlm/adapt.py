"""Freezing, learning rates per tower, and low-rank adapters through peft (LoRA, arXiv:2106.09685; DoRA, arXiv:2402.09353).

A tower is a part of the model by its first name, or its first two where the first holds a collection: `backbone`, `embedding`,
`encoders.cell`, `heads.language_model`. Everywhere a tower can be named, any longer prefix or a pattern with `*` can too.

Adapters are put into the model's own modules in place, so the model's class and all that calls it stay what they are; merging puts the
plain linear layers back. peft takes seconds to import and is imported only here, when adapters are asked for.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmlm.base.errors import CheckpointError, NumericsError, RecipeError, require, unknown_name
from mmlm.base.files import parse_json
from mmlm.base.schema import check
from mmlm.parameters import name_axes
from mmlm.training.config import AdaptConfig, LoraConfig
from mmlm.weights import copy_tensors, read_tensors, write_tensors

CONFIG, WEIGHTS = "adapter.json", "adapter.safetensors"
_NAME = "default"  # peft keeps several adapters apart by name: this one, or one of each task


def adapt(model: nn.Module, config: AdaptConfig, seed: int = 0, tasks: Sequence[str] = ()) -> list[str]:
    """Attach adapters, freeze, and set learning rates as a recipe says. Returns the names of the layers that got adapters.

    tasks: names, for adapters of each task (`per_task`). Raises RecipeError for a name that fits nothing, with the nearest tower, and where
    all adapters would be frozen.
    """
    adapted = attach_lora(model, config.lora, seed=seed, tasks=tasks) if config.lora is not None else []
    freeze(model, config.freeze)
    if adapted and not any(weight.requires_grad for layer in adapted_layers(model).values() for weight in layer.parameters()):
        raise RecipeError("adapt.lora: has no effect: adapt.freeze names all that it targets, its adapters too. Leave it out.")
    scale_rates(model, config.lr_scale)
    return adapted


def towers(model: nn.Module) -> list[str]:
    """Names of the towers that hold parameters, in the model's order."""
    collections = tuple(f"{name}." for name, part in model.named_children() if isinstance(part, nn.ModuleDict | nn.ModuleList))
    names = ((name.split(".")[: 2 if name.startswith(collections) else 1]) for name, _ in model.named_parameters())
    return list(dict.fromkeys(".".join(parts) for parts in names))


def fits(name: str, pattern: str) -> bool:
    """Whether a dotted name lies in the part that a pattern names: equal, below it, or as its `*` say."""
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Exclude parameters from training. Raises RecipeError for a pattern that fits none."""
    for pattern in patterns:
        for _, parameter in _chosen(model, pattern, "adapt.freeze"):
            parameter.requires_grad_(False)


def scale_rates(model: nn.Module, scales: dict[str, float]) -> None:
    """Set the factor of the learning rate of parameters, which the optimizer reads. Of several patterns that fit, the last counts.

    Raises RecipeError for a pattern that fits no parameter, or only frozen ones, for which it would have no effect.
    """
    for pattern, scale in scales.items():
        found = [parameter for _, parameter in _chosen(model, pattern, "adapt.lr_scale") if parameter.requires_grad]
        if not found:
            raise RecipeError(f"adapt.lr_scale.{pattern}: has no effect: all of it is frozen. Leave it out.")
        for parameter in found:
            parameter.lr_scale = scale  # type: ignore[attr-defined]


def _chosen(model: nn.Module, pattern: str, where: str) -> list[tuple[str, nn.Parameter]]:
    found = [(name, parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if fits(name, pattern)]
    if not found:
        raise RecipeError(f"{where}: {unknown_name('tower or parameter', pattern, towers(model))}")
    return found


def attach_lora(model: nn.Module, config: LoraConfig, seed: int = 0, tasks: Sequence[str] = ()) -> list[str]:
    """Put an adapter on every linear layer that the targets name, or with `per_task` one for each task; returns the layers' names.

    The other weights of each tower that gets adapters are frozen; towers without adapters are left as they are. The layers of
    `nn.MultiheadAttention` are passed over, since it reads their weights without calling them and an adapter would do nothing.
    """
    linear = [name for name, part in model.named_modules() if type(part) is not _READ_DIRECTLY and isinstance(part, nn.Linear)]
    targets: list[str] = []
    for pattern in config.targets:
        found = [name for name in linear if fits(name, pattern)]
        if not found:
            near = unknown_name("linear layer or tower with one", pattern, [*dict.fromkeys(map(_first(model), linear))])
            raise RecipeError(f"adapt.lora.targets: {near}")
        targets += [name for name in found if name not in targets]
    _inject(model, config, targets, seed, [*tasks] if config.per_task else [_NAME])
    return targets


_READ_DIRECTLY = torch.nn.modules.linear.NonDynamicallyQuantizableLinear


def _first(model: nn.Module) -> Any:
    known = towers(model)
    return lambda name: next((tower for tower in known if fits(name, tower)), name)


def _inject(model: nn.Module, config: LoraConfig, targets: list[str], seed: int, names: Sequence[str]) -> None:
    if adapted_layers(model):
        raise RecipeError("adapt.lora: the model has adapters already; merge them first.")
    tower_of = _first(model)
    adapted = {tower_of(name) for name in targets}
    trained = {parameter: parameter.requires_grad and tower_of(name) not in adapted for name, parameter in model.named_parameters()}
    peft = require("peft", "lora")
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.dora,
        target_modules="|".join(re.escape(f"model.{name}") for name in targets),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            holder = nn.Module()  # keeps peft from reading the model's config, which is not one of transformers
            holder.model = model
            peft.inject_adapter_in_model(options, holder, adapter_name=name)
    for parameter in model.parameters():
        parameter.requires_grad_(trained.get(parameter, True))
    for layer in adapted_layers(model).values():
        layer.train(layer.get_base_layer().training)  # dropout of an adapter too
        if axes := getattr(layer.get_base_layer().weight, "axes", None):
            for name in names:
                name_axes(layer.lora_A[name].weight, "rank", axes[1])
                name_axes(layer.lora_B[name].weight, axes[0], "rank")


def adapter_names(model: nn.Module) -> list[str]:
    """Tasks that have adapters of their own; empty where all share one, or there are none."""
    layer = next(iter(adapted_layers(model).values()), None)
    names = [] if layer is None else [*layer.lora_A]
    return [] if names == [_NAME] else names


def use_adapter(model: nn.Module, task: str) -> None:
    """Let a model with adapters of each task compute with those of one. What is trained stays as it is."""
    for layer in adapted_layers(model).values():
        trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        layer.set_adapter([task])  # sets requires_grad of the others to False
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that have an adapter, by name."""
    return {name: part for name, part in model.named_modules() if hasattr(part, "lora_A") and hasattr(part, "get_base_layer")}


def merge_lora(model: nn.Module) -> None:
    """Add the adapters in use to the weights and put the plain linear layers back, in place. Does nothing without adapters.

    Raises NumericsError where a merged weight would not be finite.
    """
    for layer in adapted_layers(model).values():
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise NumericsError(f"adapters cannot be merged: {error}") from None
    detach_lora(model)


def detach_lora(model: nn.Module) -> None:
    """Put the plain linear layers back, in place, without what the adapters change."""
    for name, layer in adapted_layers(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())


def adapter_tensors(model: nn.Module, task: str = _NAME) -> dict[str, Tensor]:
    """The adapters' own weights by name, such as backbone.layers.0.mixer.q.lora_A.weight. task: whose, where each has its own."""
    found = {}
    for name, layer in adapted_layers(model).items():
        for key, tensor in layer.state_dict(keep_vars=True).items():
            first, _, rest = key.partition(".")
            if first != "base_layer" and rest.partition(".")[0] == task:
                found[f"{name}.{first}{rest.removeprefix(task)}"] = tensor
    return found


def save_adapters(model: nn.Module, folder: Path | str, config: LoraConfig, task: str = _NAME) -> None:
    """Write adapter.json and adapter.safetensors: what the adapters changed, and nothing of the model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, "lora": config.model_dump(mode="json"), "layers": list(adapted_layers(model))}
    (folder / CONFIG).write_text(json.dumps(content, indent=1) + "\n")
    write_tensors(folder / WEIGHTS, adapter_tensors(model, task))


def load_adapters(model: nn.Module, folder: Path | str) -> list[str]:
    """Attach the adapters of a folder, or fill those that the model has; returns the names of the layers.

    Raises CheckpointError naming up to ten layers or weights that are missing, unknown or of another shape; then the model is as before.
    """
    folder = Path(folder)
    config, layers = _read_config(folder / CONFIG)
    tensors = read_tensors(folder / WEIGHTS)
    own = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)} | adapted_layers(model).keys()
    if missing := [name for name in layers if name not in own]:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise CheckpointError(f"{folder / CONFIG}: the model has no linear layers {', '.join(missing[:10])}{more}.")
    is_new = not adapted_layers(model)
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    if is_new:
        _inject(model, config, layers, 0, [_NAME])
    elif wrong := [name for name in layers if name in (have := adapted_layers(model)) and not _scales_as(have[name], config)]:
        told = f"alpha {config.alpha:g} at rank {config.rank}; the adapter that the model has on {wrong[0]} is scaled otherwise"
        raise CheckpointError(f"{folder / CONFIG}: was trained with {told}.")
    try:
        copy_tensors(adapter_tensors(model), tensors, str(folder / WEIGHTS))
    except CheckpointError:
        if is_new:
            detach_lora(model)
            for parameter, is_trained in trained.items():
                parameter.requires_grad_(is_trained)
        raise
    return layers


def _scales_as(layer: Any, config: LoraConfig) -> bool:
    return all(math.isclose(scale, config.alpha / config.rank) for scale in layer.scaling.values())


def _read_config(path: Path) -> tuple[LoraConfig, list[str]]:
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
        layers, options = raw["layers"], raw["lora"]
        if not (isinstance(layers, list) and layers and all(isinstance(name, str) for name in layers)):
            raise TypeError("layers must be a list of names")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the description of an adapter: {error}.") from None
    try:
        return check(LoraConfig, options, str(path)), layers
    except RecipeError as error:
        raise CheckpointError(str(error)) from None
