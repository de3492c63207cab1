"""GPT-2: learned positions, LayerNorm, biases, matrices stored [in, out]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmlm.backbone.config import AttentionConfig, BackboneConfig, GeluConfig, LayerConfig
from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.model_config import ModelConfig

KEYS = frozenset(
    """
    vocab_size n_embd n_layer n_head n_positions n_inner layer_norm_epsilon tie_word_embeddings
    activation_function
    """.split()  # noqa: SIM905
)
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
}


def _to_ours(config: dict[str, Any]) -> ModelConfig:
    mixer = AttentionConfig(num_heads=config["n_head"], rope=None, qkv_bias=True, out_bias=True)
    return ModelConfig(
        schema=1,
        vocabulary={"text": config["vocab_size"]},
        backbone=BackboneConfig(
            width=config["n_embd"],
            num_layers=config["n_layer"],
            pattern=[LayerConfig(mixer=mixer)],
            feed_forward=GeluConfig(hidden=config.get("n_inner") or 4 * config["n_embd"]),
            norm="layer",
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
            learned_positions=config["n_positions"],
        ),
        heads={"language_model": LanguageModelHeadConfig(tied=config.get("tie_word_embeddings", True))},
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any] | None:
    backbone, layer = config.backbone, config.backbone.layers[0]
    mixer, feed, head = layer.mixer, layer.feed_forward, config.heads.get("language_model")
    if not isinstance(mixer, AttentionConfig) or not isinstance(feed, GeluConfig) or not isinstance(head, LanguageModelHeadConfig):
        return None
    if backbone.learned_positions is None:
        return None
    return {
        "vocab_size": sum(config.vocabulary.values()),
        "n_embd": backbone.width,
        "n_layer": backbone.num_layers,
        "n_head": mixer.num_heads,
        "n_positions": backbone.learned_positions,
        "n_inner": feed.hidden,
        "layer_norm_epsilon": backbone.norm_eps,
        "tie_word_embeddings": head.tied,
        "activation_function": "gelu_new",
    }


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem = f"transformer.h.{index}"
        for ours, theirs in (
            ("mixer.qkv", "attn.c_attn"),
            ("mixer.out", "attn.c_proj"),
            ("feed_forward.up", "mlp.c_fc"),
            ("feed_forward.down", "mlp.c_proj"),
        ):
            yield f"{ours}.weight", Rule((f"{stem}.{theirs}.weight",), transposed=True)
            yield f"{ours}.bias", Rule((f"{stem}.{theirs}.bias",))
        for ours, theirs in (("mixer_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            for kind in ("weight", "bias"):
                yield f"{ours}.{kind}", Rule((f"{stem}.{theirs}.{kind}",))

    rules = layer_rules(config.backbone.num_layers, layer)
    rules["embedding.weight"] = Rule(("transformer.wte.weight",))
    rules["backbone.positions.weight"] = Rule(("transformer.wpe.weight",))
    rules |= {f"backbone.norm.{kind}": Rule((f"transformer.ln_f.{kind}",)) for kind in ("weight", "bias")}
    head = config.heads["language_model"]
    if isinstance(head, LanguageModelHeadConfig) and not head.tied:
        rules["heads.language_model.weight"] = Rule(("lm_head.weight",))
    return rules


FAMILIES = [Family("gpt2", "GPT2LMHeadModel", _to_ours, _to_theirs, _rules, KEYS, REQUIRED)]
