"""The stages that write speech behind a text: prosody or units where there are any, the first codebook step by step, the others with it or
for all frames at once.

Axes: e entries   n units   t frames   u codebooks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmlm.generation import Sampling
from mmlm.stages import Branch, Length, SoFar, Stage
from mmlm.stream import Segment, Stream
from mmlm.tasks.tts_plan import BOOK, UNIT, Said, SpeechPlan, counted
from mmlm.vocabulary import Vocabulary

SPEECH = "speech"  # the stage that writes the first codebook
CHUNK = 12  # frames after which a listener is told
VOICE_UNITS = 0.8  # share of a voice's units that those of a text follow: after all of them the end would be near (VoxInstruct's code)


@dataclass(frozen=True)
class Writing:
    """What is to be said. texts: tokens [e] of each.   voices: one a text, recordings that come before it.   pace: divides durations.
    most: frames after which speech without prosody ends."""

    plan: SpeechPlan
    texts: Sequence[Tensor]
    voices: Sequence[Said]
    vocabulary: Vocabulary
    pace: float
    most: int

    def prompts(self) -> list[Stream]:
        """What the first stage goes on from."""
        if self.plan.has_units:
            return [Stream(self._before_units(number)) for number in range(len(self.texts))]
        return [Stream(self.plan.before(self._said(number))) for number in range(len(self.texts))]

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
            SPEECH, "codec", length, plan.parts[0], prompt=self._before_speech, known=lambda so_far: self._voice(so_far).codes, stop=end,
            sampling=self._sampling(plan.config.top_k), position=lambda so_far, tokens: torch.arange(tokens),
            reach=self._reach if plan.has_prosody else None, branches=self._branches(), chunk=CHUNK,
        )  # fmt: skip
        frames = Length.exactly(lambda so_far: len(so_far.codes["codec"]))
        further = [
            Stage(
                f"book {book}", "codec", frames, plan.parts[book], plan.config.passes, prompt=self._before_further, position=self._frame,
                reach=self._reach_at_once if plan.has_prosody else None, book_channel=BOOK,
            )
            for book in range(1, len(plan.parts))
        ]  # fmt: skip
        planned = [self._prosody()] if plan.has_prosody else [self._units()] if plan.has_units else []
        return [*planned, first, *further]

    def spoken(self, so_far: SoFar) -> Said:
        """The text as it was spoken, without the voice; prosody at the pace that was asked for."""
        text, codes = self.texts[so_far.number], so_far.codes["codec"]
        if self.plan.has_units:
            return Said(text, codes, units=so_far.written["units"][:, 0])
        if not self.plan.has_prosody:
            return Said(text, codes)
        return Said(text, codes, so_far.written["prosody"][:, 0], self._frames(so_far)[len(self._voice(so_far).frames) :])

    def _prosody(self) -> Stage:
        def entry(so_far: SoFar, tokens: int) -> Tensor:
            return len(self._voice(so_far).text) + torch.arange(tokens)

        count = Length.exactly(lambda so_far: len(self.texts[so_far.number]))
        return Stage("prosody", "prosody", count, self.plan.pair, sampling=self._sampling(None), position=entry, mark=entry)

    def _units(self) -> Stage:
        plan = self.plan
        end = self.vocabulary.span(f"{UNIT}.0").start + plan.num_units
        branches = [Branch(plan.without_text, plan.config.guidance.units_over_text)]
        # as many as there can be frames, and one at least: without units there is nothing to say
        return Stage(
            "units", UNIT, Length(self.most, 1), plan.single, stop=[end], sampling=self._sampling(plan.config.units_top_k),
            position=lambda so_far, tokens: len(self._voice_units(so_far.number)) + torch.arange(tokens), branches=branches,
        )  # fmt: skip

    def _branches(self) -> list[Branch]:
        """Away from speech without the text, then from speech without the units."""
        weights, plan = self.plan.config.guidance, self.plan
        over_units = [Branch(plan.without_units, weights.speech_over_units)] if plan.has_units else []
        return [Branch(plan.without_text, weights.speech_over_text), *over_units]

    def _sampling(self, top_k: int | None) -> Sampling:
        config = self.plan.config
        return Sampling(temperature=config.temperature, top_p=config.top_p, top_k=top_k)

    def _voice(self, so_far: SoFar) -> Said:
        return self.voices[so_far.number]

    def _voice_units(self, number: int) -> Tensor:
        """The units of a voice that those of its text follow."""
        units = self.voices[number].units
        return units[: int(len(units) * VOICE_UNITS)]

    def _before_units(self, number: int) -> list[Segment]:
        begun, text = self._voice_units(number), torch.cat([self.voices[number].text, self.texts[number]])
        before = self.plan.before_units(text)
        return [*before, Segment(UNIT, begun[:, None], position=counted(len(begun)))] if len(begun) else before

    def _said(self, number: int, planned: Tensor | None = None) -> Said:
        """The voice and the text behind it, with the prosody [e, 2] or units [n, 1] that have been written."""
        voice = self.voices[number]
        text = torch.cat([voice.text, self.texts[number]])
        if self.plan.has_units and planned is not None:
            return Said(text, voice.codes, units=torch.cat([self._voice_units(number), planned[:, 0]]))
        pairs = torch.zeros(0, 2, dtype=torch.long) if planned is None else planned
        return Said(text, voice.codes, torch.cat([voice.pitch, pairs[:, 0]]), torch.cat([voice.frames, pairs[:, 1]]))

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

    def _before_speech(self, so_far: SoFar) -> Stream:
        return Stream([*self._before(so_far), self.plan.begin_speech(self._rows(so_far))])

    def _before_further(self, so_far: SoFar) -> Stream:
        voice = self._voice(so_far)
        known = [self.plan.known(voice.codes, self._rows(so_far))] if len(voice.codes) else []
        return Stream([*self._before(so_far), self.plan.begin_speech(None), *known])

    def _before(self, so_far: SoFar) -> list[Segment]:
        said = self._said(so_far.number, so_far.written.get("units" if self.plan.has_units else "prosody"))
        return [*self.plan.before(said), *(self.plan.timed(said, self._frames(so_far)) if self.plan.has_prosody else [])]

    def _frame(self, so_far: SoFar, tokens: int) -> Tensor:
        return len(self._voice(so_far).codes) + torch.arange(tokens)

    def _reach(self, so_far: SoFar, tokens: int) -> Tensor:
        """Of each step, those of the voice first, the row of the one behind it, which it predicts."""
        return self._known_rows(so_far)[1 : 1 + tokens]

    def _reach_at_once(self, so_far: SoFar, tokens: int) -> Tensor:
        """Of each frame behind the voice the row of the frame itself."""
        start = len(self._voice(so_far).codes)
        return self._known_rows(so_far)[start : start + tokens]

    def _known_rows(self, so_far: SoFar) -> Tensor:
        rows = self._rows(so_far)
        assert rows is not None
        return rows
