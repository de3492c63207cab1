"""Codebook patterns: in which step the cell (frame, codebook) of a codec is written, and back.

    flatten      step = frame * books + book
    parallel     step = frame
    delay        step = frame + book; frames + books - 1 steps, whose first and last have cells that are not filled (arXiv:2306.05284)
    coarse_fine  the first codebooks flattened, then the others flattened (AudioLM, arXiv:2209.03143, section 3.4)
    ar_nar       the first codebook step by step, then each further one for all frames at once (VALL-E, arXiv:2301.02111)

A pattern has one or more parts, each written after the one before. A cell that is not filled, or belongs to another part, is EMPTY.
Where a part has an end, the codebook that it writes first says the id of the end in the cell of the frame after the last.

Axes: t frames   s steps   u codebooks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmlm.base.errors import DataError, RecipeError
from mmlm.tokenizers.config import CodebookOrder

EMPTY = -1


@dataclass(frozen=True)
class Part:
    """What is written in one go. books: codebooks that it writes, of num_books.   at_once: all frames together, not step by step."""

    books: range
    num_books: int
    order: Literal["flatten", "parallel", "delay"]
    at_once: bool = False

    def num_steps(self, frames: int, *, end: bool = False) -> int:
        """Steps that so many frames take. end: with the step that says the end."""
        count = len(self.books)
        steps = {"flatten": frames * count, "parallel": frames, "delay": frames + count - 1 if frames else 0}[self.order]
        return max(steps, self.step(frames, self.books.start) + 1) if end else steps

    def step(self, frame: int, book: int) -> int:
        """The step that fills a cell."""
        place = book - self.books.start
        return {"flatten": frame * len(self.books) + place, "parallel": frame, "delay": frame + place}[self.order]

    def frames(self, steps: Tensor) -> Tensor:
        """Frames [..., u] of the cells that steps [...] fill; EMPTY for none. Those beyond the last frame are the caller's to leave out."""
        count = len(self.books)
        place = torch.arange(self.num_books) - self.books.start
        inside = (place >= 0) & (place < count)
        steps = steps[..., None]
        if self.order == "flatten":
            frame, inside = steps // count, inside & (steps % count == place)
        else:
            frame = steps - place if self.order == "delay" else steps + 0 * place
        return torch.where(inside & (frame >= 0), frame, EMPTY)

    def forward(self, codes_tu: Tensor, end: int | None = None) -> Tensor:
        """Steps [s, u] of codes [t, u]. end: the id that says it. Raises DataError for another number of codebooks."""
        if codes_tu.ndim != 2 or codes_tu.shape[1] != self.num_books:
            raise DataError(f"a pattern of {self.num_books} codebooks cannot lay out codes of shape {tuple(codes_tu.shape)}.")
        frame_su = self.frames(torch.arange(self.num_steps(len(codes_tu), end=end is not None)))
        padded = torch.cat([codes_tu, codes_tu.new_full((1, self.num_books), EMPTY)])
        if end is not None:
            padded[-1, self.books.start] = end
        beyond = (frame_su < 0) | (frame_su >= len(padded))
        return padded.gather(0, frame_su.masked_fill(beyond, 0)).masked_fill(beyond, EMPTY)

    def inverse(self, steps_su: Tensor, frames: int | None = None) -> Tensor:
        """Codes [t, u] of steps [s, u], EMPTY in the codebooks of other parts. frames: needed where the steps hold an end or more than
        whole frames. Raises DataError where the steps hold fewer cells."""
        if frames is None:
            per_frame = len(self.books) if self.order == "flatten" else 1
            extra = len(self.books) - 1 if self.order == "delay" and len(steps_su) else 0
            frames = max((len(steps_su) - extra) // per_frame, 0)
            if self.num_steps(frames) != len(steps_su):
                raise DataError(f"{len(steps_su)} steps of the order {self.order!r} are no whole number of frames.")
        if self.num_steps(frames) > len(steps_su):
            raise DataError(f"{frames} frames take {self.num_steps(frames)} steps, but there are {len(steps_su)}.")
        codes = steps_su.new_full((frames, self.num_books), EMPTY)
        for book in self.books:
            first, every = self.step(0, book), len(self.books) if self.order == "flatten" else 1
            codes[:, book] = steps_su[first::every, book][:frames]
        return codes


class CodebookPattern:
    """The order of cells of a codec with so many codebooks. Raises RecipeError where the coarse ones are not fewer than all."""

    def __init__(self, config: CodebookOrder, num_books: int) -> None:
        if num_books < 1:
            raise RecipeError(f"a codec has at least 1 codebook, but num_books is {num_books}.")
        self.config, self.num_books = config, num_books
        coarse = config.num_coarse or max(1, num_books // 2)
        if config.order == "coarse_fine" and coarse >= num_books:
            raise RecipeError(f"num_coarse must be below the number of codebooks, {num_books}, but is {coarse}.")
        self.parts = self._parts(coarse)

    def _parts(self, coarse: int) -> list[Part]:
        u, order = self.num_books, self.config.order
        if order == "coarse_fine":
            return [Part(range(coarse), u, "flatten"), Part(range(coarse, u), u, "flatten")]
        if order == "ar_nar":
            return [Part(range(book, book + 1), u, "parallel", at_once=book > 0) for book in range(u)]
        return [Part(range(u), u, order)]

    def forward(self, codes_tu: Tensor) -> list[Tensor]:
        """The steps [s, u] of each part."""
        return [part.forward(codes_tu) for part in self.parts]

    def inverse(self, steps: Sequence[Tensor]) -> Tensor:
        """The codes [t, u] of the steps of all parts."""
        if len(steps) != len(self.parts):
            raise DataError(f"the pattern has {len(self.parts)} parts, but was given {len(steps)}.")
        found = [part.inverse(each) for part, each in zip(self.parts, steps, strict=True)]
        if len({len(codes) for codes in found}) > 1:
            raise DataError(f"the parts of a pattern hold different numbers of frames: {[len(codes) for codes in found]}.")
        return torch.stack(found).amax(0)
