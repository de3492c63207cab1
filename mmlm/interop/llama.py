"""Llama and its relatives: Llama (SmolLM2), Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmlm.backbone.config import AttentionConfig, BackboneConfig, LayerConfig, RopeConfig, SwigluConfig
from mmlm.base.errors import CheckpointError
from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.model_config import ModelConfig

KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings max_position_embeddings
    attention_bias sliding_window use_sliding_window layer_types
    """.split()  # noqa: SIM905
)
REQUIRED = {"hidden_act": "silu", "mlp_bias": False}
OUT_BIAS = {"llama": True, "mistral": False, "qwen2": False, "qwen3": True}
STANDARD_WINDOW = {"mistral": 4096}


def rope_to_ours(config: dict[str, Any]) -> RopeConfig:
    """Rotary settings of a foreign config, in the old or the new form. Raises CheckpointError for a scaling that is not known."""
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = given.pop("rope_type", given.pop("type", "default"))
    base = given.pop("rope_theta", config.get("rope_theta", 10_000.0))
    factor, original = given.get("factor"), given.get("original_max_position_embeddings", config.get("max_position_embeddings"))
    scaling: dict[str, Any] | None
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = {"type": "linear", "factor": factor}
        case "llama3":
            low, high = given["low_freq_factor"], given["high_freq_factor"]
            scaling = {"type": "llama3", "factor": factor, "original_length": original}
            scaling |= {"low_frequency_factor": low, "high_frequency_factor": high}
        case "yarn":
            if given.get("mscale") or given.get("mscale_all_dim"):
                raise CheckpointError("rope scaling 'yarn' with mscale is not supported.")
            scaling = {"type": "yarn", "factor": factor, "original_length": original}
            scaling |= {"fast_turns": given.get("beta_fast") or 32.0, "slow_turns": given.get("beta_slow") or 1.0}
            scaling |= {"attention_factor": given.get("attention_factor"), "truncate": given.get("truncate", True)}
        case _:
            raise CheckpointError(f"rope scaling {kind!r} is not supported; known: default, linear, llama3, yarn.")
    return RopeConfig(base=base, fraction=given.get("partial_rotary_factor", 1.0), scaling=scaling)  # type: ignore[arg-type]


def rope_to_theirs(rope: RopeConfig, config: dict[str, Any]) -> dict[str, Any]:
    """The new form of foreign rotary settings."""
    found: dict[str, Any] = {"rope_theta": rope.base, "rope_type": "default"}
    scaling = rope.scaling.model_dump() if rope.scaling else {"type": "default"}
    match scaling["type"]:
        case "linear":
            found |= {"rope_type": "linear", "factor": scaling["factor"]}
        case "llama3":
            found |= {"rope_type": "llama3", "factor": scaling["factor"], "low_freq_factor": scaling["low_frequency_factor"]}
            found |= {"high_freq_factor": scaling["high_frequency_factor"]}
            found |= {"original_max_position_embeddings": scaling["original_length"]}
        case "yarn":
            found |= {"rope_type": "yarn", "factor": scaling["factor"], "beta_fast": scaling["fast_turns"]}
            found |= {"beta_slow": scaling["slow_turns"], "attention_factor": scaling["attention_factor"]}
            found |= {"original_max_position_embeddings": scaling["original_length"], "truncate": scaling["truncate"]}
    return found


def _to_ours(model_type: str) -> Callable[[dict[str, Any]], ModelConfig]:
    def convert(config: dict[str, Any]) -> ModelConfig:
        heads, window = config["num_attention_heads"], config.get("sliding_window", STANDARD_WINDOW.get(model_type))
        windowed = window is not None and config.get("use_sliding_window", model_type == "mistral")
        kinds = config.get("layer_types") or ["sliding_attention" if windowed else "full_attention"] * config["num_hidden_layers"]
        rope = rope_to_ours(config)

        def layer(kind: str) -> LayerConfig:
            return LayerConfig(
                mixer=AttentionConfig(
                    num_heads=heads,
                    num_kv_heads=config.get("num_key_value_heads") or heads,
                    head_size=config.get("head_dim") or config["hidden_size"] // heads,
                    rope=rope,
                    qk_norm=model_type == "qwen3",
                    qkv_bias=config.get("attention_bias", False) or model_type == "qwen2",
                    out_bias=config.get("attention_bias", False) and OUT_BIAS[model_type],
                    window=window if kind == "sliding_attention" else None,
                )
            )

        return ModelConfig(
            schema=1,
            vocabulary={"text": config["vocab_size"]},
            backbone=BackboneConfig(
                width=config["hidden_size"],
                num_layers=config["num_hidden_layers"],
                pattern=[layer(kind) for kind in (kinds if len(set(kinds)) > 1 else kinds[:1])],
                feed_forward=SwigluConfig(hidden=config["intermediate_size"]),
                norm="rms",
                norm_eps=config.get("rms_norm_eps", 1e-6),
            ),
            heads={"language_model": LanguageModelHeadConfig(tied=config.get("tie_word_embeddings", False))},
        )

    return convert


