"""Bamba: Mamba-2, and attention with half of the channels rotated in the layers named; a SwiGLU in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmlm.backbone.config import AttentionConfig, LayerConfig, Mamba2Config, SwigluConfig
from mmlm.interop import parts
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.interop.rope import rope_to_ours, rope_to_theirs
from mmlm.model_config import ModelConfig

MAMBA = {"state_size": "mamba_d_state", "expand": "mamba_expand", "conv_size": "mamba_d_conv", "conv_bias": "mamba_conv_bias"}
MAMBA |= {"bias": "mamba_proj_bias", "num_heads": "mamba_n_heads", "head_size": "mamba_d_head", "num_groups": "mamba_n_groups"}
MAMBA |= {"chunk_size": "mamba_chunk_size"}
KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps
    tie_word_embeddings max_position_embeddings attn_layer_indices attention_bias mlp_bias time_step_limit
    rope_theta rope_scaling rope_parameters attn_rotary_emb
    """.split()  # noqa: SIM905
) | frozenset(MAMBA.values())
REQUIRED = {"hidden_act": "silu", "partial_rotary_factor": 0.5}


def _to_ours(config: dict[str, Any]) -> ModelConfig:
    eps, attending, bias = config.get("rms_norm_eps", 1e-5), config.get("attn_layer_indices") or [], config.get("attention_bias", False)
    if config.get("mamba_d_head") == "auto":
        config = {**config, "mamba_d_head": config["mamba_expand"] * config["hidden_size"] // config["mamba_n_heads"]}
    feed = SwigluConfig(hidden=config["intermediate_size"], bias=config.get("mlp_bias", False))

    def mixer(index: int) -> AttentionConfig | Mamba2Config:
        if index in attending:
            return parts.attention_to_ours(config, rope_to_ours(config, fraction=0.5), qkv_bias=bias, out_bias=bias)
        return parts.mamba2_to_ours(config, MAMBA, eps, config.get("time_step_limit") or (0.0, 1e30))

    layers = [LayerConfig(mixer=mixer(index), feed_forward=feed) for index in range(config["num_hidden_layers"])]
    return parts.decoder(config, layers, eps, False)


def _to_theirs(config: ModelConfig) -> dict[str, Any] | None:
    backbone, found = config.backbone, parts.mixers(config, Mamba2Config, AttentionConfig)
    mamba, attention = parts.first_of(found or [], Mamba2Config), parts.first_of(found or [], AttentionConfig)
    feed = backbone.layers[0].feed_forward
    if found is None or not isinstance(feed, SwigluConfig) or (attention and attention.rope is None):
        return None
    keys = parts.decoder_keys(config) | parts.attention_keys(attention) | parts.mamba2_keys(mamba, MAMBA, backbone.width)
    keys |= {"intermediate_size": feed.hidden, "mlp_bias": feed.bias, "rms_norm_eps": backbone.norm_eps}
    if attention is not None:
        keys |= {"attention_bias": attention.qkv_bias, "rope_parameters": rope_to_theirs(attention.rope)}
    keys["attn_layer_indices"] = [index for index, mixer in enumerate(found) if isinstance(mixer, AttentionConfig)]
    return keys | ({"time_step_limit": parts.step_limit_key(mamba)} if mamba else {})


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem, layer = f"model.layers.{index}", config.backbone.layers[index]
        assert isinstance(layer.feed_forward, SwigluConfig)
        yield from parts.norm_rules({"mixer_norm": "input_layernorm", "feed_forward_norm": "pre_ff_layernorm"}, stem)
        if isinstance(layer.mixer, AttentionConfig):
            yield from parts.attention_rules(layer.mixer, f"{stem}.self_attn")
        elif isinstance(layer.mixer, Mamba2Config):
            yield from parts.mamba_rules(layer.mixer, f"{stem}.mamba")
        yield from parts.feed_rules(layer.feed_forward, f"{stem}.feed_forward")

    return layer_rules(config.backbone.num_layers, layer) | parts.end_rules(config, "model.embed_tokens", "model.final_layernorm")


FAMILIES = [Family("bamba", "BambaForCausalLM", _to_ours, _to_theirs, _rules, KEYS, REQUIRED)]
