"""The block of a decoder that a frozen layer of an encoder is made of: read from a run or a model folder, ours or of transformers."""

from __future__ import annotations

from mmlm.backbone.attention import Attention
from mmlm.backbone.backbone import Backbone
from mmlm.backbone.config import BackboneConfig
from mmlm.base.errors import RecipeError
from mmlm.encoders.config import FrozenBlockConfig
from mmlm.encoders.frozen_block import FrozenBlock, begin
from mmlm.interop.load import load
from mmlm.parameters import initialize


def read_block(config: FrozenBlockConfig, size: int) -> FrozenBlock:
    """The block for an encoder whose tokens have `size` numbers.

    Raises RecipeError where the decoder has no such layer, or one that cannot see all tokens at once, and CheckpointError as `load` does.
    """
    if config.path is None:
        assert config.shape is not None
        backbone = Backbone(config.shape)
    else:
        whole = load(config.path).backbone.float()
        backbone = _one_layer(whole, config)
    layer = backbone.layers[0]
    found = FrozenBlock(size, backbone.config.width, layer, backbone.norm, _saved(config, backbone.config))
    begin(found)
    return found


def _one_layer(whole: Backbone, config: FrozenBlockConfig) -> Backbone:
    count = len(whole.layers)
    if not -count <= config.layer < count:
        raise RecipeError(f"frozen_lm.layer: {config.path} has the layers 0 to {count - 1} (or -{count} to -1), but not {config.layer}.")
    place = config.layer % count
    mixer = whole.layers[place].mixer
    if not isinstance(mixer, Attention) or mixer.config.over is not None:
        raise RecipeError(f"frozen_lm: layer {place} of {config.path} is no attention over all tokens, so it cannot see them in no order.")
    free = mixer.config.model_copy(update={"causal": None, "rope": None, "window": None, "sinks": 0, "alibi": False})
    layers = whole.config.layers[place].model_copy(update={"mixer": free})
    shape = whole.config.model_copy(update={"pattern": [layers], "num_layers": 1, "learned_positions": None, "dropout": 0.0})
    found = Backbone(shape)
    if config.random:
        initialize(found, count)
        return found
    found.layers[0].load_state_dict(whole.layers[place].state_dict())
    found.norm.load_state_dict(whole.norm.state_dict())
    return found


def _saved(config: FrozenBlockConfig, shape: BackboneConfig) -> FrozenBlockConfig:
    return config.model_copy(update={"path": None, "shape": shape})
