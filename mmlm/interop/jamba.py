"""Jamba (arXiv:2403.19887): Mamba with inner norms, attention without positions now and then, a mixture of experts in every few layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmlm.backbone.config import AttentionConfig, LayerConfig, Mamba1Config, MoeConfig, SwigluConfig
from mmlm.interop import parts
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.model_config import ModelConfig

MAMBA = {"state_size": "mamba_d_state", "expand": "mamba_expand", "conv_size": "mamba_d_conv", "conv_bias": "mamba_conv_bias"}
MAMBA |= {"bias": "mamba_proj_bias", "step_rank": "mamba_dt_rank"}
KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps
    tie_word_embeddings max_position_embeddings attn_layer_period attn_layer_offset expert_layer_period expert_layer_offset
    num_experts num_experts_per_tok
    """.split()  # noqa: SIM905
) | frozenset(MAMBA.values())
REQUIRED = {"hidden_act": "silu", "mamba_inner_layernorms": True, "sliding_window": None, "calc_logits_for_entire_prompt": (True, False)}


def _to_ours(config: dict[str, Any]) -> ModelConfig:
    eps = config.get("rms_norm_eps", 1e-6)
    dense, experts = SwigluConfig(hidden=config["intermediate_size"]), config.get("num_experts", 16)

    def layer(index: int) -> LayerConfig:
        attends = index % config["attn_layer_period"] == config["attn_layer_offset"]
        mixer = parts.attention_to_ours(config, None) if attends else parts.mamba1_to_ours(config, MAMBA, select_norm=True, norm_eps=eps)
        routed = experts > 1 and index % config["expert_layer_period"] == config["expert_layer_offset"]
        top_k = config.get("num_experts_per_tok", 2)
        moe = MoeConfig(num_experts=experts, top_k=top_k, hidden=dense.hidden, renormalize=False) if routed else None
        return LayerConfig(mixer=mixer, feed_forward=moe or dense)

    return parts.decoder(config, [layer(index) for index in range(config["num_hidden_layers"])], eps, False)


def _to_theirs(config: ModelConfig) -> dict[str, Any] | None:
    backbone, found = config.backbone, parts.mixers(config, Mamba1Config, AttentionConfig)
    feeds = [layer.feed_forward for layer in backbone.layers]
    mamba, attention = parts.first_of(found or [], Mamba1Config), parts.first_of(found or [], AttentionConfig)
    if found is None or not all(isinstance(feed, SwigluConfig | MoeConfig) for feed in feeds):
        return None
    moe, first = parts.first_of(feeds, MoeConfig), feeds[0]
    keys = parts.decoder_keys(config) | parts.attention_keys(attention) | parts.mamba1_keys(mamba, MAMBA)
    keys |= {"intermediate_size": first.hidden, "rms_norm_eps": backbone.norm_eps}  # type: ignore[union-attr]
    keys |= _every("attn_layer", [index for index, mixer in enumerate(found) if isinstance(mixer, AttentionConfig)], len(found))
    keys |= _every("expert_layer", [index for index, feed in enumerate(feeds) if isinstance(feed, MoeConfig)], len(found))
    return keys | {"num_experts": moe.num_experts if moe else 1, "num_experts_per_tok": moe.top_k if moe else 1}


def _every(name: str, places: Sequence[int], count: int) -> dict[str, int]:
    """The period and first place of layers, if they have one."""
    first = places[0] if places else count
    return {f"{name}_period": places[1] - first if len(places) > 1 else count + 1, f"{name}_offset": first}


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem, layer = f"model.layers.{index}", config.backbone.layers[index]
        yield from parts.norm_rules({"mixer_norm": "input_layernorm", "feed_forward_norm": "pre_ff_layernorm"}, stem)
        if isinstance(layer.mixer, AttentionConfig):
            yield from parts.attention_rules(layer.mixer, f"{stem}.self_attn")
        elif isinstance(layer.mixer, Mamba1Config):
            yield from parts.mamba_rules(layer.mixer, f"{stem}.mamba")
        if isinstance(layer.feed_forward, MoeConfig):
            yield from parts.expert_rules(layer.feed_forward, f"{stem}.feed_forward", router="router")
        elif isinstance(layer.feed_forward, SwigluConfig):
            yield from parts.feed_rules(layer.feed_forward, f"{stem}.feed_forward")

    return layer_rules(config.backbone.num_layers, layer) | parts.end_rules(config, "model.embed_tokens", "model.final_layernorm")


FAMILIES = [Family("jamba", "JambaForCausalLM", _to_ours, _to_theirs, _rules, KEYS, REQUIRED)]
