"""The parts that families of foreign decoders share: attention, Mamba, feed-forwards, experts and ends; their keys and their tensors.

A family gives the names that its config and its tensors have; everything here expects configs as `written_out` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from mmlm.backbone.config import (
    AttentionConfig,
    BackboneConfig,
    GegluConfig,
    LayerConfig,
    Mamba1Config,
    Mamba2Config,
    MoeConfig,
    RopeConfig,
    SwigluConfig,
)
from mmlm.base.errors import CheckpointError
from mmlm.base.registry import Component
from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.interop.name_map import Rule
from mmlm.model_config import ModelConfig
from mmlm.parameters import inner_width

Rules = Iterator[tuple[str, Rule]]
GATED = ("gate_proj", "up_proj", "down_proj")


def decoder(config: Mapping[str, Any], layers: Sequence[LayerConfig], eps: float, tied: bool, **more: Any) -> ModelConfig:
    """A model of ours with these layers. more: of the backbone; soft_cap: of the head."""
    head = LanguageModelHeadConfig(tied=config.get("tie_word_embeddings", tied), soft_cap=more.pop("soft_cap", None))
    pattern = list(layers if any(layer != layers[0] for layer in layers) else layers[:1])
    backbone = BackboneConfig(width=config["hidden_size"], num_layers=len(layers), pattern=pattern, feed_forward=None, norm_eps=eps, **more)
    return ModelConfig(schema=1, vocabulary={"text": config["vocab_size"]}, backbone=backbone, heads={"language_model": head})


def decoder_keys(config: ModelConfig) -> dict[str, Any]:
    """What every family says of a model."""
    return {
        "vocab_size": sum(config.vocabulary.values()),
        "hidden_size": config.backbone.width,
        "num_hidden_layers": config.backbone.num_layers,
        "tie_word_embeddings": is_tied(config),
    }


def is_tied(config: ModelConfig) -> bool:
    """Whether the head's rows are those of the embedding."""
    head = config.heads["language_model"]
    return isinstance(head, LanguageModelHeadConfig) and head.tied


def end_rules(config: ModelConfig, embedding: str, norm: str, plus: float = 0.0) -> dict[str, Rule]:
    """Embedding, final norm and head."""
    rules = {"embedding.weight": Rule((f"{embedding}.weight",)), "backbone.norm.weight": Rule((f"{norm}.weight",), plus=plus)}
    return rules if is_tied(config) else rules | {"heads.language_model.weight": Rule(("lm_head.weight",))}


def norm_rules(names: Mapping[str, str], stem: str, plus: float = 0.0) -> Rules:
    """RMS norms of a layer, {ours: theirs}."""
    for ours, theirs in names.items():
        yield f"{ours}.weight", Rule((f"{stem}.{theirs}.weight",), plus=plus)


def attention_to_ours(config: Mapping[str, Any], rope: RopeConfig | None, **more: Any) -> AttentionConfig:
    """Attention with the sizes that a config names as most families do."""
    heads = config["num_attention_heads"]
    return AttentionConfig(
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        rope=rope,
        **more,
    )


def attention_keys(attention: AttentionConfig | None) -> dict[str, Any]:
    """Sizes of attention as most families name them; those of one head where no layer attends."""
    if attention is None:
        return {"num_attention_heads": 1, "num_key_value_heads": 1}
    kv, head = attention.num_kv_heads, attention.head_size
    return {"num_attention_heads": attention.num_heads, "num_key_value_heads": kv, "head_dim": head}


def attention_rules(attention: AttentionConfig, stem: str, plus: float = 0.0) -> Rules:
    """Projections and norms of queries and keys. A gate lies in the query's projection, head by head behind the query's rows."""
    heads, head = attention.num_heads, attention.head_size or 0
    query, shared = heads * head, (attention.num_kv_heads or heads) * head
    for kind in ("weight", "bias") if attention.qkv_bias else ("weight",):
        names = tuple(f"{stem}.{part}_proj.{kind}" for part in "qkv")
        if not attention.gate:
            yield f"mixer.qkv.{kind}", Rule(names, (query, shared, shared))
            continue
        own, gate = torch.arange(2 * query).view(heads, 2, head).unbind(1)
        rest = torch.arange(2 * query, 2 * query + 2 * shared)
        yield f"mixer.qkv.{kind}", Rule(names, (2 * query, shared, shared), torch.cat([own.flatten(), rest]))
        yield f"mixer.gate.{kind}", Rule(names[:1], (2 * query,), gate.flatten())
    for kind in ("weight", "bias") if attention.out_bias else ("weight",):
        yield f"mixer.out.{kind}", Rule((f"{stem}.o_proj.{kind}",))
    if attention.qk_norm:
        yield from norm_rules({"mixer.q_norm": "q_norm", "mixer.k_norm": "k_norm"}, stem, plus)


MAMBA1_DEFAULTS = {"state_size": 16, "expand": 2, "conv_size": 4, "conv_bias": True, "bias": False, "step_rank": "auto"}
MAMBA2_DEFAULTS = {"state_size": None, "head_size": None, "num_groups": None, "conv_size": 4, "conv_bias": True, "bias": False}


