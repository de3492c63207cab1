"""Mamba-2 as transformers stores it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mmlm.backbone.config import BackboneConfig, LayerConfig, Mamba2Config
from mmlm.base.errors import CheckpointError
from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.model_config import ModelConfig

KEYS = frozenset(
    """
    vocab_size hidden_size num_hidden_layers num_heads head_dim state_size expand n_groups conv_kernel
    use_conv_bias use_bias chunk_size layer_norm_epsilon tie_word_embeddings time_step_limit
    """.split()  # noqa: SIM905
)
REQUIRED = {"hidden_act": "silu", "rms_norm": True, "norm_before_gate": (True, False)}


def _number(value: Any) -> float:
    """A number as JSON holds it; transformers writes infinity as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _to_ours(config: dict[str, Any]) -> ModelConfig:
    width, expand = config["hidden_size"], config.get("expand", 2)
    if config["num_heads"] * config["head_dim"] != int(expand * width):
        raise CheckpointError(
            f"num_heads * head_dim is {config['num_heads'] * config['head_dim']}, but expand * hidden_size is {expand * width}."
        )
    low, high = (_number(value) for value in config.get("time_step_limit") or (0.0, math.inf))
    mixer = Mamba2Config(
        state_size=config["state_size"],
        head_size=config["head_dim"],
        expand=expand,
        num_groups=config.get("n_groups", 8),
        conv_size=config.get("conv_kernel", 4),
        conv_bias=config.get("use_conv_bias", True),
        bias=config.get("use_bias", False),
        norm_groups=config.get("n_groups", 8),
        step_limit=[float(low), min(float(high), 1e30)],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
    )
    return ModelConfig(
        schema=1,
        vocabulary={"text": config["vocab_size"]},
        backbone=BackboneConfig(
            width=width,
            num_layers=config["num_hidden_layers"],
            pattern=[LayerConfig(mixer=mixer)],
            feed_forward=None,
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
        ),
        heads={"language_model": LanguageModelHeadConfig(tied=config.get("tie_word_embeddings", False))},
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any] | None:
    backbone, mixer, head = config.backbone, config.backbone.layers[0].mixer, config.heads.get("language_model")
    alike = all(layer.mixer == mixer and layer.feed_forward is None for layer in backbone.layers)
    if not isinstance(mixer, Mamba2Config) or not alike or not isinstance(head, LanguageModelHeadConfig) or backbone.norm != "rms":
        return None
    if mixer.norm_groups != mixer.num_groups or mixer.norm_eps != backbone.norm_eps or backbone.learned_positions:
        return None
    low, high = mixer.step_limit
    return {
        "vocab_size": sum(config.vocabulary.values()),
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.num_layers,
        "num_heads": int(mixer.expand * backbone.width) // mixer.head_size,
        "head_dim": mixer.head_size,
        "state_size": mixer.state_size,
        "expand": int(mixer.expand) if mixer.expand == int(mixer.expand) else mixer.expand,
        "n_groups": mixer.num_groups,
        "conv_kernel": mixer.conv_size,
        "use_conv_bias": mixer.conv_bias,
        "use_bias": mixer.bias,
        "chunk_size": mixer.chunk_size,
        "layer_norm_epsilon": backbone.norm_eps,
        "tie_word_embeddings": head.tied,
        "time_step_limit": [low, math.inf if high >= 1e30 else high],
    }


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        mixer, stem = config.backbone.layers[index].mixer, f"backbone.layers.{index}"
        assert isinstance(mixer, Mamba2Config)
        yield "mixer_norm.weight", Rule((f"{stem}.norm.weight",))
        for ours, theirs in (("input", "in_proj"), ("out", "out_proj")):
            yield f"mixer.{ours}.weight", Rule((f"{stem}.mixer.{theirs}.weight",))
            if mixer.bias:
                yield f"mixer.{ours}.bias", Rule((f"{stem}.mixer.{theirs}.bias",))
        yield "mixer.conv_weight", Rule((f"{stem}.mixer.conv1d.weight",), middle_axis=True)
        if mixer.conv_bias:
            yield "mixer.conv_bias", Rule((f"{stem}.mixer.conv1d.bias",))
        for ours, theirs in (("step_bias", "dt_bias"), ("decay_log", "A_log"), ("skip", "D"), ("norm_weight", "norm.weight")):
            yield f"mixer.{ours}", Rule((f"{stem}.mixer.{theirs}",))

    rules = layer_rules(config.backbone.num_layers, layer)
    rules |= {"embedding.weight": Rule(("backbone.embeddings.weight",)), "backbone.norm.weight": Rule(("backbone.norm_f.weight",))}
    head = config.heads["language_model"]
    if isinstance(head, LanguageModelHeadConfig) and not head.tied:
        rules["heads.language_model.weight"] = Rule(("lm_head.weight",))
    return rules


FAMILIES = [Family("mamba2", "Mamba2ForCausalLM", _to_ours, _to_theirs, _rules, KEYS, REQUIRED)]
