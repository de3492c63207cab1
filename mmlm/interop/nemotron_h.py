"""Nemotron-H (arXiv:2504.03624): each layer is one of Mamba-2, attention without positions, or a squared-ReLU feed-forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmlm.backbone.config import AttentionConfig, LayerConfig, Mamba2Config, Relu2Config
from mmlm.base.errors import CheckpointError
from mmlm.interop import parts
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.model_config import ModelConfig

MAMBA = {"state_size": "ssm_state_size", "conv_size": "conv_kernel", "conv_bias": "use_conv_bias", "bias": "use_bias"}
MAMBA |= {"num_heads": "mamba_num_heads", "head_size": "mamba_head_dim", "num_groups": "n_groups", "chunk_size": "chunk_size"}
KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe", "mamba": "linear_attention", "attention": "full_attention"}
KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim attention_head_dim
    layer_norm_epsilon tie_word_embeddings max_position_embeddings layers_block_type hybrid_override_pattern mlp_bias time_step_min
    expand time_step_limit mamba_proj_bias
    moe_intermediate_size moe_latent_size moe_shared_expert_intermediate_size moe_shared_expert_overlap n_group n_groups
    n_routed_experts n_shared_experts norm_topk_prob num_experts_per_tok routed_scaling_factor topk_group
    mtp_layers_block_type mtp_hybrid_override_pattern
    """.split()  # noqa: SIM905
) | frozenset(MAMBA.values())
REQUIRED = {"mlp_hidden_act": "relu2", "mamba_hidden_act": "silu", "attention_bias": False, "sliding_window": None}
REQUIRED |= {"num_nextn_predict_layers": 0}


def _to_ours(config: dict[str, Any]) -> ModelConfig:
    eps, pattern = config.get("layer_norm_epsilon", 1e-5), config.get("layers_block_type") or config["hybrid_override_pattern"]
    sizes = {**config, "head_dim": config.get("head_dim") or config.get("attention_head_dim") or 128}

    def layer(index: int) -> LayerConfig:
        match kind := KINDS.get(pattern[index], pattern[index]):
            case "linear_attention":
                limit = (config.get("time_step_min", 0.001), 1e30)
                return LayerConfig(mixer=parts.mamba2_to_ours(config, MAMBA, eps, limit), feed_forward=None)
            case "full_attention":
                return LayerConfig(mixer=parts.attention_to_ours(sizes, rope=None), feed_forward=None)
            case "mlp":
                return LayerConfig(feed_forward=Relu2Config(hidden=config["intermediate_size"], bias=config.get("mlp_bias", False)))
        known = "linear_attention, full_attention, mlp"
        raise CheckpointError(f"layers_block_type: layer {index} is {kind!r}; only {known} are supported.")

    return parts.decoder(config, [layer(index) for index in range(len(pattern))], eps, False)


def _to_theirs(config: ModelConfig) -> dict[str, Any] | None:
    layers = config.backbone.layers
    found, feeds = [layer.mixer for layer in layers], [layer.feed_forward for layer in layers]
    mamba, attention = parts.first_of(found, Mamba2Config), parts.first_of(found, AttentionConfig)
    feed = parts.first_of(feeds, Relu2Config)
    if any((mixer is None) == (other is None) for mixer, other in zip(found, feeds, strict=True)):
        return None
    if not all(isinstance(part, Mamba2Config | AttentionConfig | Relu2Config | None) for part in (*found, *feeds)):
        return None
    names = {Mamba2Config: "linear_attention", AttentionConfig: "full_attention", type(None): "mlp"}
    keys = parts.decoder_keys(config) | parts.attention_keys(attention) | parts.mamba2_keys(mamba, MAMBA, config.backbone.width)
    keys |= {"intermediate_size": feed.hidden if feed else 1, "mlp_bias": feed.bias if feed else False}
    keys |= {"layers_block_type": [names[type(mixer)] for mixer in found], "layer_norm_epsilon": config.backbone.norm_eps}
    return keys | ({"time_step_min": mamba.step_limit[0]} if mamba else {})


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem, layer = f"backbone.layers.{index}", config.backbone.layers[index]
        yield from parts.norm_rules({"feed_forward_norm" if layer.mixer is None else "mixer_norm": "norm"}, stem)
        if isinstance(layer.mixer, AttentionConfig):
            yield from parts.attention_rules(layer.mixer, f"{stem}.mixer")
        elif isinstance(layer.mixer, Mamba2Config):
            yield from parts.mamba_rules(layer.mixer, f"{stem}.mixer")
        elif isinstance(layer.feed_forward, Relu2Config):
            yield from parts.feed_rules(layer.feed_forward, f"{stem}.mixer")

    return layer_rules(config.backbone.num_layers, layer) | parts.end_rules(config, "backbone.embeddings", "backbone.norm_f")


FAMILIES = [Family("nemotron_h", "NemotronHForCausalLM", _to_ours, _to_theirs, _rules, KEYS, REQUIRED)]
