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
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.encoders.config import ImageEncoderConfig
from mmlm.encoders.copies import Copies, dtype_of
from mmlm.encoders.frozen_block import FrozenBlock
from mmlm.encoders.packed import can_pack, pack_

CHANNELS = 3
AHEAD = 2  # batches that are prepared while one goes through the model
NARROWEST = 200  # times the shorter side that the longer one may be, where the middle of a picture is looked at
FINER = 2  # times as many pixels as needed that a reduced decoding of a file keeps

Progress = Callable[[int, int], None]


@dataclass
class Patches:
    """tokens_bnd: vectors of patches, row after row.   grid: patches down and across.   pooled_bd: one vector a picture."""

    tokens_bnd: Tensor
    grid: tuple[int, int]
    pooled_bd: Tensor


@dataclass(frozen=True)
class PictureInput:
    """size: pixels down and across that a network was made for.   mean, deviation: of each colour, by which pixels of 0 to 1 are normed."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, pixels_yxc: np.ndarray) -> Tensor:
        """A picture, uint8 [y, x, 3], whole and brought to the size, float32 [c, h, w]. Raises DataError for anything else."""
        check_pixels(pixels_yxc)
        from PIL import Image

        down, across = self.size
        shown = np.asarray(Image.fromarray(pixels_yxc).resize((across, down), Image.Resampling.BICUBIC), dtype=np.float32)
        normed = (shown / 255 - np.array(self.mean, dtype=np.float32)) / np.array(self.deviation, dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(normed.transpose(2, 0, 1), dtype=np.float32))

    def pixels(self, normed_cyx: Tensor) -> np.ndarray:
        """The picture, uint8 [y, x, 3], of what __call__ made of it, at the size it was brought to."""
        shares_yxc = normed_cyx.numpy().transpose(1, 2, 0) * np.array(self.deviation, np.float32) + np.array(self.mean, np.float32)
        return np.clip(np.rint(shares_yxc * 255), 0, 255).astype(np.uint8)


def check_pixels(pixels_yxc: np.ndarray) -> None:
    """Raises DataError for anything but uint8 [y, x, 3] with pixels."""
    if pixels_yxc.dtype != np.uint8 or pixels_yxc.ndim != 3 or pixels_yxc.shape[2] != CHANNELS or not pixels_yxc.size:
        raise DataError(f"a picture is uint8 [y, x, 3], but this is {pixels_yxc.dtype} {list(pixels_yxc.shape)}.")


class ImageEncoder(nn.Module):
    """Base of the image encoders. size: numbers of a vector.   patch_size: of a patch's vector.   needed: pixels of the shorter side that
    are looked at.   input: what is made of a picture that enters whole, as a part of a model reads it.   model: the part with weights.
    transform: a Pillow picture as the model wants it, by the package's own preprocessing."""

    size: int
    patch_size: int
    needed: int
    input: PictureInput
    model: Any
    transform: Callable[[Any], Tensor]
    keeps_weights = True  # its package has made its first weights, or a file has
    is_whole = False  # pictures are prepared by `input`, so that nothing of them is cut off

    def __init__(self, config: ImageEncoderConfig, inputs: int | None = None) -> None:
        super().__init__()
        if inputs not in (None, CHANNELS):
            raise RecipeError(
                f"encoder {config.type}: reads whole pictures, which the tokenizer whole_images gives, but not {inputs} numbers."
            )
        self.config, self.is_part = config, inputs is not None
        self._copies = Copies()

    def complete(self) -> None:
        """To be called once the network is there, with its normed size; a part of a model gives patches, whose vectors are its size."""
        if self.config.frozen_lm is not None:
            self.insert(self.config.frozen_lm.build(self.patch_size))
        if self.config.layer is not None:
            self.patch_size = self.grid_and_size()[1]
        if self.is_part:
            self.size = self.patch_size
        self.eval()

    def insert(self, block: nn.Module) -> None:
        """Put a block of tokens [b, n, d] before the encoder's own last norm. Raises RecipeError where it has no tokens there."""
        raise RecipeError(f"encoder {self.config.type}: takes no frozen_lm.")

    @torch.no_grad()
    def grid_and_size(self) -> tuple[tuple[int, int], int]:
        """Patches down and across of the pictures that it was made for, and numbers of a patch."""
        was = self.training
        self.eval()
        found = self.patches(self.network, self.blank())
        self.train(was)
        return found.grid, found.tokens_bnd.shape[-1]

    def blank(self) -> Tensor:
        """A picture of zeros of the size that it was made for, [1, c, h, w], to see what comes of one."""
        weight = next(self.network.parameters())
        return torch.zeros(1, CHANNELS, *self.input.size, dtype=weight.dtype, device=weight.device)

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays as it is: running means of its norms do not follow."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def without_weights(self) -> ImageEncoderConfig:
        """The config by which a saved model builds it again."""
        config = self.config.without_weights()
        block = next((part for part in self.modules() if isinstance(part, FrozenBlock)), None)
        return config if block is None else config.model_copy(update={"frozen_lm": block.saved_as})

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """Make again what is not saved with the weights."""
        saved = self.network.state_dict().keys()
        if missing := [name for name, _ in self.network.named_buffers() if name not in saved]:
            fresh = self.without_weights().build(CHANNELS if self.is_part else None)
            for name in missing:
                self.network.get_buffer(name).copy_(fresh.network.get_buffer(name))

    def prepare(self, pixels_yxc: np.ndarray) -> Tensor:
        """A picture, uint8 [y, x, 3], as the model wants it [c, h, w]. Raises DataError for anything else, and for one so narrow that it
        would be huge with its shorter side as the model wants that."""
        if self.is_whole:
            return self.input(pixels_yxc)
        check_pixels(pixels_yxc)
        shorter, longer = sorted(pixels_yxc.shape[:2])
        if longer > NARROWEST * shorter:
            raise DataError(f"a picture of {pixels_yxc.shape[1]} x {pixels_yxc.shape[0]} pixels is narrower than 1 : {NARROWEST}.")
        from PIL import Image

        return self.transform(Image.fromarray(pixels_yxc))

    @property
    def network(self) -> nn.Module:
        """The part with weights."""
        return self.model

    def pooled(self, network: nn.Module, x_bchw: Tensor) -> Tensor:
        """Vectors [b, d]."""
        raise NotImplementedError

    def patches(self, network: nn.Module, x_bchw: Tensor) -> Patches:
        """Vectors of patches, without class and register tokens, and of whole pictures."""
        raise NotImplementedError

    def forward(self, x_bchw: Tensor, sizes_b: Tensor | None = None) -> Patches | Tensor:
        """The same in the precision of the weights; gradients flow. As a part of a model, with sizes: the vectors [n, d] of all patches."""
        found = self.patches(self.network, x_bchw.to(next(self.network.parameters()).dtype))
        return found if sizes_b is None else found.tokens_bnd.flatten(0, 1)

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
        """The network in a precision; a copy is made once for the same weights, in bfloat16 with its matrices packed."""
        weight = next(self.network.parameters())
        dtype, own = dtype_of(precision, self.config.precision, weight.device), weight.dtype
        packs = dtype == torch.bfloat16 and can_pack()

        def ready(made: nn.Module) -> nn.Module:
            made = made.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return made

        def copied() -> nn.Module:
            made = copy.deepcopy(self.network).to(dtype)
            return ready(pack_(made) if packs else made)

        if own == dtype and not packs:
            return ready(self.network), dtype
        return self._copies.of(self.network, dtype, copied), dtype


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
