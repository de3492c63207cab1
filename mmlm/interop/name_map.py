"""How a family of foreign checkpoints is described: our config from theirs and back, and where each of our tensors comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmlm.base.errors import CheckpointError, unknown_name
from mmlm.model_config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """One tensor of ours from one or more of theirs, joined along the first axis.

    sizes: rows of each of theirs, for the way back.   transposed: theirs is [in, out].   shape: theirs, where it has further axes of 1.
    """

    theirs: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    transposed: bool = False
    middle_axis: bool = False

    def read(self, get: Callable[[str], Tensor]) -> Tensor:
        """Our tensor from theirs."""
        parts = [get(name) for name in self.theirs]
        parts = [part.T if self.transposed else part.squeeze(1) if self.middle_axis else part for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def write(self, ours: Tensor) -> dict[str, Tensor]:
        """Their tensors from ours."""
        parts = ours.split(list(self.sizes)) if len(self.theirs) > 1 else [ours]
        parts = [part.T if self.transposed else part.unsqueeze(1) if self.middle_axis else part for part in parts]
        return {name: part.contiguous() for name, part in zip(self.theirs, parts, strict=True)}


@dataclass(frozen=True)
class Family:
    """A model type of transformers.

    to_ours: their config -> ours.   to_theirs: ours -> their config, or None where it is not of this family.   rules: for a config of
    ours, {name of ours: Rule}.   keys: the keys of their config that to_ours reads; all others must be in IGNORED or have the value given.
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
    tokenizer_class finetuning_task prefix attn_implementation
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
