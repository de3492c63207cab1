"""The stack of layers: a pattern of mixers and feed-forwards with residual connections and one final norm.

Axes: b rows   t tokens   d width
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlm.backbone.cache import Cache, State
from mmlm.backbone.config import BackboneConfig, LayerConfig
from mmlm.backbone.dropout import dropout
from mmlm.backbone.norms import norm
from mmlm.base.errors import RecipeError
from mmlm.base.giving_up import go_on
from mmlm.base.registry import Component
from mmlm.layout import Layout
from mmlm.parameters import name_axes

Aux = dict[str, Tensor]


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)); parallel: both read the same normed x and are added at once.

    With norms around, what is added to x is normed too, each by a norm of its own (Gemma 2, arXiv:2408.00118).
    """

    def __init__(self, config: LayerConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.parallel, self.dropout = config.parallel, backbone.dropout
        width, kind, eps = backbone.width, backbone.norm, backbone.norm_eps
        self.mixer = config.mixer.build(width) if config.mixer else None
        self.feed_forward = config.feed_forward.build(width) if isinstance(config.feed_forward, Component) else None
        self.mixer_norm = norm(kind, width, eps) if self.mixer else None
        self.feed_forward_norm = norm(kind, width, eps) if self.feed_forward and not self.parallel else None
        around = backbone.norm_place == "around"
        self.mixed_norm = norm(kind, width, eps) if self.mixer and around else None
        self.fed_norm = norm(kind, width, eps) if self.feed_forward and around else None

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, Aux]:
        """x [b, t, d] after this layer, the continued state, auxiliary losses by name."""
        aux: Aux = {}
        seen, y_btd = x_btd, None
        if self.mixer is not None and self.mixer_norm is not None:
            seen = self.mixer_norm(x_btd)
            y_btd, state, aux = self.mixer(seen, layout, state)
            y_btd = self._drop(y_btd if self.mixed_norm is None else self.mixed_norm(y_btd))
        if self.feed_forward is not None:
            if self.feed_forward_norm is not None and y_btd is not None:
                seen, x_btd = self.feed_forward_norm.after(y_btd, x_btd)
            elif self.feed_forward_norm is not None:
                seen = self.feed_forward_norm(x_btd)
            elif y_btd is not None:
                x_btd = x_btd + y_btd
            y_btd, more = self.feed_forward(seen, layout)
            y_btd, aux = self._drop(y_btd if self.fed_norm is None else self.fed_norm(y_btd)), aux | more
        return x_btd if y_btd is None else x_btd + y_btd, state, aux

    def _drop(self, y_btd: Tensor) -> Tensor:
        return dropout(y_btd, self.dropout, self.training)


class Backbone(nn.Module):
    """Vectors [b, t, d] -> vectors [b, t, d]."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(layer, config) for layer in config.layers)
        self.norm = norm(config.norm, config.width, config.norm_eps)
        self.positions = nn.Embedding(config.learned_positions, config.width) if config.learned_positions else None
        if self.positions is not None:
            name_axes(self.positions.weight, "positions", "residual")

    def set_dropout(self, share: float) -> None:
        """Drop so much from now on, whatever the config said."""
        self.config = self.config.model_copy(update={"dropout": share})
        for layer in self.layers:
            layer.dropout = share

    def init_cache(self, batch: int, max_length: int = 0, *, dtype: torch.dtype | None = None) -> Cache:
        """An empty cache with room for max_length tokens a row (it grows when more come)."""
        example = next(self.parameters())
        kind, device = dtype or example.dtype, example.device
        states = [layer.mixer.init_state(batch, max_length, kind, device) if layer.mixer is not None else None for layer in self.layers]
        return Cache(states, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, cache: Cache | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states after the final norm, and auxiliary losses by name (sums over layers). A cache is continued in place."""
        go_on()
        if cache is not None and layout.branch is not None:
            raise RecipeError("branches (answer options, rows to predict) cannot be read into a cache: what follows would see all of them.")
        if cache is not None:
            cache.take_marks(layout)
            if layout.reach is not None and cache.marks is not None:
                layout = dataclasses.replace(layout, cached_mark=cache.marks)
        if self.positions is not None:
            x_btd = x_btd + self.positions(self._places(layout))
        if self.config.dropout:
            x_btd = dropout(x_btd, self.config.dropout, self.training)
        total: Aux = {}
        for index, layer in enumerate(self.layers):
            if cache is not None:
                x_btd, cache.layers[index], aux = layer(x_btd, layout, cache.layers[index])
            elif self.config.recompute and self.training and torch.is_grad_enabled():
                x_btd, _, aux = _recomputed(layer, x_btd, layout)
            else:
                x_btd, _, aux = layer(x_btd, layout)
            for name, value in aux.items():
                total[name] = total[name] + value if name in total else value
        if cache is not None:
            cache.length = cache.length + (layout.document > 0).sum(1)
        return self.norm(x_btd), total

    def _places(self, layout: Layout) -> Tensor:
        place, limit = layout.position[..., 0], self.positions.num_embeddings if self.positions is not None else 0
        if int(place.max()) >= limit:
            raise RecipeError(f"position {int(place.max())} is beyond the {limit} learned positions of this model.")
        return place


def _recomputed(layer: Layer, x_btd: Tensor, layout: Layout) -> Any:
    return checkpoint(layer, x_btd, layout, use_reentrant=False)
