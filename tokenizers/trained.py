"""What tokenizers share whose network is trained by a run of its own: codecs of sound and of pictures.

A folder that `save` wrote, or a run that trained one, is the `path` of the tokenizer in other recipes; it brings its config along.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.base.files import parse_json
from mmlm.base.schema import check
from mmlm.parameters import give_memory, shapes_alone
from mmlm.tokenizers.config import TOKENIZERS, CodecConfig
from mmlm.weights import copy_tensors, read_tensors, safetensors_bytes, write_tensors

CONFIG, WEIGHTS = "codec.json", "codec.safetensors"
M = TypeVar("M", bound=nn.Module)
C = TypeVar("C", bound="Trained[Any]")


class Trained(Generic[M]):
    """A config, and a network of it that is trained or read. task: the task that trains it, for messages."""

    task = "codec"

    def __init__(self, config: CodecConfig) -> None:
        self.given = config
        self.config: Any = config
        self._model: M | None = None

    def build(self) -> M:
        """The network of the config, with first weights from torch's global generator."""
        raise NotImplementedError

    def _sizes(self) -> list[int]:
        """Entries of each book."""
        raise NotImplementedError

    @property
    def num_books(self) -> int:
        """Books that encode uses where it is not told."""
        most = len(self._sizes())
        if (asked := self.given.encode_books) is not None and asked > most:
            raise RecipeError(f"tokenizers: encode_books is {asked}, but the codec has {most}.")
        return asked or most

    @property
    def book_sizes(self) -> list[int]:
        """Entries of each book that encode uses."""
        return self._sizes()[: self.num_books]

    @property
    def is_fitted(self) -> bool:
        """Whether there are trained weights, or a path to them."""
        return self._model is not None or self.given.path is not None

    @property
    def model(self) -> M:
        """The network. Raises DataError where it has not been trained."""
        self._known()
        if self._model is None:
            raise DataError(
                f"this codec has no weights yet: train it by a recipe with the task {self.task}, and give the run as its `path`."
            )
        return self._model

    def begin(self) -> M:
        """The network to train: the one at `path`, or a new one."""
        self._known()
        if self._model is None:
            self._model = self.build()
        return self._model

    @property
    def fingerprint(self) -> str:
        """A digest of weights, config and number of books: codes that were kept under another one are not codes of this codec."""
        digest = hashlib.blake2b(json.dumps([self._about(), self.num_books], sort_keys=True).encode(), digest_size=16)
        for part in safetensors_bytes(self.model.state_dict()):
            digest.update(part)
        return digest.hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write codec.json and codec.safetensors."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG).write_text(json.dumps(self._about(), indent=2) + "\n")
        write_tensors(Path(folder) / WEIGHTS, self.model.state_dict())

    def _about(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude={"path", "encode_books"}, exclude_none=True)

    def load(self: C, folder: Path | str) -> C:
        """Take what save wrote. Raises CheckpointError where the folder holds none, or a codec of another type."""
        self.config = read_config(Path(folder), self.given.type)
        with shapes_alone():
            self._model = self.build()
        give_memory(self._model)
        copy_tensors(self._model.state_dict(), read_tensors(Path(folder) / WEIGHTS), str(Path(folder) / WEIGHTS))
        self._model.eval()
        return self

    def _known(self) -> Any:
        """The config, read from the path where there is one."""
        if self._model is None and self.given.path is not None:
            self.load(find(self.given.path))
        return self.config


def codes_of(ids: torch.Tensor | None, sizes: list[int]) -> torch.Tensor:
    """ids as long [t, u], of the first u books. sizes: entries of each book. Raises DataError where they are no such codes."""
    if ids is None or ids.ndim != 2 or not 1 <= ids.shape[1] <= len(sizes):
        shape = "no ids" if ids is None else list(ids.shape)
        raise DataError(f"codes must be [tokens, 1 to {len(sizes)} books], but are {shape}.")
    limit = torch.tensor(sizes[: ids.shape[1]], device=ids.device)
    if bool(((ids < 0) | (ids >= limit)).any()):
        raise DataError(f"codes must lie from 0 to {sizes[0] - 1}, but reach from {int(ids.min())} to {int(ids.max())}.")
    return ids.long()


def read_config(folder: Path, kind: str) -> CodecConfig:
    """The config that save wrote. Raises CheckpointError where there is none of this type."""
    try:
        raw = parse_json((folder / CONFIG).read_text())
        found = str(raw["type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / CONFIG}: missing or damaged.") from None
    if found != kind:
        raise CheckpointError(f"{folder / CONFIG}: is of the type {found!r}, but the recipe's tokenizer is {kind!r}.")
    try:
        return check(TOKENIZERS.get(kind), raw, str(folder / CONFIG))  # type: ignore[return-value]
    except RecipeError as error:
        raise CheckpointError(str(error)) from None


def find(name: str) -> Path:
    """The folder with codec.json: the one named, or the one in a run. Raises CheckpointError where it is not to be found."""
    path = Path(name)
    if (path / CONFIG).is_file():
        return path
    found = sorted(path.glob(f"tokenizers/*/{CONFIG}"))
    if len(found) != 1:
        what = "holds no codec" if not found else "holds several codecs: " + ", ".join(str(each.parent) for each in found)
        raise CheckpointError(f"{name}: {what}; give a run that trained one, or a folder with {CONFIG}.")
    return found[0].parent
