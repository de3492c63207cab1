"""How speech stands in a stream: samples to train on, here; the stages that write it, in tts_stages.

    plain     phonemes, a mark, the first codebook of each frame and an end                                   VALL-E, arXiv:2301.02111
    prosody   phonemes, a mark, pitch and duration of each, both once more, a mark, the first codebook        RALL-E, arXiv:2404.03204
    units     a text, a mark, units without repetitions and an end, a mark, the first codebook and an end     VoxInstruct, arXiv:2408.15676

Positions begin anew in each part. With prosody, a query that predicts a frame sees the phonemes around the one that is said then. Beyond
the paper, phonemes and prosody are read once more before speech, each at the frame with which it begins: so a frame finds what is said
then, and how much of it is over, always equally far away, which little data needs. The tokens of an instruction see one another in both
directions, phonemes only those before. What guidance leaves out, a text or units, is hidden in place, in some samples as in the branches
of stages. A voice is a recording whose text, prosody or units, and codes come first in each part. Further codebooks come in one of two
orders:

    ar_nar    for all frames at once from the same stream, read in both directions, with the number of the codebook at every token; one
              model does this and what is above
    delay     with the first one, each a step later than the one before it, so that sound is heard while it is written  arXiv:2306.05284

Axes: e entries   n units   t frames   u codebooks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mmlm.alignment import window_by_alignment
from mmlm.model_config import ChannelConfig
from mmlm.objectives.books import hide_book, with_book
from mmlm.objectives.masked import cosine_share, drawn_cells
from mmlm.stages import hidden_in
from mmlm.stream import Segment, Stream
from mmlm.tasks.config import TextToSpeechConfig
from mmlm.tokenizers.config import CodebookOrder
from mmlm.tokenizers.patterns import EMPTY, CodebookPattern

BEGIN_PLAN, BEGIN_SPEECH = 0, 1  # of what is written before speech, prosody or units, and of speech
UNIT = "unit"
BOOK = "book"
VOICE_CHANCE, VOICE_SHARE = 0.7, 0.5  # of the samples of further codebooks: how many have a voice, and the most of the frames it takes


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Said:
    """What is said. text: [e] phonemes, or tokens of an instruction.   codes: [t, u].   pitch, frames: [e] with prosody, buckets of the
    pitch and frames of each phoneme.   units: [n] with units, those written: without repetitions."""

    text: Tensor
    codes: Tensor
    pitch: Tensor = field(default_factory=_none)
    frames: Tensor = field(default_factory=_none)
    units: Tensor = field(default_factory=_none)

    @classmethod
    def nothing(cls, num_books: int) -> Said:
        """The voice where there is none."""
        return cls(_none(), torch.zeros(0, num_books, dtype=torch.long))


class SpeechPlan:
    """Which ranges there are, and where each token of a sample stands. book_sizes: of the codec. num_units: different units."""

    def __init__(self, config: TextToSpeechConfig, book_sizes: Sequence[int], num_units: int = 0) -> None:
        self.config, self.book_sizes, self.num_books, self.num_units = config, list(book_sizes), len(book_sizes), num_units
        self.has_prosody, self.has_units = config.prosody is not None, config.units is not None
        self.text = "phone" if config.instruction is None else "text"
        self.parts = CodebookPattern(CodebookOrder(order=config.order), self.num_books).parts
        self.pair = CodebookPattern(CodebookOrder(order="parallel"), 2).parts[0]
        self.single = CodebookPattern(CodebookOrder(order="parallel"), 1).parts[0]

    def vocabulary(self, texts: int, pitches: int, longest: int) -> dict[str, int]:
        """Ranges and their sizes. Without prosody the last id of codec.0 is the end, and that of unit.0 the end of units."""
        prosody = {"prosody.0": pitches, "prosody.1": longest + 1} if self.has_prosody else {}
        units = {f"{UNIT}.0": self.num_units + 1} if self.has_units else {}
        codes = {f"codec.{book}": size + (book == 0 and not self.has_prosody) for book, size in enumerate(self.book_sizes)}
        return {self.text: texts, "special": 2, "mask": 1, **prosody, **units, **codes}

    @property
    def channels(self) -> dict[str, ChannelConfig]:
        """The number of the codebook that is predicted for all frames at once."""
        return {BOOK: ChannelConfig(kind="ids", size=self.num_books)} if len(self.parts) > 1 else {}

    @property
    def end(self) -> int | None:
        """The id of codec.0 that ends speech; None where its length is known before."""
        return None if self.has_prosody else self.book_sizes[0]

    def sample(self, said: Said, rng: np.random.Generator) -> Stream:
        """The first codebook with what comes before it, or one of the others; in some samples the text or the units are hidden."""
        if len(self.parts) > 1 and rng.random() < self.config.further_share:
            stream = self.further(said, int(rng.integers(1, self.num_books)), rng)
        else:
            stream = self.first(said, rng)
        for share, hide in ((self.config.hide_text, self.without_text), (self.config.hide_units, self.without_units)):
            if share and rng.random() < share:
                stream = hide(stream)
        return stream

    def without_text(self, stream: Stream) -> Stream:
        """The stream with the text hidden in place."""
        return hidden_in(stream, self.text)

    @staticmethod
    def without_units(stream: Stream) -> Stream:
        """The stream with the units hidden in place, and not asked for."""
        hidden = hidden_in(stream, UNIT)
        return replace(hidden, segments=[replace(each, weight=0.0) if each.modality == UNIT else each for each in hidden.segments])

    def first(self, said: Said, rng: np.random.Generator | None = None) -> Stream:
        """The stream in which what is written from left to right is learned; rng: some codes are hidden where they are read."""
        rows = self.rows(said.frames)
        codes = self.parts[0].forward(said.codes, self.end)
        hidden = None if rng is None else self._dropped(codes, rng)
        reach = None if rows is None else rows[1:]
        speech = Segment("codec", codes, weight=1.0, position=counted(len(codes)), reach=reach, hidden=hidden)
        return Stream([*self.before(said, weight=1.0), *self.timed(said, said.frames), self.begin_speech(rows), speech])

    def _dropped(self, codes_tu: Tensor, rng: np.random.Generator) -> Tensor | None:
        """bool [t, u]: filled cells that are hidden."""
        if not self.config.code_dropout:
            return None
        return drawn_cells(codes_tu.shape, self.config.code_dropout, rng) & (codes_tu != EMPTY)

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
        segments = [*self.before(said), *self.timed(said, said.frames), self.begin_speech(None), speech]
        return Stream([replace(with_book(segment, book, BOOK), mutual=1) for segment in segments])

    def before(self, said: Said, weight: float = 0.0) -> list[Segment]:
        """What comes before the mark of speech. Where there are fewer pairs of prosody than phonemes, the others are not written yet."""
        if self.has_units:
            units = self.single.forward(said.units[:, None], self.num_units)
            return [*self.before_units(said.text), Segment(UNIT, units, weight=weight, position=counted(len(units)))]
        count = len(said.text)
        if not self.has_prosody:
            return [self._read(said.text)]
        pairs = torch.stack([said.pitch, said.frames], dim=1)
        phones = replace(self._read(said.text), mark=torch.arange(count))
        return [phones, begin_plan(), Segment("prosody", pairs, weight=weight, position=counted(len(pairs)), mark=torch.arange(len(pairs)))]

    def timed(self, said: Said, frames: Tensor) -> list[Segment]:
        """Phonemes and their prosody where each begins, for durations [e] in frames; without prosody nothing."""
        if not self.has_prosody:
            return []
        starts, mark = frames.cumsum(0) - frames, torch.arange(len(frames))
        pairs = torch.stack([said.pitch, said.frames], dim=1)
        return [Segment(name, ids, position=starts[:, None], mark=mark) for name, ids in ((self.text, said.text), ("prosody", pairs))]

    def looked_at(self, said: Said) -> list[slice]:
        """Where in the stream of the first codebook stands what its frames look at: units, or phonemes and prosody, twice, or the text."""
        count = len(said.text)
        if self.has_units:
            return [slice(count + 1, count + 1 + len(said.units))]
        return [slice(0, count), *(slice(k * count + 1, (k + 1) * count + 1) for k in range(1, 4 if self.has_prosody else 1))]

    def before_units(self, text: Tensor) -> list[Segment]:
        """What comes before the first unit."""
        return [self._read(text), begin_plan()]

    def _read(self, text: Tensor) -> Segment:
        return Segment(self.text, text, position=counted(len(text)), mutual=int(self.config.instruction is not None))

    @staticmethod
    def begin_speech(rows: Tensor | None) -> Segment:
        """The mark that begins speech, which predicts the first frame."""
        return Segment("special", torch.tensor([BEGIN_SPEECH]), reach=None if rows is None else rows[:1])

    @staticmethod
    def known(codes_tu: Tensor, rows: Tensor | None) -> Segment:
        """Frames that are read, or predicted at their own place: each sees what is said in it."""
        return Segment("codec", codes_tu, position=counted(len(codes_tu)), reach=None if rows is None else rows[: len(codes_tu)])

    def rows(self, frames_e: Tensor) -> Tensor | None:
        """The reach [s + 1, 2] of the queries that predict the steps of so many frames; None where everything is seen. Steps behind the
        last frame, in which delayed codebooks end, see what it does."""
        if not self.has_prosody:
            return None
        rows = window_by_alignment(frames_e, self.config.window)
        behind = self.parts[0].num_steps(len(rows) - 1) - (len(rows) - 1)
        return torch.cat([rows, rows[-1:].expand(behind, 2)])


def begin_plan() -> Segment:
    """The mark that begins what is written before speech, and predicts the first of it."""
    return Segment("special", torch.tensor([BEGIN_PLAN]))


def counted(count: int) -> Tensor:
    """Positions [count, 1] from 0 on."""
    return torch.arange(count)[:, None]
