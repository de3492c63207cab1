"""Llama and its relatives: Llama (SmolLM2), Mistral, Qwen2, Qwen3, and with mixtures of experts Mixtral and Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmlm.backbone.config import AttentionConfig, LayerConfig, MoeConfig, SwigluConfig
from mmlm.interop import parts
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.interop.rope import rope_to_ours, rope_to_theirs
from mmlm.model_config import ModelConfig

KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings max_position_embeddings
    attention_bias sliding_window use_sliding_window layer_types
    """.split()  # noqa: SIM905
)
MIXTRAL_KEYS = frozenset({"num_local_experts", "num_experts_per_tok"})
QWEN_KEYS = frozenset(
    """
    num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob mlp_only_layers decoder_sparse_step
    """.split()  # noqa: SIM905
)
REQUIRED = {"hidden_act": "silu", "mlp_bias": False, "use_mrope": False}
HAS_BIAS_KEY = {"llama", "qwen3", "qwen3_moe"}
WINDOW_IN_EVERY_LAYER = {"mistral": 4096, "mixtral": None}
DEFAULTS = {"mixtral": {"rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0}}  # where they are not those of all others


def _to_ours(model_type: str) -> Callable[[dict[str, Any]], ModelConfig]:
    def convert(config: dict[str, Any]) -> ModelConfig:
        config = DEFAULTS.get(model_type, {}) | config
        eps, count = config.get("rms_norm_eps", 1e-6), config["num_hidden_layers"]
        bias = model_type in HAS_BIAS_KEY and config.get("attention_bias", False)
        norm = {"qk_norm": True, "qk_norm_eps": eps} if model_type.startswith("qwen3") else {}
        attention = parts.attention_to_ours(config, rope_to_ours(config), qkv_bias=bias or model_type == "qwen2", out_bias=bias, **norm)
        layers = [
            LayerConfig(
                mixer=attention if window is None else attention.model_copy(update={"window": window}),
                feed_forward=_feed_forward(model_type, config, index),
            )
            for index, window in enumerate(_windows(model_type, config, count))
        ]
        return parts.decoder(config, layers, eps, False)

    return convert


def _windows(model_type: str, config: Mapping[str, Any], count: int) -> list[int | None]:
    """The window of each layer."""
    window = config.get("sliding_window", WINDOW_IN_EVERY_LAYER.get(model_type))
    if model_type in WINDOW_IN_EVERY_LAYER:
        return [window] * count
    if not config.get("use_sliding_window", False):
        return [None] * count
    if model_type == "qwen3_moe":
        return [window] * count
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or ["full_attention" if index < first else "sliding_attention" for index in range(count)]
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _feed_forward(model_type: str, config: Mapping[str, Any], index: int) -> SwigluConfig | MoeConfig:
    if model_type == "mixtral":
        experts, top_k = config["num_local_experts"], config["num_experts_per_tok"]
        return MoeConfig(num_experts=experts, top_k=top_k, hidden=config["intermediate_size"])
    routed = qwen_experts(config, index) if model_type == "qwen3_moe" else None
    return routed or SwigluConfig(hidden=config["intermediate_size"])


def qwen_experts(config: Mapping[str, Any], index: int, **more: Any) -> MoeConfig | None:
    """The mixture of experts of a layer as the Qwens name it, None where the layer has a plain feed-forward."""
    experts = config.get("num_experts", config.get("num_local_experts", 0))
    if not experts or index in (config.get("mlp_only_layers") or []) or (index + 1) % config.get("decoder_sparse_step", 1):
        return None
    top_k, hidden = config["num_experts_per_tok"], config["moe_intermediate_size"]
    return MoeConfig(num_experts=experts, top_k=top_k, hidden=hidden, renormalize=config["norm_topk_prob"], **more)


def qwen_expert_keys(feeds: list[Any]) -> dict[str, Any]:
    """The way back of `qwen_experts`, for the feed-forwards of all layers."""
    moe, dense = parts.first_of(feeds, MoeConfig), parts.first_of(feeds, SwigluConfig)
    found: dict[str, Any] = {"intermediate_size": dense.hidden if dense else moe.hidden, "decoder_sparse_step": 1, "num_experts": 0}
    if moe is not None:
        found |= {"num_experts": moe.num_experts, "num_experts_per_tok": moe.top_k, "moe_intermediate_size": moe.hidden}
        found |= {"norm_topk_prob": moe.renormalize}
    return found | {"mlp_only_layers": [index for index, feed in enumerate(feeds) if not isinstance(feed, MoeConfig)]}


def _to_theirs(model_type: str) -> Callable[[ModelConfig], dict[str, Any] | None]:
    def convert(config: ModelConfig) -> dict[str, Any] | None:
        found, feeds = parts.mixers(config, AttentionConfig), [layer.feed_forward for layer in config.backbone.layers]
        if not found or found[0].rope is None or not all(isinstance(feed, SwigluConfig | MoeConfig) for feed in feeds):
            return None
        first, moe = found[0], parts.first_of(feeds, MoeConfig)
        if (moe is None) == (model_type in ("mixtral", "qwen3_moe")):
            return None
        keys = parts.decoder_keys(config) | parts.attention_keys(first)
        keys |= {"rms_norm_eps": config.backbone.norm_eps, "rope_parameters": rope_to_theirs(first.rope)}
        keys |= {"intermediate_size": feeds[0].hidden, "hidden_act": "silu", "max_position_embeddings": 32768}  # type: ignore[union-attr]
        if model_type == "mixtral":
            keys |= {"num_local_experts": moe.num_experts, "num_experts_per_tok": moe.top_k}
        if model_type == "qwen3_moe":
            keys |= qwen_expert_keys(feeds)
        if model_type in HAS_BIAS_KEY:
            keys["attention_bias"] = first.qkv_bias
        windows = [mixer.window for mixer in found]
        if model_type in WINDOW_IN_EVERY_LAYER:
            keys["sliding_window"] = windows[0]
        elif any(windows):
            keys |= {"use_sliding_window": True, "sliding_window": max(window or 0 for window in windows)}
        if model_type in ("qwen2", "qwen3") and any(windows):
            keys["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
        return keys

    return convert


def _rules(config: ModelConfig) -> dict[str, Rule]:
    mixtral = not parts.mixers(config, AttentionConfig)[0].qk_norm  # type: ignore[index]

    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem, layer = f"model.layers.{index}", config.backbone.layers[index]
        assert isinstance(layer.mixer, AttentionConfig)
        yield from parts.norm_rules({"mixer_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}, stem)
        yield from parts.attention_rules(layer.mixer, f"{stem}.self_attn")
        if isinstance(layer.feed_forward, SwigluConfig):
            yield from parts.feed_rules(layer.feed_forward, f"{stem}.mlp")
        elif isinstance(layer.feed_forward, MoeConfig) and mixtral:
            yield from parts.expert_rules(layer.feed_forward, f"{stem}.block_sparse_moe", ("w1", "w3", "w2"))
        elif isinstance(layer.feed_forward, MoeConfig):
            yield from parts.expert_rules(layer.feed_forward, f"{stem}.mlp")

    return layer_rules(config.backbone.num_layers, layer) | parts.end_rules(config, "model.embed_tokens", "model.norm")


FAMILIES = [
    Family(kind, architecture, _to_ours(kind), _to_theirs(kind), _rules, KEYS | more, REQUIRED)
    for kind, architecture, more in (
        ("llama", "LlamaForCausalLM", set()),
        ("mistral", "MistralForCausalLM", set()),
        ("qwen2", "Qwen2ForCausalLM", {"max_window_layers"}),
        ("qwen3", "Qwen3ForCausalLM", {"max_window_layers"}),
        ("mixtral", "MixtralForCausalLM", MIXTRAL_KEYS),
        ("qwen3_moe", "Qwen3MoeForCausalLM", QWEN_KEYS),
    )
]
