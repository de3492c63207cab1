"""Which phone is said when: the text of a recording laid along its sound.

English by the acoustic model in the package pocketsphinx, two passes: words first, among their pronunciations, then phones, in frames of
10 ms. Other label sets by the log-probabilities of a model trained with CTC (Kuerzinger et al. 2020 use the same search). Times become
token frames by rounding where each phone ends, never how long it lasts, so that the frames of all phones are exactly those of the codec.

Axes: t frames   l labels   c classes
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError, require
from mmlm.sound import Sound
from mmlm.tokenizers.english_phones import EnglishPhones
from mmlm.tokenizers.phonemes import SILENCE, PhonemeTokenizer
from mmlm.tokenizers.spoken_text import Spoken, Unspeakable

RATE_HZ = 16_000  # of the acoustic model
FRAMES_A_SECOND = 100
SHORTEST = 1600  # samples
LOWEST_SCORE = -30.0  # right texts of studio prompts scored -24 to -7, wrong ones mostly below -33; of single short words they overlap
_VARIANT = re.compile(r"\(\d+\)$")


class AlignedPhone(NamedTuple):
    """A phone and when it ends. word: place of its word in `Alignment.words`, -1 for silence."""

    symbol: str
    end_seconds: float
    word: int


class _Heard(NamedTuple):
    """A word or silence that the aligner found: sum of the frames' scores, their number, and its phones with the frames they end at."""

    name: str
    score: float
    frames: int
    phones: list[tuple[str, int]]


@dataclass(frozen=True)
class Alignment:
    """Phones of a recording in order, the first from its start, each from the end of the one before; the last ends with the recording.

    words: what is said, with the characters of the text it stands for. score: mean log likelihood of a frame, in units of the acoustic
    model; the higher, the better text and sound fit.
    """

    phones: list[AlignedPhone]
    words: list[Spoken]
    score: float

    @property
    def symbols(self) -> list[str]:
        """The phones alone, silence among them."""
        return [phone.symbol for phone in self.phones]

    @property
    def seconds(self) -> list[float]:
        """How long each phone lasts."""
        ends = [0.0, *(phone.end_seconds for phone in self.phones)]
        return [end - start for start, end in zip(ends, ends[1:], strict=False)]

    def frames(self, rate_hz: Fraction | float, num_frames: int) -> list[int]:
        """How many token frames each phone has; their sum is num_frames. A phone shorter than half a frame may have none.

        rate_hz: frames a second.
        """
        return frames_of([phone.end_seconds for phone in self.phones], rate_hz, num_frames)


def frames_of(end_seconds: Sequence[float], rate_hz: Fraction | float, num_frames: int) -> list[int]:
    """Frames between rounded end times, with the last end at num_frames. Raises DataError for ends that run backwards."""
    if not len(end_seconds) or num_frames < 0 or any(later < sooner for sooner, later in zip(end_seconds, end_seconds[1:], strict=False)):
        raise DataError(f"end times must rise and frames be at least 0, but are {list(end_seconds)[:8]} and {num_frames}.")
    ends = [min(int(end * float(rate_hz) + 0.5), num_frames) for end in end_seconds[:-1]]
    return np.diff([0, *ends, num_frames]).tolist()


