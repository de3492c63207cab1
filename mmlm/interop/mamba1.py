"""Mamba as transformers stores it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mmlm.backbone.config import BackboneConfig, LayerConfig, Mamba1Config
from mmlm.base.errors import CheckpointError
from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.model_config import ModelConfig

KEYS = frozenset(
    """
    vocab_size hidden_size intermediate_size num_hidden_layers state_size expand conv_kernel use_conv_bias use_bias
    layer_norm_epsilon tie_word_embeddings time_step_rank use_associative_scan
    """.split()  # noqa: SIM905
)
REQUIRED = {"hidden_act": "silu"}


def _to_ours(config: dict[str, Any]) -> ModelConfig:
    width, expand, rank = config["hidden_size"], config.get("expand", 2), config.get("time_step_rank", "auto")
    if config.get("intermediate_size", int(expand * width)) != int(expand * width):
        raise CheckpointError(f"intermediate_size is {config['intermediate_size']}, but expand * hidden_size is {expand * width}.")
    mixer = Mamba1Config(
        state_size=config.get("state_size", 16),
        expand=expand,
        conv_size=config.get("conv_kernel", 4),
        conv_bias=config.get("use_conv_bias", True),
        bias=config.get("use_bias", False),
        step_rank=math.ceil(width / 16) if rank == "auto" else rank,
    )
    eps = config.get("layer_norm_epsilon", 1e-5)
    return ModelConfig(
        schema=1,
        vocabulary={"text": config["vocab_size"]},
        backbone=BackboneConfig(
            width=width, num_layers=config["num_hidden_layers"], pattern=[LayerConfig(mixer=mixer)], feed_forward=None, norm_eps=eps
        ),
        heads={"language_model": LanguageModelHeadConfig(tied=config.get("tie_word_embeddings", True))},
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any] | None:
    backbone, mixer, head = config.backbone, config.backbone.layers[0].mixer, config.heads.get("language_model")
    alike = all(layer.mixer == mixer and layer.feed_forward is None for layer in backbone.layers)
    if not isinstance(mixer, Mamba1Config) or not alike or not isinstance(head, LanguageModelHeadConfig) or backbone.norm != "rms":
        return None
    if mixer.negative_eigenvalues or backbone.learned_positions:
        return None
    return {
        "vocab_size": sum(config.vocabulary.values()),
        "hidden_size": backbone.width,
        "intermediate_size": int(mixer.expand * backbone.width),
        "num_hidden_layers": backbone.num_layers,
        "state_size": mixer.state_size,
        "expand": int(mixer.expand) if mixer.expand == int(mixer.expand) else mixer.expand,
        "conv_kernel": mixer.conv_size,
        "use_conv_bias": mixer.conv_bias,
        "use_bias": mixer.bias,
        "time_step_rank": mixer.step_rank or math.ceil(backbone.width / 16),
        "layer_norm_epsilon": backbone.norm_eps,
        "tie_word_embeddings": head.tied,
    }


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        mixer, stem = config.backbone.layers[index].mixer, f"backbone.layers.{index}"
        assert isinstance(mixer, Mamba1Config)
        yield "mixer_norm.weight", Rule((f"{stem}.norm.weight",))
        for ours, theirs in (("input", "in_proj"), ("out", "out_proj")):
            yield f"mixer.{ours}.weight", Rule((f"{stem}.mixer.{theirs}.weight",))
            if mixer.bias:
                yield f"mixer.{ours}.bias", Rule((f"{stem}.mixer.{theirs}.bias",))
        yield "mixer.conv_weight", Rule((f"{stem}.mixer.conv1d.weight",), middle_axis=True)
        if mixer.conv_bias:
            yield "mixer.conv_bias", Rule((f"{stem}.mixer.conv1d.bias",))
        for ours, theirs in (
            ("select.weight", "x_proj.weight"),
            ("step.weight", "dt_proj.weight"),
            ("step_bias", "dt_proj.bias"),
            ("decay_log", "A_log"),
            ("skip", "D"),
        ):
            yield f"mixer.{ours}", Rule((f"{stem}.mixer.{theirs}",))

    rules = layer_rules(config.backbone.num_layers, layer)
    rules |= {"embedding.weight": Rule(("backbone.embeddings.weight",)), "backbone.norm.weight": Rule(("backbone.norm_f.weight",))}
    head = config.heads["language_model"]
    if isinstance(head, LanguageModelHeadConfig) and not head.tied:
        rules["heads.language_model.weight"] = Rule(("lm_head.weight",))
    return rules


FAMILIES = [Family("mamba", "MambaForCausalLM", _to_ours, _to_theirs, _rules, KEYS, REQUIRED)]
