"""The two towers of a model of open_clip, opened: besides the vectors that the model gives, those of patches and words in the same space
and those between the layers, and a text may be read with something added before its layers. Nothing is added to the model.

Axes: b samples   t tokens of a text   g patches   c, y, x channels and pixels   d shared space   w width of a tower   k words
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import RecipeError

AT_END = ("argmax", "eos")  # open_clip's names for the vector of a text at its end token
Between = Callable[[int, Tensor], Tensor]  # (number of a layer, what it is about to read [b, t, w]) -> what it reads


@dataclass
class Seen:
    """pooled_bd: of pictures.   patches_bgd: of their patches, in the same space.   stages: [b, g, w] behind layers, first to last."""

    pooled_bd: Tensor
    patches_bgd: Tensor
    stages: list[Tensor]


@dataclass
class Read:
    """pooled_bd: of texts.   tokens_btd: of their tokens, in the same space."""

    pooled_bd: Tensor
    tokens_btd: Tensor


class Towers(nn.Module):
    """model: any of open_clip whose texts are read by its own transformer and whose picture tower is one too, or of timm.

    Raises RecipeError for others.
    """

    def __init__(self, model: Any, begin: int, end: int) -> None:
        super().__init__()
        self.model, self.begin, self.end = model, begin, end
        if not hasattr(self._words, "token_embedding") or not (hasattr(model.visual, "trunk") or hasattr(model.visual, "ln_post")):
            raise RecipeError("task.towers: only towers of open_clip's own transformer, or of timm for pictures, are trained here.")
        pooling = getattr(self._words, "pool_type", getattr(model, "text_pool_type", AT_END[0]))
        if pooling not in AT_END or getattr(self._words, "cls_emb", None) is not None:
            raise RecipeError("task.towers: only texts whose vector is read at their end token are trained here.")
        exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
        for name, parameter in model.named_parameters():
            parameter.no_weight_decay = name in exempt

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    @property
    def _words(self) -> Any:
        """What holds the text tower: the model itself in CLIP, a part of it elsewhere."""
        return getattr(self.model, "text", self.model)

    @property
    def num_layers(self) -> int:
        """Layers of the text tower."""
        return len(self._words.transformer.resblocks)

    @property
    def text_width(self) -> int:
        """Width of the text tower."""
        return int(self._words.token_embedding.embedding_dim)

    def see(self, x_bcyx: Tensor) -> Seen:
        """Pictures, as the model's preprocessing leaves them."""
        visual = self.model.visual
        if hasattr(visual, "trunk"):
            last, stages = visual.trunk.forward_intermediates(x_bcyx, output_fmt="NCHW")
            tokens_bgw = _flat(last) if last.ndim == 4 else last[:, getattr(visual.trunk, "num_prefix_tokens", 0) :]
            pooled_bd = visual.head(visual.trunk.forward_head(last))
            return Seen(pooled_bd, visual.head(tokens_bgw), [_flat(stage) for stage in stages])
        found = visual.forward_intermediates(x_bcyx, output_fmt="NLC")
        stages = found["image_intermediates"]
        return Seen(found["image_features"], visual.ln_post(stages[-1]) @ visual.proj, stages)

    def read(self, ids_bt: Tensor) -> Read:
        """Texts: begin, words, end and zeros. They may be cut as `cut` does, which changes nothing."""
        words = self._words
        h_btw = self.states(ids_bt)
        tokens_btd = words.text_projection(h_btw) if isinstance(words.text_projection, nn.Linear) else h_btw @ words.text_projection
        rows = torch.arange(len(ids_bt), device=ids_bt.device)
        return Read(tokens_btd[rows, (ids_bt == self.end).int().argmax(-1)], tokens_btd)

    def cut(self, ids_bt: Tensor) -> Tensor:
        """Texts without the columns behind the end of the longest; as they are where the tower's tokens see what fills a text."""
        if self._words.attn_mask is None:
            return ids_bt
        return ids_bt[:, : int((ids_bt == self.end).int().argmax(-1).max()) + 1]

    def states(
        self, ids_bt: Tensor, hidden_bt: Tensor | None = None, mask_w: Tensor | None = None, between: Between | None = None
    ) -> Tensor:
        """The last states [b, t, w] of texts; hidden_bt: words that are shown as mask_w; between: see above."""
        words, count = self._words, ids_bt.shape[1]
        x_btw = words.token_embedding(ids_bt)
        if hidden_bt is not None and mask_w is not None:
            x_btw = torch.where(hidden_bt[..., None], mask_w.to(x_btw.dtype), x_btw)
        x_btw = x_btw + words.positional_embedding[:count].to(x_btw.dtype)
        mask_tt = None if words.attn_mask is None else words.attn_mask[:count, :count]
        for number, block in enumerate(words.transformer.resblocks):
            x_btw = block(x_btw if between is None else between(number, x_btw), attn_mask=mask_tt)
        found: Tensor = words.ln_final(x_btw)
        return found

    def word_scores(self, h_nw: Tensor) -> Tensor:
        """Scores [n, k] of all words for states, by the embeddings themselves."""
        return F.linear(h_nw, self._words.token_embedding.weight)

    def is_word(self, ids_bt: Tensor) -> Tensor:
        """Whether a token is a word, and neither begin, end nor filling [b, t]."""
        return (ids_bt != 0) & (ids_bt != self.begin) & (ids_bt != self.end)


def _flat(map_bwyx: Tensor) -> Tensor:
    """[b, w, y, x] as [b, patches, w]."""
    return map_bwyx.flatten(2).transpose(1, 2)
