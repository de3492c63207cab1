"""An encoder as the module of a SentenceTransformer, so that code written for that library embeds, compares and searches with it.

from sentence_transformers import SentenceTransformer
model = SentenceTransformer(modules=[Encoder("runs/clip")])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmlm.base.errors import DataError, require
from mmlm.embedding import Embedder, PictureEmbedder, check_again
from mmlm.embedding import encoder as open_encoder
from mmlm.encoders.image_models import OpenClipEncoder
from mmlm.sound import Sound

modules: Any = require("sentence_transformers.base.modules", "search")
ITEMS = "items"


class Encoder(modules.InputModule):  # type: ignore[misc]
    """Encodes what it is given; nothing of it is trained. encoder: a text as `mmlm.encoder` takes it, which is what a saved model keeps.

    Pictures are paths, Pillow's, or uint8 [y, x, 3]; sounds are paths or {"array": samples, "sampling_rate": hertz}; other texts are texts.
    """

    config_keys: list[str] = ["encoder"]
    save_in_root = False

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder = str(encoder)
        self.opened = open_encoder(self.encoder)

    @property
    def modalities(self) -> list[str]:
        """What it reads, as the library names it."""
        if isinstance(self.opened, Embedder):
            return ["audio"]
        if isinstance(self.opened, PictureEmbedder):
            return ["image", "text"] if isinstance(self.opened.encoder, OpenClipEncoder) else ["image"]
        return ["text"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Items as they are; a prompt comes before texts."""
        if prompt and self.modalities == ["text"]:
            inputs = self._prepend_prompt(list(inputs), prompt)
        return {ITEMS: list(inputs)}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds the vectors [items, size], by texts where an encoder of both towers is given no file."""
        items = [_item(number, item) for number, item in enumerate(features[ITEMS])]
        are_texts = [self._is_text(item) for item in items]
        vectors = np.zeros((len(items), self.opened.size), dtype=np.float32)
        for wanted, encode in ((False, self.opened.encode), (True, self.opened.encode_texts)):
            if places := [place for place, is_text in enumerate(are_texts) if is_text == wanted]:
                vectors[places] = encode([items[place] for place in places])
        return {**features, "sentence_embedding": torch.from_numpy(vectors)}

    def _is_text(self, item: Any) -> bool:
        """Whether it goes to the tower of texts."""
        return isinstance(item, str) and self.modalities == ["image", "text"] and not Path(item).is_file()

    def get_embedding_dimension(self) -> int:
        """Numbers of a vector."""
        return self.opened.size

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """The name of the encoder; its weights stay where they are. Raises RecipeError for first weights, others next time."""
        check_again(self.encoder, self.opened)
        self.save_config(output_path)


def _item(number: int, item: Any) -> Any:
    """An input of the library as ours."""
    if isinstance(item, Mapping) and item.keys() == {"array", "sampling_rate"}:
        return Sound(np.asarray(item["array"], dtype=np.float32), int(item["sampling_rate"]))
    if hasattr(item, "convert") and hasattr(item, "mode"):  # a picture of Pillow
        return np.asarray(item.convert("RGB"))
    if isinstance(item, tuple):
        raise DataError(f"item {number}: pairs are for cross-encoders; this one gives each item a vector.")
    return item
