"""How a family of foreign checkpoints is described: our config from theirs and back, and where each of our tensors comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmlm.backbone.config import (
    AttentionConfig,
    DeltaNetConfig,
    GegluConfig,
    GeluConfig,
    Mamba1Config,
    Mamba2Config,
    MoeConfig,
    Relu2Config,
    SwigluConfig,
)
from mmlm.backbone.feed_forward import hidden_width
from mmlm.backbone.mamba1 import step_rank
from mmlm.base.errors import CheckpointError, unknown_name
from mmlm.heads.config import LanguageModelHeadConfig
from mmlm.model_config import ModelConfig
from mmlm.parameters import inner_width


@dataclass(frozen=True)
class Rule:
    """One tensor of ours from one or more of theirs, joined along the first axis.

    sizes: rows of each of theirs, for the way back.   order: rows of theirs, joined, that are ours, in our order; default all as they are.
    Rows that are missing there belong to another rule.   transposed: theirs is [in, out].   middle_axis: theirs has a further axis of 1
    after the first.   plus: what ours are larger by, 1 for norms that store their distance from one.
    """

    theirs: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    order: Tensor | None = None
    transposed: bool = False
    middle_axis: bool = False
    plus: float = 0.0

    def read(self, get: Callable[[str], Tensor]) -> Tensor:
        """Our tensor from theirs."""
        parts = [get(name) for name in self.theirs]
        parts = [part.T if self.transposed else part.squeeze(1) if self.middle_axis else part for part in parts]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        whole = whole if self.order is None else whole[self.order]
        return whole + self.plus if self.plus else whole

    def write(self, ours: Tensor, into: dict[str, Tensor]) -> None:
        """Put ours into their tensors, which are made where they are not there yet."""
        whole = ours - self.plus if self.plus else ours
        if self.order is not None:
            whole = whole.new_zeros(sum(self.sizes), *whole.shape[1:]).index_copy(0, self.order.to(whole.device), whole)
        mine = None if self.order is None else torch.zeros(sum(self.sizes), dtype=torch.bool).index_fill(0, self.order, True)
        sizes = list(self.sizes) or [len(whole)]
        for name, part, rows in zip(self.theirs, whole.split(sizes), sizes if mine is None else mine.split(sizes), strict=True):
            part = part.T if self.transposed else part.unsqueeze(1) if self.middle_axis else part
            if isinstance(rows, Tensor) and name in into:
                into[name][rows] = part[rows]
            else:
                into[name] = part.contiguous()


@dataclass(frozen=True)
class Family:
    """A model type of transformers.

    to_ours: their config -> ours.   to_theirs: ours, as `written_out` gives it, -> their config, or None where it is clearly not of this
    family; what it says is read back by to_ours and must give the same model.   rules: for a config of ours, {name of ours: Rule}.
    keys: the keys of their config that are understood; all others must be in IGNORED or have the value given in `required`.
    """

    model_type: str
    architecture: str
    to_ours: Callable[[dict[str, Any]], ModelConfig]
    to_theirs: Callable[[ModelConfig], dict[str, Any] | None]
    rules: Callable[[ModelConfig], dict[str, Rule]]
    keys: frozenset[str]
    required: dict[str, Any]


IGNORED = frozenset(
    """
    architectures model_type torch_dtype dtype transformers_version use_cache bos_token_id eos_token_id
    pad_token_id unk_token_id initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop
    dropout pretraining_tp max_window_layers auto_map is_decoder return_dict output_hidden_states
    output_attentions chunk_size_feed_forward id2label label2id problem_type is_encoder_decoder
    task_specific_params summary_type summary_use_proj summary_activation summary_proj_to_labels
    summary_first_dropout n_ctx residual_in_fp32 rescale_prenorm_residual time_step_rank time_step_min
    time_step_max time_step_floor time_step_init_scheme time_step_scale use_mambapy gradient_checkpointing
    transformers.js_config quantization_config_none layer_norm_epsilon_unused is_llama_config rope_interleaved
    sep_token_id decoder_start_token_id cross_attention_hidden_size output_router_logits mlp_bias_none
    tokenizer_class finetuning_task prefix attn_implementation num_logits_to_keep use_mamba_kernels
    use_associative_scan mamba_ssm_cache_dtype router_aux_loss_coef router_jitter_noise z_loss_coefficient cache_implementation
    """.split()  # noqa: SIM905
)


def check_keys(config: dict[str, Any], family: Family, where: str) -> None:
    """Raise CheckpointError for keys of a foreign config that might change the model and are not understood."""
    known = family.keys | IGNORED | family.required.keys()
    unknown = sorted(key for key in config if key not in known and not key.startswith("_"))  # those are transformers' own notes
    if unknown:
        raise CheckpointError(
            f"{where}: {unknown_name('key', unknown[0], family.keys)} Refused, since it may change what the model computes"
            + (f" (also: {', '.join(unknown[1:10])})." if len(unknown) > 1 else ".")
        )
    for key, value in family.required.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if key in config and config[key] not in allowed:
            raise CheckpointError(f"{where}: {key} is {config[key]!r}; only {' or '.join(map(repr, allowed))} is supported.")


def layer_rules(num_layers: int, make: Callable[[int], Iterable[tuple[str, Rule]]]) -> dict[str, Rule]:
    """Rules of all layers; `make` gives those of one, without our `backbone.layers.N.` prefix."""
    return {f"backbone.layers.{index}.{name}": rule for index in range(num_layers) for name, rule in make(index)}


def written_out(config: ModelConfig) -> ModelConfig:
    """The same model with every layer in its pattern and every size that follows from others written down, ranges of a head only where
    they leave ids out."""
    backbone = config.backbone
    layers = [
        layer.model_copy(update={"mixer": _sized(layer.mixer, backbone.width), "feed_forward": _sized(layer.feed_forward, backbone.width)})
        for layer in backbone.layers
    ]
    heads = {
        name: head.model_copy(update={"ranges": None})
        if isinstance(head, LanguageModelHeadConfig) and set(head.ranges or ()) >= config.vocabulary.keys()
        else head
        for name, head in config.heads.items()
    }
    return config.model_copy(update={"backbone": backbone.model_copy(update={"pattern": layers, "feed_forward": None}), "heads": heads})


def _sized(part: Any, width: int) -> Any:
    changes: dict[str, Any] = {}
    match part:
        case AttentionConfig():
            head = part.head_size or width // part.num_heads
            changes = {"num_kv_heads": part.num_kv_heads or part.num_heads, "head_size": head}
            changes["score_scale"] = part.score_scale or head**-0.5
        case Mamba1Config():
            changes = {"step_rank": step_rank(part, width), "expand": inner_width(part.expand, width) / width}
        case Mamba2Config():
            changes = {"expand": inner_width(part.expand, width) / width}
        case DeltaNetConfig():
            changes = {"num_key_heads": part.num_key_heads or part.num_heads, "value_size": part.value_size or part.key_size}
        case MoeConfig():
            hidden = hidden_width(part, width)
            changes = {"hidden": hidden, "shared_hidden": part.shared_hidden or hidden}
        case SwigluConfig() | GegluConfig() | GeluConfig() | Relu2Config():
            changes = {"hidden": hidden_width(part, width)}
    return part.model_copy(update=changes) if changes else part


TRAINING_ONLY = frozenset(
    """
    dropout recompute chunk_size min_step max_step balance_weight router_z_weight capacity_factor priority z_loss label_smoothing
    """.split()  # noqa: SIM905
)


def differences(config: ModelConfig, other: ModelConfig) -> list[str]:
    """What a config would change of another's model, whatever both say about training and the names of ids."""
    left, right = _flat(config), _flat(other)
    return [
        f"{key} would be {left.get(key)}, not {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flat(config: ModelConfig) -> dict[str, Any]:
    """What counts of a config, one dotted key a value."""
    found: dict[str, Any] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict | list):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                if key not in TRAINING_ONLY:
                    visit(f"{path}.{key}" if path else str(key), part)
        else:
            found[path] = value

    visit("", {**written_out(config).model_dump(mode="json"), "vocabulary": sum(config.vocabulary.values())})
    return found
