"""Mamba and Mamba-2 as transformers stores them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mmlm.backbone.config import LayerConfig, Mamba1Config, Mamba2Config
from mmlm.base.errors import CheckpointError
from mmlm.interop import parts
from mmlm.interop.name_map import Family, Rule, layer_rules
from mmlm.model_config import ModelConfig
from mmlm.parameters import inner_width

MAMBA1 = {"state_size": "state_size", "expand": "expand", "conv_size": "conv_kernel", "conv_bias": "use_conv_bias", "bias": "use_bias"}
MAMBA1 |= {"step_rank": "time_step_rank"}
MAMBA2 = {"state_size": "state_size", "expand": "expand", "conv_size": "conv_kernel", "conv_bias": "use_conv_bias", "bias": "use_bias"}
MAMBA2 |= {"num_heads": "num_heads", "head_size": "head_dim", "num_groups": "n_groups", "chunk_size": "chunk_size"}
# of the first checkpoints: said again by other keys, or how the same is computed
REPEATED = ("d_inner", "d_model", "n_layer", "fused_add_norm", "pad_vocab_size_multiple")
COMMON = ("vocab_size", "hidden_size", "num_hidden_layers", "layer_norm_epsilon", "tie_word_embeddings")


def _mamba1(config: dict[str, Any], eps: float) -> Mamba1Config:
    mixer = parts.mamba1_to_ours(config, MAMBA1)
    inner = inner_width(mixer.expand, config["hidden_size"])
    if (given := config.get("intermediate_size", inner)) != inner:
        raise CheckpointError(f"intermediate_size is {given}, but expand * hidden_size is {inner}; both must be the same.")
    return mixer


def _mamba2(config: dict[str, Any], eps: float) -> Mamba2Config:
    return parts.mamba2_to_ours(config, MAMBA2, eps, config.get("time_step_limit") or (0.0, 1e30))


def _to_ours(mixer: Callable[[dict[str, Any], float], Any], tied: bool) -> Callable[[dict[str, Any]], ModelConfig]:
    def convert(config: dict[str, Any]) -> ModelConfig:
        eps = config.get("layer_norm_epsilon", 1e-5)
        layer = LayerConfig(mixer=mixer(config, eps), feed_forward=None)
        return parts.decoder(config, [layer] * config["num_hidden_layers"], eps, tied)

    return convert


def _to_theirs(kind: type) -> Callable[[ModelConfig], dict[str, Any] | None]:
    def convert(config: ModelConfig) -> dict[str, Any] | None:
        backbone, found = config.backbone, parts.mixers(config, kind)
        if found is None:
            return None
        mixer, keys = found[0], parts.decoder_keys(config) | {"layer_norm_epsilon": backbone.norm_eps}
        if isinstance(mixer, Mamba1Config):
            return keys | parts.mamba1_keys(mixer, MAMBA1) | {"intermediate_size": inner_width(mixer.expand, backbone.width)}
        return keys | parts.mamba2_keys(mixer, MAMBA2, backbone.width) | {"time_step_limit": parts.step_limit_key(mixer)}

    return convert


def _rules(config: ModelConfig) -> dict[str, Rule]:
    def layer(index: int) -> Iterator[tuple[str, Rule]]:
        stem, mixer = f"backbone.layers.{index}", config.backbone.layers[index].mixer
        assert isinstance(mixer, Mamba1Config | Mamba2Config)
        yield from parts.norm_rules({"mixer_norm": "norm"}, stem)
        yield from parts.mamba_rules(mixer, f"{stem}.mixer")

    ends = parts.end_rules(config, "backbone.embeddings", "backbone.norm_f")
    return layer_rules(config.backbone.num_layers, layer) | ends


FAMILIES = [
    Family("mamba", "MambaForCausalLM", _to_ours(_mamba1, True), _to_theirs(Mamba1Config), _rules,
           frozenset([*COMMON, *MAMBA1.values(), "intermediate_size", *REPEATED]),
           {"hidden_act": "silu", "rms_norm": True, "ssm_cfg": ({},)}),
    Family("mamba2", "Mamba2ForCausalLM", _to_ours(_mamba2, False), _to_theirs(Mamba2Config), _rules,
           frozenset([*COMMON, *MAMBA2.values(), "time_step_limit"]),
           {"hidden_act": "silu", "rms_norm": True, "norm_before_gate": (True, False)}),
]  # fmt: skip
