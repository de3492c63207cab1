"""How speech stands in a stream: samples to train on, here; the stages that write it, in tts_stages.

    plain     phonemes, a mark, the first codebook of each frame and an end                                     VALL-E, arXiv:2301.02111
    prosody   phonemes, a mark, pitch and duration of each, a mark, the first codebook of as many frames        RALL-E, arXiv:2404.03204

Positions begin anew in each part. With prosody, a query that predicts a frame sees the phonemes around the one that is said then. Further
codebooks are predicted for all frames at once from the same stream, read in both directions, with the number of the codebook at every
token; one model does both. A voice is a recording whose phonemes, prosody and codes come first in each part.

Axes: e entries   t frames   u codebooks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmlm.alignment import window_by_alignment
from mmlm.model_config import ChannelConfig
from mmlm.objectives.books import hide_book, with_book
from mmlm.objectives.masked import cosine_share
from mmlm.stream import Segment, Stream
from mmlm.tasks.config import TextToSpeechConfig
from mmlm.tokenizers.config import CodebookOrder
from mmlm.tokenizers.patterns import EMPTY, CodebookPattern

BEGIN_PROSODY, BEGIN_SPEECH = 0, 1
BOOK = "book"
VOICE_CHANCE, VOICE_SHARE = 0.7, 0.5  # of the samples of further codebooks: how many have a voice, and the most of the frames it takes


@dataclass(frozen=True)
class Said:
    """Phonemes [e] and codes [t, u] of what is said; with prosody also buckets of the pitch and frames of each phoneme [e]."""

    phone: Tensor
    codes: Tensor
    pitch: Tensor
    frames: Tensor

    @classmethod
    def nothing(cls, num_books: int) -> Said:
        """The voice where there is none."""
        none = torch.zeros(0, dtype=torch.long)
        return cls(none, torch.zeros(0, num_books, dtype=torch.long), none, none)


class SpeechPlan:
    """Which ranges there are, and where each token of a sample stands. book_sizes: of the codec."""

    def __init__(self, config: TextToSpeechConfig, book_sizes: Sequence[int]) -> None:
        self.config, self.book_sizes, self.num_books = config, list(book_sizes), len(book_sizes)
        self.has_prosody = config.prosody is not None
        self.parts = CodebookPattern(CodebookOrder(order="ar_nar"), self.num_books).parts
        self.pair = CodebookPattern(CodebookOrder(order="parallel"), 2).parts[0]

    def vocabulary(self, phones: int, pitches: int, longest: int) -> dict[str, int]:
        """Ranges and their sizes. Without prosody the last id of codec.0 is the end."""
        prosody = {"prosody.0": pitches, "prosody.1": longest + 1} if self.has_prosody else {}
        codes = {f"codec.{book}": size + (book == 0 and not self.has_prosody) for book, size in enumerate(self.book_sizes)}
        return {"phone": phones, "special": 2, "mask": 1, **prosody, **codes}

    @property
    def channels(self) -> dict[str, ChannelConfig]:
        """The number of the codebook that is predicted for all frames at once."""
        return {BOOK: ChannelConfig(kind="ids", size=self.num_books)} if self.num_books > 1 else {}

    @property
    def end(self) -> int | None:
        """The id of codec.0 that ends speech; None where its length is known before."""
        return None if self.has_prosody else self.book_sizes[0]

    def sample(self, said: Said, rng: np.random.Generator) -> Stream:
        """The first codebook with what comes before it, or one of the others."""
        if self.num_books > 1 and rng.random() < self.config.further_share:
            return self.further(said, int(rng.integers(1, self.num_books)), rng)
        return self.first(said, rng)

    def first(self, said: Said, rng: np.random.Generator | None = None) -> Stream:
        """The stream in which the first codebook is learned, from left to right; rng: some codes are hidden where they are read."""
        rows = self.rows(said.frames)
        codes = self.parts[0].forward(said.codes, self.end)
        hidden = None if rng is None else self._dropped(codes, rng)
        reach = None if rows is None else rows[1:]
        speech = Segment("codec", codes, weight=1.0, position=counted(len(codes)), reach=reach, hidden=hidden)
        return Stream([*self.before(said, weight=1.0), self.begin_speech(rows), speech])

    def _dropped(self, codes_tu: Tensor, rng: np.random.Generator) -> Tensor | None:
        """bool [t, u]: filled cells that are hidden."""
        if not self.config.code_dropout:
            return None
        return torch.from_numpy(rng.random(codes_tu.shape) < self.config.code_dropout) & (codes_tu != EMPTY)

    def further(self, said: Said, book: int, rng: np.random.Generator) -> Stream:
        """The stream in which a further codebook is learned, for all frames of what follows a drawn voice, in both directions."""
        voice = int(rng.uniform(0, VOICE_SHARE) * len(said.codes)) if rng.random() < VOICE_CHANCE else 0
        hidden = np.ones(len(said.codes) - voice, dtype=bool)
        if self.config.passes > 1:
            hidden[rng.permutation(len(hidden))[max(1, round(len(hidden) * cosine_share(rng))) :]] = False
        weight = (torch.arange(len(said.codes)) >= voice).float()
        speech = replace(self.known(said.codes, self.rows(said.frames)), weight=weight)
        speech = hide_book(speech, weight > 0, book, torch.from_numpy(hidden))
        if speech.ids is not None and (dropped := self._dropped(speech.ids, rng)) is not None and speech.hidden is not None:
            speech = replace(speech, hidden=speech.hidden | dropped)
        segments = [*self.before(said), self.begin_speech(None), speech]
        return Stream([replace(with_book(segment, book, BOOK), mutual=1) for segment in segments])

    def before(self, said: Said, weight: float = 0.0) -> list[Segment]:
        """What comes before the mark of speech. Where there are fewer pairs of prosody than phonemes, the others are not written yet."""
        count = len(said.phone)
        if not self.has_prosody:
            return [Segment("phone", said.phone, position=counted(count))]
        pairs = torch.stack([said.pitch, said.frames], dim=1)
        phones = Segment("phone", said.phone, position=counted(count), mark=torch.arange(count))
        begin = Segment("special", torch.tensor([BEGIN_PROSODY]))
        return [phones, begin, Segment("prosody", pairs, weight=weight, position=counted(len(pairs)), mark=torch.arange(len(pairs)))]

    @staticmethod
    def begin_speech(rows: Tensor | None) -> Segment:
        """The mark that begins speech, which predicts the first frame."""
        return Segment("special", torch.tensor([BEGIN_SPEECH]), reach=None if rows is None else rows[:1])

    @staticmethod
    def known(codes_tu: Tensor, rows: Tensor | None) -> Segment:
        """Frames that are read, or predicted at their own place: each sees what is said in it."""
        return Segment("codec", codes_tu, position=counted(len(codes_tu)), reach=None if rows is None else rows[: len(codes_tu)])

    def first_known(self, codes_tu: Tensor, rows: Tensor | None) -> Segment:
        """The first codebook of frames that the next ones go on from: each sees what is said after it."""
        cells = codes_tu.clone()
        cells[:, 1:] = EMPTY
        return self.known(cells, None if rows is None else rows[1:])

    def rows(self, frames_e: Tensor) -> Tensor | None:
        """The reach [t + 1, 2] of the queries that predict the frames; None where everything is seen."""
        return window_by_alignment(frames_e, self.config.window) if self.has_prosody else None


def counted(count: int) -> Tensor:
    """Positions [count, 1] from 0 on."""
    return torch.arange(count)[:, None]
