"""Qwen3-Next: gated DeltaNet (arXiv:2412.06464) with gated attention now and then, and mixtures of experts with a gated shared one.

Its norms, but for the one on DeltaNet's output, store their distance from one. DeltaNet's input projection is stored key head by key head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mmlm.backbone.config import AttentionConfig, DeltaNetConfig, LayerConfig, MoeConfig, SwigluConfig
from mmlm.interop import parts
from mmlm.interop.llama import QWEN_KEYS, qwen_expert_keys, qwen_experts
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.interop.rope import rope_to_ours, rope_to_theirs
from mmlm.model_config import ModelConfig

KEYS = QWEN_KEYS | frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps
    rope_theta rope_scaling rope_parameters partial_rotary_factor tie_word_embeddings max_position_embeddings attention_bias
    layer_types full_attention_interval linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim linear_num_key_heads
    linear_num_value_heads shared_expert_intermediate_size
    """.split()  # noqa: SIM905
)
REQUIRED = {"hidden_act": "silu", "use_sliding_window": False}


def _to_ours(config: dict[str, Any]) -> ModelConfig:
    eps, count, bias = config.get("rms_norm_eps", 1e-6), config["num_hidden_layers"], config.get("attention_bias", False)
    sizes, rope = {**config, "head_dim": config.get("head_dim", 256)}, rope_to_ours(config, fraction=0.25, fixed=False)

    def mixer(kind: str) -> AttentionConfig | DeltaNetConfig:
        if kind == "full_attention":
            return parts.attention_to_ours(sizes, rope, qkv_bias=bias, out_bias=bias, gate=True, qk_norm=True, qk_norm_eps=eps)
        return DeltaNetConfig(
            num_heads=config["linear_num_value_heads"],
            num_key_heads=config["linear_num_key_heads"],
            key_size=config["linear_key_head_dim"],
            value_size=config["linear_value_head_dim"],
            conv_size=config.get("linear_conv_kernel_dim", 4),
            gated=True,
            norm_eps=eps,
        )

    every = config.get("full_attention_interval", 4)
    kinds = config.get("layer_types") or ["linear_attention" if (index + 1) % every else "full_attention" for index in range(count)]
    shared = {"num_shared": 1, "shared_hidden": config["shared_expert_intermediate_size"], "shared_gate": True}
    layers = [
        LayerConfig(
            mixer=mixer(kind),
            feed_forward=qwen_experts(config, index, **shared) or SwigluConfig(hidden=config["intermediate_size"]),
        )
        for index, kind in enumerate(kinds)
    ]
    return parts.decoder(config, layers, eps, False)


def _to_theirs(config: ModelConfig) -> dict[str, Any] | None:
    found, feeds = parts.mixers(config, DeltaNetConfig, AttentionConfig), [layer.feed_forward for layer in config.backbone.layers]
    delta, attention = parts.first_of(found or [], DeltaNetConfig), parts.first_of(found or [], AttentionConfig)
    if found is None or (attention and attention.rope is None):
        return None
    if not all(isinstance(feed, SwigluConfig | MoeConfig) for feed in feeds):
        return None
    moe = parts.first_of(feeds, MoeConfig)
    keys = parts.decoder_keys(config) | parts.attention_keys(attention) | qwen_expert_keys(feeds)
    keys |= {"rms_norm_eps": config.backbone.norm_eps, "shared_expert_intermediate_size": moe.shared_hidden if moe else 1}
    if attention is not None:
        keys |= {"attention_bias": attention.qkv_bias}
        keys["rope_parameters"] = {"partial_rotary_factor": 1.0, **rope_to_theirs(attention.rope)}
    if delta is not None:
        keys |= {"linear_num_value_heads": delta.num_heads, "linear_num_key_heads": delta.num_key_heads}
        keys |= {"linear_key_head_dim": delta.key_size, "linear_value_head_dim": delta.value_size}
        keys |= {"linear_conv_kernel_dim": delta.conv_size}
    return keys | {"layer_types": ["linear_attention" if isinstance(mixer, DeltaNetConfig) else "full_attention" for mixer in found]}


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem, layer = f"model.layers.{index}", config.backbone.layers[index]
        yield from parts.norm_rules({"mixer_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}, stem, plus=1)
        if isinstance(layer.mixer, AttentionConfig):
            yield from parts.attention_rules(layer.mixer, f"{stem}.self_attn", plus=1)
        elif isinstance(layer.mixer, DeltaNetConfig):
            yield from _delta_rules(layer.mixer, f"{stem}.linear_attn")
        if isinstance(layer.feed_forward, MoeConfig):
            yield from parts.expert_rules(layer.feed_forward, f"{stem}.mlp")
        elif isinstance(layer.feed_forward, SwigluConfig):
            yield from parts.feed_rules(layer.feed_forward, f"{stem}.mlp")

    return layer_rules(config.backbone.num_layers, layer) | parts.end_rules(config, "model.embed_tokens", "model.norm", plus=1)


def _delta_rules(delta: DeltaNetConfig, stem: str) -> Iterator[tuple[str, Rule]]:
    groups, shared = delta.num_key_heads or 0, delta.num_heads // (delta.num_key_heads or 1)
    values = shared * (delta.value_size or 0)
    widths = [delta.key_size, delta.key_size, values, values]
    first, second = groups * sum(widths), 2 * delta.num_heads
    query, key, value, gate = torch.arange(first).view(groups, -1).split(widths, dim=1)
    beta, step = torch.arange(first, first + second).view(groups, -1).split(shared, dim=1)
    order = torch.cat([part.flatten() for part in (query, key, value, gate, beta, step)])
    yield "mixer.input.weight", Rule((f"{stem}.in_proj_qkvz.weight", f"{stem}.in_proj_ba.weight"), (first, second), order)
    yield "mixer.conv_weight", Rule((f"{stem}.conv1d.weight",), middle_axis=True)
    names = {"out.weight": "out_proj.weight", "step_bias": "dt_bias", "decay_log": "A_log", "norm_weight": "norm.weight"}
    for ours, theirs in names.items():
        yield f"mixer.{ours}", Rule((f"{stem}.{theirs}",))


FAMILIES = [Family("qwen3_next", "Qwen3NextForCausalLM", _to_ours, _to_theirs, _rules, KEYS, REQUIRED)]
