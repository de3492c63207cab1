"""Molecules and proteins through a run that reads their numbers and designs others: `Designer` for applications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mmlm.base.errors import RecipeError
from mmlm.chemistry import DESCRIPTORS, computed, is_valid, parsed
from mmlm.encoders.vectors import Progress, Vectors
from mmlm.model import MultimodalLM
from mmlm.run import load_run
from mmlm.tasks.regression_transformer import RegressionTransformerTask


class Designer(Vectors):
    """A finished run of the Regression Transformer. Raises RecipeError where the folder holds another."""

    at_once = 128

    def __init__(self, run: str | Path) -> None:
        recipe, task, model = load_run(run, fits=lambda task: task.type == "regression_transformer")
        if not isinstance(task, RegressionTransformerTask):
            raise RecipeError(f"{run}: its task {recipe.tasks[0].type!r} knows no molecules; --smiles needs a run that does.")
        self._take(task, model)

    @classmethod
    def of(cls, task: RegressionTransformerTask, model: MultimodalLM) -> Designer:
        """That of a model which is loaded already."""
        found = cls.__new__(cls)
        found._take(task, model)
        return found

    def _take(self, task: RegressionTransformerTask, model: MultimodalLM) -> None:
        self.task, self.model, self.size = task, model, int(model.config.backbone.width)

    @property
    def properties(self) -> list[str]:
        """The numbers it knows, by name."""
        return list(self.task.config.properties)

    def read(self, texts: Sequence[str]) -> list[dict[str, float | None]]:
        """The numbers of molecules or proteins as the model reads them; None where it wrote none. Raises DataError for what is none."""
        self._check(texts)
        return self.task.read_numbers(self.model, texts)

    def design(
        self, seeds: Sequence[str], wanted: Mapping[str, float], *, mask_fraction: float | None = None, count: int = 1, seed: int = 0
    ) -> list[dict[str, Any]]:
        """`count` sequences from each seed with parts written anew to the wanted numbers: what is hidden and drawn differs between them.

        Of each: seed, wanted, smiles or protein, model (its numbers as the model reads them), of molecules is_valid and rdkit, what it
        computes.
        Raises DataError for seeds that are none, RecipeError for properties that the run does not know.
        """
        self._check(seeds)
        found: list[dict[str, Any]] = []
        for number in range(count):
            texts = self.task.design(self.model, seeds, [wanted] * len(seeds), mask_fraction=mask_fraction, seed=seed * 1_000_003 + number)
            found += [{"seed": one, "wanted": dict(wanted), **self._told(text)} for one, text in zip(seeds, texts, strict=True)]
        return found

    @torch.no_grad()
    def encode(
        self,
        items: Sequence[str],
        *,
        batch_size: int = 128,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """float32 [items, width]: the mean of the model's last states over each sequence with hidden numbers; of length 1 if normalize.

        batch_size: sequences that are read together; it changes no vector. precision: auto or fp32. progress(done, in all) is called after
        each batch. Raises DataError for what is no molecule or protein.
        """
        if precision not in ("auto", "fp32"):
            raise RecipeError(f"precision must be auto or fp32, but is {precision!r}.")
        self._check(items)
        parts = [torch.zeros(0, self.model.config.backbone.width)]
        for start in range(0, len(items), batch_size):
            parts.append(self.task.states(self.model, items[start : start + batch_size]))
            if progress is not None:
                progress(min(start + batch_size, len(items)), len(items))
        vectors_nd = torch.cat(parts)
        return (functional.normalize(vectors_nd, dim=-1) if normalize else vectors_nd).numpy()

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 128, normalize: bool = False) -> np.ndarray:
        """The same: molecules and proteins are texts."""
        return self.encode(texts, batch_size=batch_size, normalize=normalize)

    def made_of(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The model's config and weights."""
        return self.model.config.model_dump(mode="json"), self.model.state_dict()

    def _check(self, texts: Sequence[str]) -> None:
        for text in texts:
            self.task.sequence.ids(text)
            if self.task.kind == "molecule":
                parsed(text)

    def _told(self, text: str) -> dict[str, Any]:
        if self.task.kind == "protein":
            return {"protein": text, "model": self.task.read_numbers(self.model, [text])[0]}
        if not is_valid(text):
            return {"smiles": text, "is_valid": False, "rdkit": {}, "model": {}}
        known = [name for name in self.properties if name in DESCRIPTORS]
        (numbers,) = self.task.read_numbers(self.model, [text])
        return {"smiles": text, "is_valid": True, "rdkit": computed(text, known), "model": numbers}
