"""Molecules and proteins through a run that reads their numbers and designs others: `Designer` for applications."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from mmlm.base.errors import DataError, RecipeError, unknown_name
from mmlm.base.files import write_text_whole
from mmlm.chemistry import DESCRIPTORS, computed, is_valid, parsed
from mmlm.data.table_reader import read_raw, read_table
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

    @property
    def called(self) -> str:
        """What the texts are called that it reads and writes: smiles or protein."""
        return "protein" if self.task.kind == "protein" else "smiles"

    def read(self, texts: Sequence[str]) -> list[dict[str, float | None]]:
        """The numbers of molecules or proteins as the model reads them; None where it wrote none. Raises DataError for what is none."""
        self._check(texts)
        return self.task.read_numbers(self.model, texts)

    def read_file(self, path: Path, output: Path) -> tuple[int, list[str]]:
        """Write a table as CSV with the numbers of its molecules, or proteins, in columns `NAME by model`; (how many were read, what is
        wrong with each of the others). Cells are empty where there is no number.

        Raises DataError for what is no table, one without the column smiles (of proteins protein), and an output that cannot be written.
        """
        separator, header, rows = _written(path)
        place = next((at for at, name in enumerate(header) if name.strip().lower() == self.called), None)
        if place is None:
            raise DataError(f"{path}: {unknown_name('column', self.called, header)}")
        if output.exists() and output.samefile(path):
            raise DataError(f"{output}: is read from, so it cannot be the output; name another file.")
        if odd := next((number for number, row in enumerate(rows, 1) if len(row) > len(header)), None):
            raise DataError(f"{path}: row {odd} has more cells than the header. Is there a separator in a cell without quotation marks?")
        texts, bad = dict[int, str](), list[str]()
        for number, row in enumerate(rows):
            text = row[place].strip() if place < len(row) else ""
            try:
                if not text:
                    raise DataError(f"{self.called} is missing.")
                self._check([text])
                texts[number] = text
            except DataError as error:
                bad.append(f"row {number + 1}: {error}")
        decimals = self.task.numbers.config.decimals
        told = dict(zip(texts, self.task.read_numbers(self.model, list(texts.values())), strict=True))
        for number, row in enumerate(rows):
            found = [told.get(number, {}).get(name) for name in self.properties]
            row += [""] * (len(header) - len(row)) + ["" if value is None else f"{value:.{decimals}f}" for value in found]
        header = [*header, *(f"{name} by model" for name in self.properties)]
        sheet = io.StringIO()
        csv.writer(sheet, delimiter=separator, lineterminator="\n").writerows([header, *rows])
        try:
            write_text_whole(output, sheet.getvalue())
        except OSError as error:
            raise DataError(f"{output}: cannot be written: {error.strerror}.") from None
        return len(texts), bad

    def design(
        self, seeds: Sequence[str], wanted: Mapping[str, float], *, mask_fraction: float | None = None, count: int = 1, seed: int = 0
    ) -> list[dict[str, Any]]:
        """`count` sequences from each seed with parts written anew to the wanted numbers: what is hidden and drawn differs between them.

        Of each: seed, wanted, smiles or protein, model (its numbers as the model reads them, see `read_design`), of molecules is_valid and
        rdkit, what it computes.
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
            return {"protein": text, "model": self.task.read_design(self.model, text)}
        if not is_valid(text):
            return {"smiles": text, "is_valid": False, "rdkit": {}, "model": {}}
        known = [name for name in self.properties if name in DESCRIPTORS]
        return {"smiles": text, "is_valid": True, "rdkit": computed(text, known), "model": self.task.read_design(self.model, text)}


def _written(path: Path) -> tuple[str, list[str], list[list[str]]]:
    """Separator, header and rows of a table, those of a text file as they are written."""
    if (raw := read_raw(path)) is not None:
        separator, (header, *rows) = raw
        return separator, header, rows
    table = read_table(path, media=False)
    columns = [[text or "" for text in table.texts(name)] for name in table.names]
    return ",", list(table.names), [list(row) for row in zip(*columns, strict=True)]
