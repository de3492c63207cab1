"""Rotary settings as configs of transformers hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmlm.backbone.config import RopeConfig
from mmlm.base.errors import CheckpointError, unknown_name

KNOWN = frozenset(
    """
    type rope_type rope_theta partial_rotary_factor factor original_max_position_embeddings low_freq_factor high_freq_factor
    beta_fast beta_slow attention_factor truncate mscale mscale_all_dim
    """.split()  # noqa: SIM905
)


def rope_to_ours(config: Mapping[str, Any], fraction: float = 1.0, *, fixed: bool = True) -> RopeConfig:
    """Rotary settings of a foreign config, in the old or the new form.

    fraction: share of channels that turn where the config does not say. fixed: the family turns this share and no other.
    Raises CheckpointError for a scaling or a share that is not known.
    """
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if unknown := sorted(key for key in given if key not in KNOWN):
        raise CheckpointError(f"rope_parameters: {unknown_name('key', unknown[0], KNOWN)}")
    kind = given.pop("rope_type", given.pop("type", "default"))
    base = given.pop("rope_theta", config.get("rope_theta", 10_000.0))
    factor, original = given.get("factor"), given.get("original_max_position_embeddings", config.get("max_position_embeddings"))
    scaling: dict[str, Any] | None
    match kind:
        case "default":
            scaling = None
        case "linear" | "llama3" if factor == 1:  # as it would be without
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
    share = given.get("partial_rotary_factor", config.get("partial_rotary_factor", fraction))
    if fixed and share != fraction:
        raise CheckpointError(f"partial_rotary_factor is {share}; only {fraction} is supported.")
    return RopeConfig(base=base, fraction=share, scaling=scaling)  # type: ignore[arg-type]


def rope_to_theirs(rope: RopeConfig) -> dict[str, Any]:
    """The new form of foreign rotary settings."""
    found: dict[str, Any] = {"rope_theta": rope.base, "rope_type": "default"}
    if rope.fraction != 1:
        found["partial_rotary_factor"] = rope.fraction
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