def _to_theirs(model_type: str) -> Callable[[ModelConfig], dict[str, Any] | None]:
    def convert(config: ModelConfig) -> dict[str, Any] | None:
        backbone, layers = config.backbone, config.backbone.layers
        mixers = [layer.mixer for layer in layers]
        first = mixers[0]
        if not isinstance(first, AttentionConfig) or not isinstance(layers[0].feed_forward, SwigluConfig) or first.rope is None:
            return None
        alike = all(isinstance(mixer, AttentionConfig) and mixer.model_copy(update={"window": first.window}) == first for mixer in mixers)
        alike &= all(layer.feed_forward == layers[0].feed_forward and not layer.parallel for layer in layers)
        if not alike or backbone.norm != "rms" or backbone.learned_positions or first.over or first.causal is not None:
            return None
        bias_kind = {"qwen2": (True, False), "qwen3": (first.qkv_bias, first.qkv_bias), "llama": (first.qkv_bias, first.qkv_bias)}
        if (first.qkv_bias, first.out_bias) != bias_kind.get(model_type, (False, False)) or first.qk_norm != (model_type == "qwen3"):
            return None
        windows = [mixer.window for mixer in mixers if isinstance(mixer, AttentionConfig)]
        if any(windows) and model_type == "llama":
            return None
        head = config.heads["language_model"]
        found: dict[str, Any] = {
            "vocab_size": sum(config.vocabulary.values()),
            "hidden_size": backbone.width,
            "intermediate_size": layers[0].feed_forward.hidden,
            "num_hidden_layers": backbone.num_layers,
            "num_attention_heads": first.num_heads,
            "num_key_value_heads": first.num_kv_heads or first.num_heads,
            "head_dim": first.head_size or backbone.width // first.num_heads,
            "rms_norm_eps": backbone.norm_eps,
            "rope_parameters": rope_to_theirs(first.rope, {}),
            "tie_word_embeddings": head.tied if isinstance(head, LanguageModelHeadConfig) else False,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
        }
        if model_type in ("llama", "qwen3"):
            found["attention_bias"] = first.qkv_bias
        if model_type == "mistral":
            found["sliding_window"] = windows[0]
            return found if len(set(windows)) == 1 else None
        if any(windows):
            found |= {"use_sliding_window": True, "sliding_window": max(window or 0 for window in windows)}
            found["layer_types"] = ["sliding_attention" if window else "full_attention" for window in windows]
            found["max_window_layers"] = 0
        return found

    return convert


def _rules(config: ModelConfig) -> dict[str, Rule]:
    width = config.backbone.width

    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        attention, feed = config.backbone.layers[index].mixer, config.backbone.layers[index].feed_forward
        assert isinstance(attention, AttentionConfig) and isinstance(feed, SwigluConfig)
        head = attention.head_size or width // attention.num_heads
        sizes = (attention.num_heads * head, *[(attention.num_kv_heads or attention.num_heads) * head] * 2)
        stem = f"model.layers.{index}"
        hidden = feed.hidden or -(-8 * width // (3 * 64)) * 64
        for kind, has in (("weight", True), ("bias", attention.qkv_bias)):
            if has:
                yield f"mixer.qkv.{kind}", Rule(tuple(f"{stem}.self_attn.{part}_proj.{kind}" for part in "qkv"), sizes)
        yield "mixer.out.weight", Rule((f"{stem}.self_attn.o_proj.weight",))
        if attention.out_bias:
            yield "mixer.out.bias", Rule((f"{stem}.self_attn.o_proj.bias",))
        if attention.qk_norm:
            for part in "qk":
                yield f"mixer.{part}_norm.weight", Rule((f"{stem}.self_attn.{part}_norm.weight",))
        yield "feed_forward.up.weight", Rule((f"{stem}.mlp.gate_proj.weight", f"{stem}.mlp.up_proj.weight"), (hidden, hidden))
        yield "feed_forward.down.weight", Rule((f"{stem}.mlp.down_proj.weight",))
        yield "mixer_norm.weight", Rule((f"{stem}.input_layernorm.weight",))
        yield "feed_forward_norm.weight", Rule((f"{stem}.post_attention_layernorm.weight",))

    rules = layer_rules(config.backbone.num_layers, layer)
    rules |= {"embedding.weight": Rule(("model.embed_tokens.weight",)), "backbone.norm.weight": Rule(("model.norm.weight",))}
    head = config.heads["language_model"]
    if isinstance(head, LanguageModelHeadConfig) and not head.tied:
        rules["heads.language_model.weight"] = Rule(("lm_head.weight",))
    return rules


FAMILIES = [
    Family(kind, architecture, _to_ours(kind), _to_theirs(kind), _rules, KEYS, REQUIRED)
    for kind, architecture in (
        ("llama", "LlamaForCausalLM"),
        ("mistral", "MistralForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
    )
]