def _named(config: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Values by our names. Raises KeyError for one that is missing and has no default."""
    return {ours: config[names[ours]] if value is None else config.get(names[ours], value) for ours, value in defaults.items()}


def mamba1_to_ours(config: Mapping[str, Any], names: Mapping[str, str], **more: Any) -> Mamba1Config:
    """Mamba, with their key for each of our fields."""
    found = _named(config, names, MAMBA1_DEFAULTS)
    if found["step_rank"] == "auto":
        found["step_rank"] = math.ceil(config["hidden_size"] / 16)
    return Mamba1Config(**found, **more)


def mamba1_keys(mamba: Mamba1Config | None, names: Mapping[str, str]) -> dict[str, Any]:
    """The way back of `mamba1_to_ours`; nothing where no layer is one."""
    if mamba is None:
        return {}
    values = {ours: getattr(mamba, ours) for ours in MAMBA1_DEFAULTS} | {"expand": _whole(mamba.expand)}
    return {names[ours]: value for ours, value in values.items()}


def mamba2_to_ours(config: Mapping[str, Any], names: Mapping[str, str], eps: float, step_limit: Sequence[Any]) -> Mamba2Config:
    """Mamba-2, with their key for each of our fields, and for num_heads."""
    found, width = _named(config, names, MAMBA2_DEFAULTS), config["hidden_size"]
    inner = config[names["num_heads"]] * found["head_size"]
    if "expand" in names and (expand := config.get(names["expand"], 2)) * width // 1 != inner:
        sizes = f"{names['num_heads']} * {names['head_size']} is {inner}, but {names['expand']} * hidden_size is {expand * width}"
        raise CheckpointError(f"{sizes}; both must be the same.")
    low, high = (float(value["__float__"] if isinstance(value, dict) else value) for value in step_limit)
    return Mamba2Config(**found, expand=inner / width, norm_groups=found["num_groups"], norm_eps=eps, step_limit=[low, min(high, 1e30)])


def mamba2_keys(mamba: Mamba2Config | None, names: Mapping[str, str], width: int) -> dict[str, Any]:
    """The way back of `mamba2_to_ours`; one head where no layer is one."""
    if mamba is None:
        return {names["num_heads"]: 1}
    values: dict[str, Any] = {ours: getattr(mamba, ours) for ours in (*MAMBA2_DEFAULTS, "chunk_size")}
    values["num_heads"] = inner_width(mamba.expand, width) // mamba.head_size
    if "expand" in names:
        values["expand"] = _whole(mamba.expand)
    return {theirs: values[ours] for ours, theirs in names.items()}


def step_limit_key(mamba: Mamba2Config) -> list[float]:
    """Bounds of the time step as their configs have them."""
    low, high = mamba.step_limit
    return [low, math.inf if high >= 1e30 else high]


def _whole(expand: float) -> int:
    """An expand as transformers takes it. Raises CheckpointError for a fraction."""
    if expand != int(expand):
        raise CheckpointError(f"expand is {expand:g}, which must be a whole number there")
    return int(expand)


def mamba_rules(mamba: Mamba1Config | Mamba2Config, stem: str) -> Rules:
    """Both Mambas."""
    names = {
        "conv_weight": "conv1d.weight",
        "decay_log": "A_log",
        "skip": "D",
        "input.weight": "in_proj.weight",
        "out.weight": "out_proj.weight",
    }
    if mamba.bias:
        names |= {"input.bias": "in_proj.bias", "out.bias": "out_proj.bias"}
    if mamba.conv_bias:
        names["conv_bias"] = "conv1d.bias"
    if isinstance(mamba, Mamba2Config):
        names |= {"step_bias": "dt_bias", "norm_weight": "norm.weight"}
    else:
        names |= {"select.weight": "x_proj.weight", "step.weight": "dt_proj.weight", "step_bias": "dt_proj.bias"}
        if mamba.select_norm:
            names |= {f"select_norms.{index}.weight": f"{part}_layernorm.weight" for index, part in enumerate(("dt", "b", "c"))}
    for ours, theirs in names.items():
        yield f"mixer.{ours}", Rule((f"{stem}.{theirs}",), middle_axis=ours == "conv_weight")


def feed_rules(feed: Component, stem: str, names: Sequence[str] = GATED, ours: str = "feed_forward") -> Rules:
    """A feed-forward without routing. names: their gate, up and down; up and down for a kind without a gate."""
    hidden, *firsts, down = getattr(feed, "hidden", 0), *names
    if not isinstance(feed, SwigluConfig | GegluConfig):
        firsts = firsts[-1:]
    for kind in ("weight", "bias") if getattr(feed, "bias", False) else ("weight",):
        yield f"{ours}.up.{kind}", Rule(tuple(f"{stem}.{first}.{kind}" for first in firsts), (hidden,) * len(firsts))
        yield f"{ours}.down.{kind}", Rule((f"{stem}.{down}.{kind}",))


def expert_rules(feed: MoeConfig, stem: str, names: Sequence[str] = GATED, router: str = "gate") -> Rules:
    """A mixture of experts, each expert on its own, with at most one that all tokens share."""
    yield "feed_forward.router.weight", Rule((f"{stem}.{router}.weight",))
    for index in range(feed.num_experts):
        yield from feed_rules(SwigluConfig(hidden=feed.hidden), f"{stem}.experts.{index}", names, f"feed_forward.experts.{index}")
    if feed.num_shared:
        yield from feed_rules(SwigluConfig(hidden=feed.shared_hidden), f"{stem}.shared_expert", names, "feed_forward.shared.0")
    if feed.shared_gate:
        yield "feed_forward.shared_gate.weight", Rule((f"{stem}.shared_expert_gate.weight",))


def mixers(config: ModelConfig, *kinds: type) -> list[Any] | None:
    """The mixers of a model if each is of one of these kinds, else None."""
    found = [layer.mixer for layer in config.backbone.layers]
    return found if all(isinstance(mixer, kinds) for mixer in found) else None


def first_of(parts: Iterable[Any], kind: type) -> Any:
    """The first part of a kind, or None."""
    return next((part for part in parts if isinstance(part, kind)), None)
