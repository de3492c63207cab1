"""What is said in a recording, entry by entry: phonemes, and a slot for a pause behind every word, each with its frames and its pitch.

Which entries there are follows from the text alone, so that a text to be spoken has those that a recording of it would have: a silence,
then the phonemes of each word and behind it a slot (its punctuation or the border of words), and a silence. How long each lasts, a slot
often not at all, is what the aligner heard.

Axes: e entries   t frames
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from mmlm.base.errors import DataError, RecipeError
from mmlm.data.alignment import Alignment, PhoneAligner, frames_of
from mmlm.data.speech import Utterance
from mmlm.data.token_shards import fingerprint
from mmlm.stream import Segment
from mmlm.tokenizers.phonemes import BOUNDARY, SILENCE, PhonemeTokenizer, Transcript
from mmlm.tokenizers.prosody import Prosody, split_long

logger = logging.getLogger(__name__)

NONE = -1  # in all places of the one entry of a recording whose text does not fit its sound


@dataclass(frozen=True)
class Entries:
    """What is said. phone, pitch, frames: long [e]: ids of phonemes, buckets of the pitch, lengths."""

    phone: Tensor
    pitch: Tensor
    frames: Tensor

    def split(self, longest: int) -> Entries:
        """Entries of at most `longest` frames: longer ones become several of the same phoneme and pitch."""
        lengths, place = split_long(self.frames.tolist(), longest)
        at = torch.tensor(place, dtype=torch.long)
        return Entries(self.phone[at], self.pitch[at], torch.tensor(lengths, dtype=torch.long))

    def then(self, other: Entries, slot: int) -> Entries:
        """These and others behind them. The silences between, the last and the first entry, become the time of one slot."""
        pause = self.frames[-1] + other.frames[0]
        first = Entries(self.phone.clone(), self.pitch.clone(), self.frames.clone())
        first.phone[-1], first.frames[-1], first.pitch[-1] = slot, pause, 0
        parts = [(first.phone, other.phone), (first.pitch, other.pitch), (first.frames, other.frames)]
        return Entries(*(torch.cat([mine, theirs[1:]]) for mine, theirs in parts))


def entries_of_text(transcript: Transcript) -> list[str]:
    """The symbols of a text that is to be spoken."""
    return [SILENCE, *transcript.symbols, SILENCE]


def aligned_entries(transcript: Transcript, alignment: Alignment) -> tuple[list[str], list[float]]:
    """The symbols of a text as it was spoken, and when each ends. Words have the phonemes that were heard; a pause is the time of the first
    slot at its place, other slots have none."""
    heard: dict[int, list[tuple[str, float]]] = {}
    silent_until: dict[int, float] = {}
    word = -1
    for phone in alignment.phones:
        if phone.word >= 0:
            word = phone.word
            heard.setdefault(word, []).append((phone.symbol, phone.end_seconds))
        else:
            silent_until[word] = phone.end_seconds
    found = [(SILENCE, silent_until.get(-1, 0.0))]
    last, word = len(transcript.words) - 1, -1
    for symbol, owner in zip(transcript.symbols, transcript.word_of, strict=True):
        if owner < 0:  # behind the last word the closing silence takes the pause
            found.append((symbol, found[-1][1] if word == last else max(found[-1][1], silent_until.get(word, 0.0))))
        elif owner != word:
            word = owner
            found += heard[word]
    end = alignment.phones[-1].end_seconds
    found.append((SILENCE, end))
    return [symbol for symbol, _ in found], [min(seconds, end) for _, seconds in found]


class EntryTokens:
    """A tokenizer of recordings with texts: ids [e, 3] of phoneme, pitch and frames; one entry of NONE where text and sound do not fit."""

    def __init__(self, phonemes: PhonemeTokenizer, prosody: Prosody, rate_hz: int, token_rate: Fraction) -> None:
        if not phonemes.config.boundaries or phonemes.config.engine != "dictionary":
            raise RecipeError("tokenizers: durations need phonemes with engine: dictionary and boundaries: true, between which pauses lie.")
        if Fraction(prosody.config.rate_hz).limit_denominator(1000) != token_rate:
            raise RecipeError(
                f"tokenizers: prosody has {prosody.config.rate_hz:g} frames a second, but the codec {float(token_rate):g}: rate_hz."
            )
        self.phonemes, self.prosody, self.rate_hz, self.token_rate = phonemes, prosody, rate_hz, token_rate

    @property
    def sizes(self) -> dict[str, int]:
        """Of phonemes and pitch; lengths have no end that is known here."""
        return {**self.phonemes.sizes, "pitch": self.prosody.sizes["pitch"]}

    @property
    def fingerprint(self) -> str:
        """Changes with what the entries are made by."""
        made_by = [
            fingerprint(self.phonemes),
            fingerprint(self.prosody),
            str(self.prosody.config),
            str(self.phonemes.config),
            str(self.rate_hz),
        ]
        return hashlib.blake2b(" ".join(made_by).encode(), digest_size=16).hexdigest()

    def encode_utterances(self, utterances: Sequence[Utterance]) -> list[Segment]:
        """One segment for each. A text that does not fit its sound is told in the log."""
        aligner = PhoneAligner(self.phonemes, unspeakable=self.phonemes.config.unspeakable)
        found = []
        for utterance in utterances:
            try:
                found.append(self._encode(utterance, aligner))
            except DataError as error:
                logger.warning("left out: %s", error)
                found.append(torch.full((1, 3), NONE))
        return [Segment("entry", ids) for ids in found]

    def _encode(self, utterance: Utterance, aligner: PhoneAligner) -> Tensor:
        sound = utterance.sound(self.rate_hz)
        alignment = aligner.align(sound, utterance.text, utterance.where)
        symbols, ends = aligned_entries(self.phonemes.transcribe(utterance.text), alignment)
        frames = frames_of(
            ends, self.token_rate, -(-len(sound.wave_n) * self.token_rate.numerator // (sound.rate_hz * self.token_rate.denominator))
        )
        prosody = self.prosody.of_phones(sound, frames)
        first = torch.searchsorted(prosody.phone, torch.arange(len(frames)))
        return torch.stack([torch.tensor(self.phonemes.ids(symbols)), prosody.pitch[first], torch.tensor(frames)], dim=1)

    def entries(self, ids_e3: Tensor) -> Entries | None:
        """What the ids say; None for a recording that could not be aligned."""
        return None if int(ids_e3[0, 0]) == NONE else Entries(*ids_e3.unbind(1))

    @property
    def slot(self) -> int:
        """The id of the border between words."""
        return self.phonemes.ids([BOUNDARY])[0]
