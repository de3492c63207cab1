"""Molecules and proteins as vectors by pretrained models of sequences that others trained, such as ESM-2 or ChemBERTa: a folder of
transformers, of which nothing is downloaded and no code is run.

Axes: b sequences read together   t tokens   d width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmlm.base.errors import CheckpointError, DataError, RecipeError, require
from mmlm.encoders.config import SequenceModelConfig
from mmlm.encoders.vectors import Progress, Vectors

NOT_READ = ("pooler.", "contact_head.")  # weights behind the last states, which many files lack
NO_LIMIT = 1_000_000  # tokenizers say more where nobody told them a length


class SequenceModel(Vectors):
    """Texts -> float32 [texts, size]. Raises CheckpointError for a folder that holds no such model, or not all of its weights."""

    def __init__(self, config: SequenceModelConfig) -> None:
        self.config = config
        transformers = require("transformers", "hf")
        if not (Path(config.path) / "config.json").is_file():
            raise CheckpointError(f"{config.path}: no folder of a model of transformers: config.json is missing.")
        only = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(config.path, **only)
            model, told = transformers.AutoModel.from_pretrained(config.path, dtype=torch.float32, output_loading_info=True, **only)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise CheckpointError(f"{config.path}: cannot be read by transformers: {str(error)[:300]}") from None
        if missing := sorted(name for name in told["missing_keys"] if not name.startswith(NOT_READ)):
            raise CheckpointError(f"{config.path}: lacks weights: {', '.join(missing[:3])} and others of {len(missing)}.")
        if model.config.is_encoder_decoder:
            raise CheckpointError(f"{config.path}: has an encoder and a decoder; models of one stack are read.")
        self.model, self.size = model.eval().requires_grad_(False), int(model.config.hidden_size)

    @torch.no_grad()
    def encode(
        self,
        items: Sequence[str],
        *,
        batch_size: int = 32,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """The mean of the last states over the tokens of each text, without those that frame every text; of length 1 if normalize.

        batch_size: texts that are read together, the shorter ones padded. precision: auto or fp32. progress(done, in all) is called after
        each batch. Raises DataError for a text that holds no token, one that the tokenizer does not know, or more than the model reads.
        """
        if precision not in ("auto", "fp32"):
            raise RecipeError(f"precision must be auto or fp32, but is {precision!r}.")
        ids = [self._ids(number, item) for number, item in enumerate(items)]
        parts = [torch.zeros(0, self.size)]
        for start in range(0, len(ids), batch_size):
            parts.append(self._pooled(ids[start : start + batch_size]))
            if progress is not None:
                progress(min(start + batch_size, len(ids)), len(ids))
        vectors_nd = torch.cat(parts)
        return (functional.normalize(vectors_nd, dim=-1) if normalize else vectors_nd).numpy()

    def _ids(self, number: int, item: str) -> tuple[list[int], list[bool]]:
        """Tokens of a text with those around it, and which are its own."""
        told = self.tokenizer(item, return_special_tokens_mask=True, verbose=False)
        ids: list[int] = told["input_ids"]
        own = [not mark for mark in told["special_tokens_mask"]]
        unknown, most = self.tokenizer.unk_token_id, self.tokenizer.model_max_length
        most = most if most < NO_LIMIT else getattr(self.model.config, "max_position_embeddings", NO_LIMIT)
        if unknown is not None and unknown in ids:
            raise DataError(f"text {number}: {item[:60]!r} holds what the tokenizer of {self.config.path} does not know.")
        if not any(own):
            raise DataError(f"text {number}: holds no token.")
        if len(ids) > most:
            raise DataError(f"text {number}: {item[:60]!r} has {len(ids)} tokens; {self.config.path} reads at most {most}.")
        return ids, own

    def _pooled(self, some: Sequence[tuple[list[int], list[bool]]]) -> Tensor:
        """[b, d]."""
        longest, filler = max(len(ids) for ids, _ in some), self.tokenizer.pad_token_id or 0
        ids_bt = torch.tensor([ids + [filler] * (longest - len(ids)) for ids, _ in some])
        seen_bt = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in some])
        own_bt1 = torch.tensor([own + [False] * (longest - len(own)) for _, own in some])[:, :, None]
        h_btd = self.model(input_ids=ids_bt, attention_mask=seen_bt).last_hidden_state.float()
        return (h_btd * own_bt1).sum(1) / own_bt1.sum(1)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 32, normalize: bool = False) -> np.ndarray:
        """The same: molecules and proteins are texts."""
        return self.encode(texts, batch_size=batch_size, normalize=normalize)

    def made_of(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """The kind of model, and the weights up to its last states."""
        held = {name: value for name, value in self.model.state_dict().items() if not name.startswith(NOT_READ)}
        return {"model": self.model.config.model_type}, held
