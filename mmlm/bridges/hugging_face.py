"""Our decoders under the names of transformers: AutoConfig, AutoModel, AutoTokenizer and its pipelines, once this module is imported.

    import mmlm.bridges.hugging_face
    AutoModel.from_pretrained("runs/words")       pipeline("feature-extraction", model="runs/words")

A folder of ours is read as it is, and what save_pretrained and push_to_hub write is one of ours. Decoders of families of transformers need
none of this: `mmlm convert` writes those.

Axes: b rows   t tokens   d width
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlm.base.errors import CheckpointError, require
from mmlm.interop.hugging_face import local_folder
from mmlm.interop.load import load, text_tokenizers
from mmlm.layout import Layout
from mmlm.model import MultimodalLM

transformers: Any = require("transformers", "hf")
outputs: Any = require("transformers.modeling_outputs", "hf")
PADDING = "<|padding|>"


class MmlmConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    """What config.json of a model folder says, as transformers passes it on."""

    model_type = "mmlm"


class MmlmModel(transformers.PreTrainedModel):  # type: ignore[misc]
    """A decoder of ours: ids of texts to its last states. core: the model itself."""

    config_class = MmlmConfig
    base_model_prefix = "core"

    def __init__(self, config: MmlmConfig, core: MultimodalLM) -> None:
        super().__init__(config)
        if "text" not in core.vocabulary.ranges:
            raise CheckpointError(f"this model reads {', '.join(core.vocabulary.ranges)}, but transformers gives it ids of a text.")
        self.core = core
        self.start = core.vocabulary.span("text").start

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *_: Any, config: Any = None, revision: str | None = None, dtype: Any = None, **options: Any
    ) -> MmlmModel:
        """The model in a folder or of a hub id. dtype: of its weights, by torch or by name; default, and "auto": as they are. Of the other
        options of transformers none is read. Raises CheckpointError as `mmlm.load` does."""
        folder = local_folder(name, revision)
        found = cls(config or MmlmConfig.from_pretrained(folder), load(folder)).eval()
        wanted = options.get("torch_dtype") if dtype is None else dtype  # the older name
        return found if wanted in (None, "auto") else found.to(getattr(torch, wanted) if isinstance(wanted, str) else wanted)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """last_hidden_state [b, t, d] of ids [b, t]; those of padding, on either side, mean nothing."""
        seen_bt = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        place_bt = (seen_bt.cumsum(1) - 1).clamp_min(0)
        layout = Layout(seen_bt.int(), place_bt[..., None])
        ids_bt = input_ids.masked_fill(seen_bt == 0, 0) + self.start
        h_btd, _ = self.core.backbone(self.core.embedding(ids_bt), layout)
        return outputs.BaseModelOutput(last_hidden_state=h_btd)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The rows of all ranges."""
        return self.core.embedding

    def save_pretrained(self, folder: str | Path, *_: Any, **options: Any) -> None:
        """A model folder of ours with the tokenizer beside the weights, as what is pushed to a hub holds no folders."""
        self.core.save_pretrained(folder)
        if self.core.text is not None:
            self.core.text.save(folder)  # type: ignore[attr-defined]


class MmlmTokenizer(transformers.PreTrainedTokenizerFast):  # type: ignore[misc]
    """The tokenizer of texts of a folder, with a token of its own for padding, which the model never looks at."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *_: Any, revision: str | None = None, **options: Any) -> MmlmTokenizer:
        """The one beside the weights. Raises CheckpointError where there is none, or several."""
        folder = local_folder(name, revision)
        found = text_tokenizers(folder)
        if len(found) != 1:
            raise CheckpointError(f"{folder}: holds {len(found) or 'no'} tokenizers of texts, but one is wanted.")
        return cls(tokenizer_file=str(found[0]), pad_token=PADDING)


transformers.AutoConfig.register("mmlm", MmlmConfig, exist_ok=True)
transformers.AutoModel.register(MmlmConfig, MmlmModel, exist_ok=True)
transformers.AutoTokenizer.register(MmlmConfig, fast_tokenizer_class=MmlmTokenizer, exist_ok=True)
