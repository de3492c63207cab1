"""Pictures as vectors: what every image encoder does alike.

A picture becomes what the encoder was trained on (size, cut, normalization) by the package that defines it, then one vector, or one for
each patch. Pictures are read and prepared by threads while those before them go through the model, and no more than a few batches are held.

Axes: b pictures   c channels   h, w pixels, or patches down and across   n patches   d features
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.encoders.config import ImageEncoderConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
AHEAD = 2  # batches that are prepared while one goes through the model
FINER = 2  # times as many pixels as needed that a reduced decoding of a file keeps

Progress = Callable[[int, int], None]


@dataclass
class Patches:
    """tokens_bnd: vectors of patches, row after row.   grid: patches down and across.   pooled_bd: one vector a picture."""

    tokens_bnd: Tensor
    grid: tuple[int, int]
    pooled_bd: Tensor


class ImageEncoder(nn.Module):
    """Base of the image encoders. size: numbers of a vector.   patch_size: of a patch's vector.   needed: pixels of the shorter side that
    are looked at."""

    size: int
    patch_size: int
    needed: int

    def __init__(self, config: ImageEncoderConfig, inputs: int | None = None) -> None:
        super().__init__()
        if inputs is not None:
            raise RecipeError(f"encoder {config.type}: reads whole pictures, for `mmlm encode`; patches in a model are read by patch_stem.")
        self.config = config
        self._copies: dict[torch.dtype, nn.Module] = {}

    def prepare(self, pixels_yxc: np.ndarray) -> Tensor:
        """A picture, uint8 [y, x, 3], as the model wants it [c, h, w]. Raises DataError for anything else."""
        if pixels_yxc.dtype != np.uint8 or pixels_yxc.ndim != 3 or pixels_yxc.shape[2] != 3 or not pixels_yxc.size:
            raise DataError(f"a picture is uint8 [y, x, 3], but this is {pixels_yxc.dtype} {list(pixels_yxc.shape)}.")
        from PIL import Image

        found: Tensor = self.transform(Image.fromarray(pixels_yxc))
        return found

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """A Pillow picture as the model wants it, by the package's own preprocessing."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The part with weights."""
        raise NotImplementedError

    def pooled(self, network: nn.Module, x_bchw: Tensor) -> Tensor:
        """Vectors [b, d]."""
        raise NotImplementedError

    def patches(self, network: nn.Module, x_bchw: Tensor) -> Patches:
        """Vectors of patches, without class and register tokens, and of whole pictures."""
        raise NotImplementedError

    def forward(self, x_bchw: Tensor) -> Patches:
        """The same in the precision of the weights; gradients flow."""
        return self.patches(self.network, x_bchw)

    @torch.no_grad()
    def encode(
        self,
        items: Sequence[np.ndarray],
        *,
        batch_size: int = 32,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Vectors float32 [pictures, size], in their order; of length 1 if normalize.

        items: pictures uint8 [y, x, 3], each asked for once, by a thread. precision: fp32, bf16, or auto: what the config says.
        progress(done, in all) is called after each batch. Raises DataError that names the picture.
        """
        network, dtype = self._cast(precision)
        found: list[Tensor] = []
        done = 0
        for x_bchw in self._batches(items, batch_size):
            found.append(self.pooled(network, x_bchw.to(dtype)).float())
            done += len(x_bchw)
            if progress is not None:
                progress(done, len(items))
        vectors_bd = torch.cat(found) if found else torch.zeros(0, self.size)
        return (F.normalize(vectors_bd, dim=-1) if normalize else vectors_bd).cpu().numpy()

    @torch.no_grad()
    def encode_patches(self, items: Sequence[np.ndarray], *, batch_size: int = 32, precision: str = "auto") -> Iterator[Patches]:
        """The patches of each picture as a batch of one, float32, in their order."""
        network, dtype = self._cast(precision)
        for x_bchw in self._batches(items, batch_size):
            found = self.patches(network, x_bchw.to(dtype))
            for tokens_nd, pooled_d in zip(found.tokens_bnd.float(), found.pooled_bd.float(), strict=True):
                yield Patches(tokens_nd[None], found.grid, pooled_d[None])

    def _batches(self, items: Sequence[np.ndarray], batch_size: int) -> Iterator[Tensor]:
        """Prepared pictures, some batches ahead of who takes them."""
        device, size = next(self.network.parameters()).device, max(1, batch_size)
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        waiting: deque[Future[Tensor]] = deque()
        asked = iter(range(len(items)))
        with ThreadPoolExecutor(threads) as pool:
            try:
                while True:
                    while len(waiting) < (1 + AHEAD) * size and (number := next(asked, None)) is not None:
                        waiting.append(pool.submit(self._one, items, number))
                    if not waiting:
                        return
                    group = [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
                    yield torch.stack(group).to(device, memory_format=torch.channels_last)
            finally:
                for each in waiting:
                    each.cancel()

    def _one(self, items: Sequence[np.ndarray], number: int) -> Tensor:
        picture = items[number]
        try:
            return self.prepare(picture)
        except DataError as error:
            raise DataError(f"picture {number}: {error}") from None

    def _cast(self, precision: str) -> tuple[nn.Module, torch.dtype]:
        """The network in a precision; a copy of its weights is made once."""
        name = self.config.precision if precision == "auto" else precision
        if name not in PRECISIONS:
            raise RecipeError(f"precision must be one of auto, {', '.join(PRECISIONS)}, but is {precision!r}.")
        dtype = PRECISIONS[name]
        if dtype not in self._copies:
            own = next(self.network.parameters()).dtype
            made = self.network if own == dtype else copy.deepcopy(self.network).to(dtype)
            self._copies[dtype] = made.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._copies[dtype], dtype


def load_in_order(own: dict[str, Tensor], found: dict[str, Tensor], where: str) -> None:
    """Copy tensors one after the other, where a file names them in another way. Raises CheckpointError where shapes differ."""
    if len(own) != len(found):
        raise CheckpointError(f"{where}: holds {len(found)} tensors, the model {len(own)}.")
    pairs = list(zip(own.items(), found.items(), strict=True))
    wrong = [f"{theirs} {list(b.shape)} for {name} {list(a.shape)}" for (name, a), (theirs, b) in pairs if a.shape != b.shape]
    if wrong:
        raise CheckpointError(f"{where}: shapes differ in this order: {'; '.join(wrong[:10])}.")
    with torch.no_grad():
        for (_, mine), (_, theirs) in pairs:
            mine.copy_(theirs)
