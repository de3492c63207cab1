"""What tokens look at, to be drawn: the weights of attention layers over one stream.

Axes: n heads of all attention layers   t queries   l keys
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmlm.backbone.attention import Attention
from mmlm.model import MultimodalLM
from mmlm.stream import Stream, pack


@torch.no_grad()
def attention_maps(model: MultimodalLM, stream: Stream) -> Tensor:
    """Weights [n, t, t] of every head, layer by layer; a row sums to 1. n is 0 for a model without attention along the sequence."""
    found: list[Tensor] = []

    def look(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(layer, Attention) and layer.config.over is None:
            found.append(layer.looks(given[0], given[1])[0])

    hooks = [layer.register_forward_pre_hook(look) for layer in model.modules() if isinstance(layer, Attention)]
    try:
        model.hidden(pack([stream], model.vocabulary).to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat(found).float().cpu() if found else torch.zeros(0, len(stream), len(stream))


def most_focused(maps_ntl: Tensor) -> Tensor | None:
    """The weights [t, l] of the head whose queries each look at one key most: that of the highest focus rate, the mean over queries of the
    largest weight (FastSpeech, arXiv:1905.09263, section 3.3). None without heads or queries."""
    if not maps_ntl.numel():
        return None
    return maps_ntl[int(maps_ntl.amax(-1).mean(-1).argmax())]
