"""A model in the form that the one-call decoder takes (kernels/decode), one function a kind of layer, and the way of states between both.

What the decoder was not made for is told by name, as `Unsupported`; the caller then takes the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmlm.backbone.attention import Attention
from mmlm.backbone.backbone import Backbone
from mmlm.backbone.cache import Cache
from mmlm.backbone.config import GegluConfig, GeluConfig, Relu2Config
from mmlm.backbone.delta import DeltaNet
from mmlm.backbone.feed_forward import FeedForward
from mmlm.backbone.mamba1 import Mamba1
from mmlm.backbone.mamba2 import Mamba2
from mmlm.backbone.moe import MixtureOfExperts
from mmlm.backbone.norms import LayerNorm
from mmlm.heads.language_model import LanguageModelHead
from mmlm.kernels.decode.fast import Decoder
from mmlm.kernels.decode.spec import (
    Activation,
    AttentionPart,
    DecoderSpec,
    DeltaNetPart,
    ExpertsPart,
    FeedForwardPart,
    LayerSpec,
    Mamba1Part,
    Mamba2Part,
    Part,
    Unsupported,
)

Weights = dict[str, Tensor]


class Packable(Protocol):
    """What is needed of a model to pack it."""

    backbone: Backbone
    heads: nn.ModuleDict
    embedding: nn.Embedding

    @property
    def device(self) -> torch.device:
        """Where the weights are."""


@torch.no_grad()
def one_call_form(model: Packable, *, with_logits: bool = True) -> tuple[DecoderSpec, Weights]:
    """A model as the C++ decoder takes it, with its language-model head or, where heads read its hidden states themselves, without any.

    Raises Unsupported with the reason where it cannot.
    """
    backbone, head = model.backbone, model.heads["language_model"] if with_logits and "language_model" in model.heads else None
    if with_logits:
        if type(head) is not LanguageModelHead:
            raise Unsupported("no plain language-model head")
        if head.rows is not None:
            raise Unsupported("a head that writes some ranges of the vocabulary alone")
        if head.config.soft_cap is not None:
            raise Unsupported("a soft cap on its scores")
    if backbone.config.norm_place != "before":
        raise Unsupported("norms around its layers")
    for name, module in (*backbone.named_modules(), ("embedding", model.embedding)):
        if not type(module).__module__.startswith(("mmlm.", "torch.")):
            raise Unsupported(f"{name} is a {type(module).__name__}; adapters have to be merged into the weights first")
    if model.device.type != "cpu":
        raise Unsupported(f"the weights are on {model.device}")
    weights = _under("embedding", model.embedding) | _under("norm", backbone.norm)
    if head is not None and head.weight is not None:
        weights["head.weight"] = head.weight
    if backbone.positions is not None:
        weights |= _under("positions", backbone.positions)
    layers = []
    for index, layer in enumerate(backbone.layers):
        parts: dict[str, Part] = {}
        for name, module, norm in (("mixer", layer.mixer, layer.mixer_norm), ("feed_forward", layer.feed_forward, layer.feed_forward_norm)):
            if module is None:
                continue
            if type(module) not in FORMS:
                raise Unsupported(f"layer {index} has a {type(module).__name__}")
            parts[name], own = FORMS[type(module)](module)
            at = f"layers.{index}.{name}."
            weights |= {at + short: tensor for short, tensor in (own | (_under("norm", norm) if norm is not None else {})).items()}
        layers.append(LayerSpec(**parts, parallel=layer.parallel))
    spec = DecoderSpec(
        vocabulary=len(model.embedding.weight) if head is None else len(head.matrix),
        width=backbone.config.width,
        layers=tuple(layers),
        norm="layer" if isinstance(backbone.norm, LayerNorm) else "rms",
        norm_eps=backbone.norm.eps,
        tied="head.weight" not in weights,
        positions=backbone.positions.num_embeddings if backbone.positions is not None else 0,
        embedding_scale=backbone.config.embedding_scale,
    )
    return spec, weights


def _under(prefix: str, module: nn.Module) -> Weights:
    return {f"{prefix}.{name}": tensor for name, tensor in module.named_parameters()}


def _attention(mixer: Attention) -> tuple[Part, Weights]:
    config = mixer.config
    if config.over is not None or config.causal is False:
        raise Unsupported("attention along an axis or in both directions")
    if config.soft_cap or config.alibi or config.sinks:
        raise Unsupported("attention with a soft cap, ALiBi or sinks")
    if mixer.rope is not None and len(mixer.rope.sections) > 1:
        raise Unsupported("rotary positions on several axes")
    weights = {name: tensor for name, tensor in mixer.named_parameters() if not name.startswith("gate.")}
    if mixer.gate is not None:
        for name, tensor in mixer.gate.named_parameters():
            weights[f"qkv.{name}"] = torch.cat([weights[f"qkv.{name}"], tensor])
    part = AttentionPart(
        num_heads=mixer.num_heads,
        num_kv_heads=mixer.num_kv_heads,
        head_size=mixer.head_size,
        rope=mixer.rope.frequencies if mixer.rope is not None else None,
        rope_scale=mixer.rope.scale if mixer.rope is not None else 1.0,
        window=config.window,
        scale=config.score_scale,
        qk_norm=config.qk_norm,
        qk_norm_eps=mixer.q_norm.eps if mixer.q_norm is not None else 1e-6,
        gated=mixer.gate is not None,
    )
    return part, weights


def _recurrent_weights(mixer: nn.Module) -> Weights:
    """The weights of a recurrence, with the decay itself instead of its logarithm."""
    renamed = {"conv_weight": "conv.weight", "conv_bias": "conv.bias", "norm_weight": "inner_norm.weight"}
    weights = {renamed.get(name, name): tensor for name, tensor in mixer.named_parameters()}
    if "decay_log" in weights:
        weights["decay"] = -weights.pop("decay_log").float().exp()
    return weights


def _mamba1(mixer: Mamba1) -> tuple[Part, Weights]:
    config = mixer.config
    if config.select_norm:
        raise Unsupported("norms of what steps are made of")
    part = Mamba1Part(
        inner=mixer.inner,
        state_size=config.state_size,
        step_rank=mixer.sizes[0],
        conv_size=config.conv_size,
        negative_eigenvalues=config.negative_eigenvalues,
    )
    return part, _recurrent_weights(mixer)


def _mamba2(mixer: Mamba2) -> tuple[Part, Weights]:
    config = mixer.config
    part = Mamba2Part(
        num_heads=mixer.num_heads,
        head_size=config.head_size,
        state_size=config.state_size,
        num_groups=config.num_groups,
        conv_size=config.conv_size,
        norm_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        step_limit=(config.step_limit[0], config.step_limit[1]),
    )
    return part, _recurrent_weights(mixer)


def _deltanet(mixer: DeltaNet) -> tuple[Part, Weights]:
    config = mixer.config
    part = DeltaNetPart(
        num_heads=mixer.num_heads,
        num_key_heads=mixer.num_key_heads,
        key_size=mixer.key_size,
        value_size=mixer.value_size,
        micro_steps=mixer.micro_steps,
        conv_size=config.conv_size,
        gated=config.gated,
        negative_eigenvalues=config.negative_eigenvalues,
        output_norm=config.output_norm,
        output_gate=config.output_gate,
        norm_eps=config.norm_eps,
    )
    return part, _recurrent_weights(mixer)


def _feed_forward(layer: FeedForward) -> tuple[Part, Weights]:
    activation: Activation = "silu"
    if isinstance(layer.config, GeluConfig | GegluConfig):
        activation = "gelu_tanh" if layer.config.approximate else "gelu"
    elif isinstance(layer.config, Relu2Config):
        activation = "relu_squared"
    return FeedForwardPart(hidden=layer.hidden, gated=layer.gated, activation=activation), dict(layer.named_parameters())


def _experts(layer: MixtureOfExperts) -> tuple[Part, Weights]:
    config = layer.config
    if config.num_shared and (config.shared_gate or config.shared_hidden not in (None, config.hidden)):
        raise Unsupported("shared experts with a gate or a size of their own")
    part = ExpertsPart(
        num_experts=config.num_experts,
        top_k=config.top_k,
        hidden=layer.experts[0].hidden,
        num_shared=config.num_shared,
        renormalize=config.renormalize,
    )
    return part, dict(layer.named_parameters())


FORMS: Mapping[type[nn.Module], Callable[[Any], tuple[Part, Weights]]] = {
    Attention: _attention,
    Mamba1: _mamba1,
    Mamba2: _mamba2,
    DeltaNet: _deltanet,
    FeedForward: _feed_forward,
    MixtureOfExperts: _experts,
}


def states_to_cache(decoder: Decoder, backbone: Backbone) -> Cache:
    """What a decoder keeps, as the layers keep it: copies."""
    lengths = torch.tensor(decoder.lengths)
    cache = backbone.init_cache(decoder.batch, int(lengths.max()))
    cache.length, cache.marks = lengths, decoder.marks
    for state, tensors in zip(cache.whole().layers, decoder.states(), strict=True):
        if state is not None and tensors is not None:
            state.length = lengths.clone()
            state.tensors = {name: tensors[name].to(held.dtype) for name, held in state.tensors.items()}
    return cache


def cache_to_states(cache: Cache, decoder: Decoder) -> None:
    """Let a decoder go on from what the layers kept. Raises Unsupported for the cache of another model."""
    decoder.load([None if state is None else state.tensors for state in cache.whole().layers], cache.length, cache.marks)
