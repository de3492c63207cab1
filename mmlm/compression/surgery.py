"""Layers of a finished model replaced by another mixer, left out, or added; the result is an ordinary model.

Attention becomes Mamba-2 with its weights carried over: x from the values, B from the keys, C from the queries, the output projection as it
is. Where query heads share a key head, the shared rows are repeated. Step and decay are new. What stands between these parts begins so that
it leaves them as they are (details chosen here: with new values there, the layer is at first further from the attention than one of new
weights; tests/quality/test_conversion.py): the convolution sees the token alone, the gate is the same for all tokens, nothing skips the
state, and the norm gives outputs half as large as values are. Other pairs of mixers begin with new weights.
Sources: MaTVLM, arXiv:2503.13440; Mamba in the Llama, arXiv:2408.15237; layers added as identities, LLaMA Pro, arXiv:2401.02415.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmlm.backbone.attention import Attention
from mmlm.backbone.backbone import Layer
from mmlm.backbone.config import AttentionConfig, LayerConfig, Mamba2Config
from mmlm.backbone.mamba2 import Mamba2
from mmlm.base.errors import RecipeError
from mmlm.base.registry import Component
from mmlm.model import MultimodalLM
from mmlm.training.config import ReplaceConfig

GATE = 2.0  # before SiLU, whose slope is close to one there; the norm behind it takes the factor away


def replace_mixers(model: MultimodalLM, layers: Sequence[int], mixer: Component | None = None, *, carry: bool = True) -> MultimodalLM:
    """A new model in which the mixers of some layers are others; all else is copied.

    layers: numbers from 0. mixer: what comes in; default Mamba-2 of the size of the attention it replaces. carry: take over the weights
    of the old mixer where a rule is known (attention to Mamba-2); else they begin anew.
    Raises RecipeError for a layer that is not there, has no mixer, or cannot be carried over into the mixer given.
    """
    old = model.config.backbone.layers
    chosen = sorted(set(layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(old):
        raise RecipeError(f"layers to replace must lie within 0 and {len(old) - 1}, but are {list(layers)}.")
    new = list(old)
    for index in chosen:
        if old[index].mixer is None:
            raise RecipeError(f"layer {index} has no mixer to replace.")
        new[index] = old[index].model_copy(update={"mixer": mixer or _counterpart(old[index].mixer, model.config.backbone.width, index)})
    made = _with_layers(model, new)
    for index, layer in enumerate(made.backbone.layers):
        source = model.backbone.layers[index]
        if index not in chosen:
            layer.load_state_dict(source.state_dict())
            continue
        for name, part in layer.named_children():
            if name != "mixer":
                part.load_state_dict(getattr(source, name).state_dict())
        if carry and (rule := CARRIED.get((type(source.mixer), type(layer.mixer)))) is not None:
            rule(source.mixer, layer.mixer, source.mixer_norm, f"layer {index}")
    return made


def replace_as(model: MultimodalLM, config: ReplaceConfig) -> MultimodalLM:
    """The model with mixers replaced as a recipe says, the other weights frozen if so asked."""
    chosen = config.layers if config.layers is not None else even_layers(len(model.backbone.layers), config.share)
    made = replace_mixers(model, chosen, config.mixer, carry=config.carry)
    if config.freeze_others:
        made.requires_grad_(False)
        for index in chosen:
            made.backbone.layers[index].mixer.requires_grad_(True)
    return made


def keep_layers(model: MultimodalLM, layers: Sequence[int]) -> MultimodalLM:
    """A new model of these layers alone, in this order (a layer may occur twice). Raises RecipeError for one that is not there."""
    old = model.config.backbone.layers
    if not layers or min(layers) < 0 or max(layers) >= len(old):
        raise RecipeError(f"layers to keep must lie within 0 and {len(old) - 1}, but are {list(layers)}.")
    made = _with_layers(model, [old[index] for index in layers])
    for layer, index in zip(made.backbone.layers, layers, strict=True):
        layer.load_state_dict(model.backbone.layers[index].state_dict())
    return made


def grow_layers(model: MultimodalLM, after: Sequence[int]) -> MultimodalLM:
    """A new model with a copy of each of these layers behind it that writes nothing yet: the new model computes what the old one does."""
    order = [at for index in range(len(model.backbone.layers)) for at in [index] * (2 if index in after else 1)]
    if unknown := sorted(set(after) - set(order)):
        raise RecipeError(f"layers to grow after must lie within 0 and {len(model.backbone.layers) - 1}, but {unknown[0]} is among them.")
    made = keep_layers(model, order)
    with torch.no_grad():
        for place, index in enumerate(order):
            if place and order[place - 1] == index:
                layer = made.backbone.layers[place]
                biases = [getattr(norm, "bias", None) for norm in (layer.mixed_norm, layer.fed_norm)]  # what a norm makes of nothing
                for parameter in (*(each for part in _writers(layer) for each in part.parameters()), *biases):
                    if parameter is not None:
                        parameter.zero_()
    return made


def even_layers(num_layers: int, share: float) -> list[int]:
    """A share of the layers, evenly spread from the first: 0, 4, 8, ... for a quarter."""
    count = max(1, round(num_layers * share))
    return [index * num_layers // count for index in range(count)]


def _with_layers(model: MultimodalLM, layers: Sequence[LayerConfig]) -> MultimodalLM:
    """The same model with other layers, whose weights are new; everything else is copied.

    Raises RecipeError for a model with weights that its config does not tell of, such as those of adapters.
    """
    backbone = model.config.backbone.model_copy(update={"pattern": list(layers), "num_layers": len(layers), "pretrained": None})
    weight = model.embedding.weight
    made = MultimodalLM(model.config.model_copy(update={"backbone": backbone})).to(weight.device, weight.dtype)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.layers.")}
    if unknown := made.load_state_dict(kept, strict=False).unexpected_keys:
        raise RecipeError(f"layers cannot be changed while the model has {unknown[0]} and the like; merge adapters into the weights first.")
    made.text, made.stop = model.text, model.stop
    return made.train(model.training)


def _writers(layer: Layer) -> list[nn.Module]:
    return [part for part in layer.modules() if getattr(part, "is_residual_output", False)]


def _counterpart(mixer: Any, width: int, index: int) -> Mamba2Config:
    """Mamba-2 with a group and a state of its own for each head of an attention, and biases, by which its gate can begin as one value."""
    if not isinstance(mixer, AttentionConfig):
        raise RecipeError(f"layer {index} is {mixer.type}; give the mixer that shall replace it.")
    size = mixer.head_size or width // mixer.num_heads
    heads = mixer.num_heads
    sizes = {"expand": heads * size / width, "head_size": size, "state_size": size, "num_groups": heads, "norm_groups": heads}
    return Mamba2Config(**sizes, bias=True)


@torch.no_grad()
def _attention_to_mamba2(old: Attention, new: Mamba2, norm: nn.Module, where: str) -> None:
    heads, size = old.num_heads, old.head_size
    shared = new.config.num_groups * new.config.state_size
    if (new.num_heads, new.config.head_size, new.config.num_groups, new.config.state_size) != (heads, size, heads, size):
        raise RecipeError(
            f"{where}: attention with {heads} heads of {size} channels is carried over into mamba2 with as many heads and groups and with "
            f"head_size and state_size {size}, but it has {new.num_heads} heads, {new.config.num_groups} groups, head_size "
            f"{new.config.head_size} and state_size {new.config.state_size}."
        )
    begin = [new.inner, 2 * new.inner, 2 * new.inner + shared]  # of x, B and C in the input projection
    for name, tensor in new.input.named_parameters():
        given = getattr(old.qkv, name)
        if given is None:
            continue
        query, key, value = given.split(old.sizes)
        for start, rows in zip(begin, (value, key, query), strict=True):
            whole = rows.unflatten(0, (-1, size)).repeat_interleave(heads * size // len(rows), dim=0).flatten(0, 1)
            tensor[start : start + len(whole)] = whole
    new.out.weight.copy_(old.out.weight)
    if new.out.bias is not None and old.out.bias is not None:
        new.out.bias.copy_(old.out.bias)
    new.conv_weight.zero_()
    new.conv_weight[:, -1] = 1
    new.skip.zero_()
    if new.input.bias is not None:
        new.input.weight[: new.inner] = 0
        new.input.bias[: new.inner] = GATE
    values = new.input.weight[new.inner : 2 * new.inner] * norm.weight
    new.norm_weight.view(heads, size).copy_(0.5 * values.square().sum(1).view(heads, size).mean(1, keepdim=True).sqrt())


CARRIED: dict[tuple[type, type], Callable[[Any, Any, Any, str], None]] = {(Attention, Mamba2): _attention_to_mamba2}
