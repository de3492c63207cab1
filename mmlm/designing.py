"""Molecules and proteins through a run that reads their numbers and designs others: `Designer` for applications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmlm.base.errors import RecipeError
from mmlm.data.molecules import DESCRIPTORS, computed, is_valid, parsed
from mmlm.run import load_run
from mmlm.tasks.regression_transformer import RegressionTransformerTask


class Designer:
    """A finished run of the Regression Transformer. Raises RecipeError where the folder holds another."""

    def __init__(self, run: str | Path) -> None:
        recipe, task, self.model = load_run(run, fits=lambda task: task.type == "regression_transformer")
        if not isinstance(task, RegressionTransformerTask):
            raise RecipeError(f"{run}: its task {recipe.tasks[0].type!r} knows no molecules; --smiles needs a run that does.")
        self.task = task

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
