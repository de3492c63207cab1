"""The stages that write speech behind a text: prosody where there is any, the first codebook step by step, the others frame-parallel.

Axes: e entries   t frames   u codebooks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.generation import Sampling
from mmlm.stages import Length, PerToken, SoFar, Stage
from mmlm.stream import Segment, Stream
from mmlm.tasks.tts_plan import BOOK, Said, SpeechPlan
from mmlm.vocabulary import Vocabulary


@dataclass(frozen=True)
class Writing:
    """What is to be said. phones: [e] of each text.   voices: one a text, recordings that come before it.   pace: divides durations.
    most: frames after which speech without prosody ends."""

    plan: SpeechPlan
    phones: Sequence[Tensor]
    voices: Sequence[Said]
    vocabulary: Vocabulary
    pace: float
    most: int

    def prompts(self) -> list[Stream]:
        """What the first stage goes on from."""
        return [Stream(self.plan.before(self._said(number, None))) for number in range(len(self.phones))]

    def stages(self) -> list[Stage]:
        """All stages, in their order."""
        plan = self.plan
        end = [] if plan.end is None else [self.vocabulary.span("codec.0").start + plan.end]
        length = (
            Length.exactly(lambda so_far: int(self._frames(so_far).sum()) - len(self._voice(so_far).codes))
            if not end
            else Length(self.most)
        )
        first = Stage(
            "speech", "codec", length, plan.parts[0], prompt=self._before_first, stop=end, sampling=self._sampling, position=self._frame,
            reach=self._reach(1),
        )  # fmt: skip
        frames = Length.exactly(lambda so_far: len(so_far.codes["codec"]))
        further = [
            Stage(
                f"book {book}", "codec", frames, plan.parts[book], plan.config.passes, prompt=self._before_further, position=self._frame,
                reach=self._reach(0), book_channel=BOOK,
            )
            for book in range(1, plan.num_books)
        ]  # fmt: skip
        return [*([self._prosody()] if plan.has_prosody else []), first, *further]

    def spoken(self, so_far: SoFar) -> tuple[Tensor, Tensor] | None:
        """Phonemes and frames [e] of the text as they were spoken; None without prosody."""
        if not self.plan.has_prosody:
            return None
        return self.phones[so_far.number], self._frames(so_far)[len(self._voice(so_far).frames) :]

    def _prosody(self) -> Stage:
        def entry(so_far: SoFar, tokens: int) -> Tensor:
            return len(self._voice(so_far).phone) + torch.arange(tokens)

        count = Length.exactly(lambda so_far: len(self.phones[so_far.number]))
        return Stage("prosody", "prosody", count, self.plan.pair, sampling=self._sampling, position=entry, mark=entry)

    @property
    def _sampling(self) -> Sampling:
        config = self.plan.config
        return Sampling(temperature=config.temperature, top_p=config.top_p)

    def _voice(self, so_far: SoFar) -> Said:
        return self.voices[so_far.number]

    def _said(self, number: int, pairs_e2: Tensor | None) -> Said:
        """The voice and the text behind it, with the prosody that has been written."""
        voice = self.voices[number]
        pairs = torch.zeros(0, 2, dtype=torch.long) if pairs_e2 is None else pairs_e2
        pitch, frames = torch.cat([voice.pitch, pairs[:, 0]]), torch.cat([voice.frames, pairs[:, 1]])
        return Said(torch.cat([voice.phone, self.phones[number]]), voice.codes, pitch, frames)

    def _frames(self, so_far: SoFar) -> Tensor:
        """Frames [e] of all entries at the pace that is asked for; of the text they are one at least."""
        lengths = so_far.written["prosody"][:, 1]
        ends = (lengths.cumsum(0).double() / self.pace + 0.5).long() if self.pace != 1 else lengths.cumsum(0)
        frames = torch.cat([ends[:1], ends.diff()])
        if not int(frames.sum()):
            frames[-1] = 1
        return torch.cat([self._voice(so_far).frames, frames])

    def _rows(self, so_far: SoFar) -> Tensor | None:
        return self.plan.rows(self._frames(so_far)) if self.plan.has_prosody else None

    def _before_first(self, so_far: SoFar) -> Stream:
        rows, voice = self._rows(so_far), self._voice(so_far)
        known = [self.plan.first_known(voice.codes, rows)] if len(voice.codes) else []
        return Stream([*self._before(so_far), self.plan.begin_speech(rows), *known])

    def _before_further(self, so_far: SoFar) -> Stream:
        voice = self._voice(so_far)
        known = [self.plan.known(voice.codes, self._rows(so_far))] if len(voice.codes) else []
        return Stream([*self._before(so_far), self.plan.begin_speech(None), *known])

    def _before(self, so_far: SoFar) -> list[Segment]:
        return self.plan.before(self._said(so_far.number, so_far.written.get("prosody")))

    def _frame(self, so_far: SoFar, tokens: int) -> Tensor:
        return len(self._voice(so_far).codes) + torch.arange(tokens)

    def _reach(self, behind: int) -> PerToken | None:
        """The rule for the tokens of frames: the row of the frame itself, or of the one behind it."""

        def rule(so_far: SoFar, tokens: int) -> Tensor:
            rows, start = self._rows(so_far), len(self._voice(so_far).codes) + behind
            assert rows is not None
            return rows[start : start + tokens]

        return rule if self.plan.has_prosody else None
