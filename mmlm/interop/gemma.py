"""Gemma 2 (arXiv:2408.00118) and Gemma 3 (arXiv:2503.19786): windows in most layers, norms before and after each sublayer, GEGLU, scaled
embeddings; Gemma 2 has soft caps, Gemma 3 norms of queries and keys and other rotary positions in the layers with windows.

All norms store their distance from one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmlm.backbone.config import AttentionConfig, GegluConfig, LayerConfig
from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.interop import parts
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.interop.rope import rope_to_ours, rope_to_theirs
from mmlm.model_config import ModelConfig

KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rms_norm_eps
    rope_theta rope_scaling rope_parameters rope_local_base_freq tie_word_embeddings max_position_embeddings attention_bias
    query_pre_attn_scalar sliding_window sliding_window_pattern layer_types final_logit_softcapping attn_logit_softcapping
    sliding_window_size
    """.split()  # noqa: SIM905
)
REQUIRED = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "use_bidirectional_attention": (None, False)}
PATTERN = {"gemma2": 2, "gemma3_text": 6}
CAPS = {"gemma2": (50.0, 30.0), "gemma3_text": (None, None)}  # on scores, on logits


def _to_ours(model_type: str) -> Callable[[dict[str, Any]], ModelConfig]:
    def convert(config: dict[str, Any]) -> ModelConfig:
        eps, count, bias = config.get("rms_norm_eps", 1e-6), config["num_hidden_layers"], config.get("attention_bias", False)
        every = config.get("sliding_window_pattern", PATTERN[model_type])
        kinds = config.get("layer_types") or ["sliding_attention" if (index + 1) % every else "full_attention" for index in range(count)]
        score_cap = config.get("attn_logit_softcapping", CAPS[model_type][0])
        norm = {"qk_norm": True, "qk_norm_eps": eps} if model_type == "gemma3_text" else {}

        def layer(kind: str) -> LayerConfig:
            attention = parts.attention_to_ours(
                {**config, "head_dim": config.get("head_dim", 256)},
                rope_to_ours(_rope_of(model_type, config, kind)),
                qkv_bias=bias,
                out_bias=bias,
                window=config.get("sliding_window", 4096) if kind == "sliding_attention" else None,
                score_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
                soft_cap=score_cap,
                **norm,
            )
            return LayerConfig(mixer=attention, feed_forward=GegluConfig(hidden=config["intermediate_size"]))

        cap, scale = config.get("final_logit_softcapping", CAPS[model_type][1]), config["hidden_size"] ** 0.5
        return parts.decoder(config, [layer(kind) for kind in kinds], eps, True, norm_place="around", embedding_scale=scale, soft_cap=cap)

    return convert


def _rope_of(model_type: str, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The rotary keys for a kind of layer: Gemma 3 has a base without scaling of its own where there is a window."""
    if model_type == "gemma2":
        return config
    if kind in (config.get("rope_parameters") or {}):
        return {**config, "rope_scaling": None, "rope_parameters": config["rope_parameters"][kind]}
    if kind == "sliding_attention":
        return {**config, "rope_scaling": None, "rope_theta": config.get("rope_local_base_freq", 10_000.0)}
    return {**config, "rope_theta": config.get("rope_theta", 1_000_000.0)}


def _to_theirs(model_type: str) -> Callable[[ModelConfig], dict[str, Any] | None]:
    def convert(config: ModelConfig) -> dict[str, Any] | None:
        found, feed, head = parts.mixers(config, AttentionConfig), config.backbone.layers[0].feed_forward, config.heads["language_model"]
        if not found or any(mixer.rope is None for mixer in found) or not isinstance(feed, GegluConfig):
            return None
        if not isinstance(head, LanguageModelHeadConfig):
            return None
        first, ropes = found[0], {"sliding_attention" if mixer.window else "full_attention": rope_to_theirs(mixer.rope) for mixer in found}
        keys = parts.decoder_keys(config) | parts.attention_keys(first)
        keys |= {"intermediate_size": feed.hidden, "rms_norm_eps": config.backbone.norm_eps, "attention_bias": first.qkv_bias}
        keys |= {"attn_logit_softcapping": first.soft_cap, "final_logit_softcapping": head.soft_cap}
        keys |= {"query_pre_attn_scalar": max(round(first.score_scale**-2), 1), "hidden_activation": "gelu_pytorch_tanh"}
        keys |= {"sliding_window": max(mixer.window or 0 for mixer in found) or 4096, "rope_parameters": ropes}
        if model_type == "gemma2":
            keys["rope_parameters"] = rope_to_theirs(first.rope)
        return keys | {"layer_types": ["sliding_attention" if mixer.window else "full_attention" for mixer in found]}

    return convert


def _rules(config: ModelConfig) -> dict[str, Rule]:
    norms = {"mixer_norm": "input_layernorm", "mixed_norm": "post_attention_layernorm"}
    norms |= {"feed_forward_norm": "pre_feedforward_layernorm", "fed_norm": "post_feedforward_layernorm"}

    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem, layer = f"model.layers.{index}", config.backbone.layers[index]
        assert isinstance(layer.mixer, AttentionConfig) and isinstance(layer.feed_forward, GegluConfig)
        yield from parts.norm_rules(norms, stem, plus=1)
        yield from parts.attention_rules(layer.mixer, f"{stem}.self_attn", plus=1)
        yield from parts.feed_rules(layer.feed_forward, f"{stem}.mlp")

    return layer_rules(config.backbone.num_layers, layer) | parts.end_rules(config, "model.embed_tokens", "model.norm", plus=1)


FAMILIES = [
    Family("gemma2", "Gemma2ForCausalLM", _to_ours("gemma2"), _to_theirs("gemma2"), _rules, KEYS, REQUIRED),
    Family("gemma3_text", "Gemma3ForCausalLM", _to_ours("gemma3_text"), _to_theirs("gemma3_text"), _rules,
           KEYS, REQUIRED | {"attn_logit_softcapping": None}),
]  # fmt: skip
