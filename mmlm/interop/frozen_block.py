"""The block of a decoder that a frozen layer of an encoder is made of: read from a run or a model folder, ours or of transformers."""

from __future__ import annotations

from mmlm.backbone.attention import Attention
from mmlm.backbone.backbone import Backbone
from mmlm.base.errors import RecipeError
from mmlm.encoders.config import FrozenBlockConfig
from mmlm.encoders.frozen_block import FrozenBlock
from mmlm.interop.load import load
from mmlm.parameters import initialize


def read_block(config: FrozenBlockConfig, size: int) -> FrozenBlock:
    """The block for an encoder whose tokens have `size` numbers.

    Raises RecipeError where the decoder has no such layer, or one that cannot see all tokens at once, and CheckpointError as `load` does.
    """
    if config.shape is not None:
        block = Backbone(config.shape)
    else:
        assert config.path is not None
        block = _one_block(load(config.path).backbone, config)
    saved_as = config.model_copy(update={"path": None, "shape": block.config})
    return FrozenBlock(size, block.config.width, block, saved_as)


def _one_block(whole: Backbone, config: FrozenBlockConfig) -> Backbone:
    """A decoder of the chosen layer alone, without order among tokens."""
    places = _places(whole, config)
    layers = [whole.config.layers[place] for place in places]
    free = whole.layers[places[0]].mixer.config.model_copy(
        update={"causal": None, "rope": None, "window": None, "sinks": 0, "alibi": False}
    )
    layers[0] = layers[0].model_copy(update={"mixer": free})
    shape = {"pattern": layers, "num_layers": len(layers), "learned_positions": None, "dropout": 0.0, "recompute": False}
    found = Backbone(whole.config.model_copy(update=shape))
    if config.random:
        initialize(found, len(whole.layers))
        return found
    for layer, place in zip(found.layers, places, strict=True):
        layer.load_state_dict(whole.layers[place].state_dict())
    found.norm.load_state_dict(whole.norm.state_dict())
    return found


def _places(whole: Backbone, config: FrozenBlockConfig) -> list[int]:
    """The layer that is meant; where attention and feed-forward are layers of their own, both."""
    count = len(whole.layers)
    if not -count <= config.layer < count:
        raise RecipeError(f"frozen_lm.layer: {config.path} has the layers 0 to {count - 1} (or -{count} to -1), but not {config.layer}.")
    place = config.layer % count
    if place and whole.layers[place].mixer is None:
        place -= 1
    mixer = whole.layers[place].mixer
    if not isinstance(mixer, Attention) or mixer.config.over is not None:
        raise RecipeError(
            f"frozen_lm.layer: layer {config.layer} of {config.path} has no attention over all tokens, which alone needs no order."
        )
    is_split = whole.layers[place].feed_forward is None and place + 1 < count and whole.layers[place + 1].mixer is None
    return [place, place + 1] if is_split else [place]
