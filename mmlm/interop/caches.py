"""Caches of transformers in and out, so that a prefix read by one model is continued by the other.

Keys are kept after rotation on both sides. A sliding layer of transformers keeps the last window - 1 tokens alone; those before it are
filled with zeros here, which no query sees. Its linear-attention layers keep as many columns for a short convolution as it has taps, one
more than is ever read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.backbone.cache import Cache, State
from mmlm.base.errors import CheckpointError, require
from mmlm.model import MultimodalLM


def cache_to_transformers(cache: Cache, config: Any) -> Any:
    """A DynamicCache that the model of transformers with this config continues.

    Raises CheckpointError where rows differ in length (transformers pads on the left instead) or a layer has no counterpart.
    """
    utils = require("transformers.cache_utils", "hf")
    lengths = cache.length.unique().tolist()
    if len(lengths) != 1:
        raise CheckpointError(f"rows of a cache for transformers must be alike in length, but these hold {cache.length.tolist()} tokens.")
    found = utils.DynamicCache(config=config)
    if len(found.layers) != len(cache.layers):
        raise CheckpointError(f"the cache has {len(cache.layers)} layers, but the model of transformers {len(found.layers)}.")
    for index, (state, layer) in enumerate(zip(cache.whole().layers, found.layers, strict=True)):
        if state is None:
            continue
        by_role = _by_role(state, index)
        if "kv" in by_role:
            key, value = (state.tensors[name][:, :, : lengths[0]].clone() for name in ("key", "value"))
            layer.update(key, value)
        if "conv" in by_role:
            layer.update_conv_state(F.pad(by_role["conv"], (1, 0)))
        if "recurrent" in by_role:
            layer.update_recurrent_state(by_role["recurrent"].clone())
    return found


def cache_from_transformers(theirs: Any, model: MultimodalLM, *, length: int | None = None) -> Cache:
    """A cache that our model continues. length: tokens read so far, needed where no layer is attention, which alone counts them.

    Raises CheckpointError where it is the cache of another model, or the length is not known.
    """
    first = next((layer for layer in theirs.layers if getattr(layer, "keys", None) is not None or hasattr(layer, "conv_states")), None)
    if first is None or len(theirs.layers) != len(model.backbone.layers):
        raise CheckpointError(f"the cache of transformers has {len(theirs.layers)} layers, but the model {len(model.backbone.layers)}.")
    counted = [int(layer.get_seq_length()) for layer in theirs.layers if getattr(layer, "keys", None) is not None]
    if not counted and length is None:
        raise CheckpointError("no layer of this cache counts tokens; give the length, the number of tokens it has read.")
    length = max(counted) if counted else int(length or 0)
    batch = len(first.keys if getattr(first, "keys", None) is not None else first.conv_states[0])
    cache = model.backbone.init_cache(batch, length)
    filled = torch.full((batch,), length, device=model.device)
    for index, (state, layer) in enumerate(zip(cache.layers, theirs.layers, strict=True)):
        if state is None:
            continue
        for name, role in state.roles.items():
            given = _theirs(layer, name, role, length)
            if given is None or (role != "kv" and given.shape != state.tensors[name].shape):
                raise CheckpointError(f"layer {index} of the cache holds no {role} state for {name!r} of this model.")
            state.tensors[name] = given.to(state.tensors[name].dtype)
        state.length = filled.clone()
    cache.length = filled.clone()
    return cache


def _theirs(layer: Any, name: str, role: str, length: int) -> Tensor | None:
    if role == "kv":
        kept = getattr(layer, f"{name}s", None)
        return None if kept is None else F.pad(kept, (0, 0, length - kept.shape[2], 0))
    states = getattr(layer, f"{role}_states", None)
    kept = None if states is None else states[0]
    if kept is None:
        return None
    return kept[..., 1:].clone() if role == "conv" else kept.clone()


def _by_role(state: State, index: int) -> dict[str, Tensor]:
    """The tensors of a state by their role; a role other than kv must occur once."""
    found: dict[str, Tensor] = {}
    for name, role in state.roles.items():
        if role in found and role != "kv":
            raise CheckpointError(f"layer {index} holds several {role} states; transformers has no counterpart for it.")
        found[role] = state.tensors[name]
    return found