class PhoneAligner:
    """English texts along their sound. tokenizer: pronounces words that the acoustic model's dictionary does not have; without it they are
    an error. unspeakable: as in the config of the phonemes."""

    def __init__(self, tokenizer: PhonemeTokenizer | None = None, *, unspeakable: Unspeakable = "error") -> None:
        if tokenizer is not None and not isinstance(tokenizer.engine, EnglishPhones):
            raise DataError("the aligner reads English, but the phoneme tokenizer is of another language.")
        self.phones = tokenizer.engine if tokenizer is not None and isinstance(tokenizer.engine, EnglishPhones) else EnglishPhones()
        self.unspeakable = unspeakable

    @functools.cached_property
    def _decoder(self) -> Any:
        package = require("pocketsphinx", "speech")
        path = package.get_model_path
        files = {"hmm": path("en-us/en-us"), "dict": path("en-us/cmudict-en-us.dict")}
        return package.Decoder(**files, lm=None, bestpath=False, loglevel="FATAL", samprate=float(RATE_HZ))

    def align(self, sound: Sound, text: str, where: str = "recording") -> Alignment:
        """When each phone of the text is said. where: file and line, for messages.

        Raises DataError for a text that cannot be spoken, a word without a pronunciation, and a text that is not what is heard.
        """
        try:
            words = [word for word in self.phones.words(text, self.unspeakable) if not word.is_pause]
            names = [self._known(word) for word in words]
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if not words:
            raise DataError(f"{where}: its text {text[:60]!r} holds nothing that can be spoken.")
        wave_n = np.clip(sound.at(RATE_HZ).wave_n * 32768, -32768, 32767).astype(np.int16)
        if len(wave_n) < SHORTEST:
            raise DataError(f"{where}: {sound.seconds:.3f} s of sound are too short to fit the text {text[:60]!r}.")
        decoder = self._decoder
        decoder.set_align_text(" ".join(names))
        self._listen(wave_n)
        if decoder.hyp() is None:
            raise DataError(f"{where}: {sound.seconds:.2f} s of sound do not fit the text {text[:60]!r}.")
        decoder.set_alignment()
        self._listen(wave_n)
        return self._checked(self._heard(), words, sound, text, where)

    def _listen(self, wave_n: np.ndarray) -> None:
        self._decoder.start_utt()
        self._decoder.process_raw(wave_n.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()

    def _heard(self) -> list[_Heard]:
        """What the last pass found, copied: the parts of an alignment are gone with the whole, which has to be held while they are read."""
        whole, found = self._decoder.get_alignment(), []
        for entry in whole or ():
            phones = [(phone.name, phone.start + phone.duration) for phone in entry]
            found.append(_Heard(entry.name, entry.score, entry.duration, phones))
        return found

    def _known(self, word: Spoken) -> str:
        """The word as the decoder knows it; added with its learned pronunciation where it does not."""
        decoder, name = self._decoder, word.text
        if decoder.lookup_word(name) is None:
            if not self.phones.rules.is_fitted and name not in self.phones.dictionary:
                raise DataError(
                    f"the word {name!r} is not in the dictionary; give the aligner a fitted phoneme tokenizer, which has rules."
                )
            decoder.add_word(name, " ".join(self.phones.pronounce(word)), True)
        return name

    def _checked(self, found: list[_Heard], words: list[Spoken], sound: Sound, text: str, where: str) -> Alignment:
        phones: list[AlignedPhone] = []
        place, score, frames = -1, 0.0, 0
        for entry in found:
            is_word = not entry.name.startswith(("<", "[", "+"))
            place += is_word
            if is_word and (place >= len(words) or _VARIANT.sub("", entry.name) != words[place].text):
                raise DataError(
                    f"{where}: the aligner heard {entry.name!r} where the text has {words[place].text if place < len(words) else ''!r}."
                )
            score, frames = score + entry.score, frames + entry.frames
            for symbol, last in entry.phones:
                end = min(last / FRAMES_A_SECOND, sound.seconds)
                if is_word or not phones or phones[-1].word >= 0:
                    phones.append(AlignedPhone(symbol if is_word else SILENCE, end, place if is_word else -1))
                else:
                    phones[-1] = AlignedPhone(SILENCE, end, -1)
        mean = score / max(frames, 1)
        if place + 1 < len(words) or mean < LOWEST_SCORE:
            least = f"{mean:.1f} a frame, and at least {LOWEST_SCORE:g} is asked for"
            raise DataError(f"{where}: the text {text[:60]!r} does not fit the sound: {least}.")
        phones[-1] = phones[-1]._replace(end_seconds=sound.seconds)
        return Alignment(phones, words, mean)


def ctc_frames(log_p_tc: Tensor, labels: Sequence[int], *, blank: int = 0, where: str = "recording") -> list[int]:
    """How many of the t frames belong to each label, by the likeliest CTC path; their sum is t.

    Blank frames between two labels are shared half and half, those at the ends belong to the first and the last.
    Raises DataError where there are fewer frames than labels need, or a label is the blank or none of the classes.
    """
    num_frames, num_classes = log_p_tc.shape
    if not labels or any(label == blank or not 0 <= label < num_classes for label in labels):
        raise DataError(f"{where}: labels must lie within 0 and {num_classes - 1} without the blank {blank}, but are {list(labels)[:8]}.")
    least = len(labels) + sum(one == other for one, other in zip(labels, labels[1:], strict=False))
    if num_frames < least:
        raise DataError(f"{where}: {len(labels)} labels need at least {least} frames, but there are {num_frames}.")
    align = require("torchaudio.functional", "speech").forced_align
    path = align(log_p_tc.float().log_softmax(-1)[None], torch.tensor([list(labels)]), blank=blank)[0][0].tolist()
    spans: list[list[int]] = []
    for at, label in enumerate(path):
        if label == blank:
            continue
        if at and path[at - 1] == label:
            spans[-1][1] = at + 1
        else:
            spans.append([at, at + 1])
    borders = [(before[1] + after[0] + 1) // 2 for before, after in zip(spans, spans[1:], strict=False)]
    return np.diff([0, *borders, num_frames]).tolist()
