"""How much of what should be said a recognizer understands: word and character errors, always beside those on the reference sound.

Both sides of a comparison are written the same way first: lower case, numbers and signs as words, no punctuation. A recognizer makes errors
of its own, so its errors on recordings of the same texts are the floor below which no synthesized sound can be told apart.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mmlm.base.errors import DataError, require
from mmlm.sound import Sound
from mmlm.tokenizers.spoken_text import spoken


class Recognizer(Protocol):
    """Sounds to texts. name: what it is, for reports."""

    name: str

    def transcribe(self, sounds: Sequence[Sound]) -> list[str]:
        """What is said in each sound."""


def normalized(text: str, language: str = "en") -> str:
    """A text as errors are counted on: English as it is spoken, initials in one word; other languages in lower case without punctuation."""
    if language.partition("-")[0].lower() != "en":
        letters = unicodedata.normalize("NFKC", text).lower()
        return " ".join(re.sub(r"[^\w' ]|_", " ", letters).split())
    found: list[str] = []
    after = -1  # end of the letter before, where the word before is a letter
    for word in spoken(text, unspeakable="skip"):
        if word.is_pause:
            continue
        if word.is_letter and 0 <= word.start - after <= 1 and after >= 0:
            found[-1] += word.text
        else:
            found.append(word.text)
        after = word.end if word.is_letter else -1
    return " ".join(found)


@dataclass(frozen=True)
class Errors:
    """Errors of many texts together. wer, cer: share of the words and characters of the references; may exceed 1.

    words, characters: of the references. substituted, left_out, put_in: words. clips: texts.
    """

    wer: float
    cer: float
    words: int
    substituted: int
    left_out: int
    put_in: int
    clips: int
    characters: int


def text_errors(references: Sequence[str], found: Sequence[str], language: str = "en") -> Errors:
    """Word and character errors of texts against references, after `normalized`. Raises DataError for references without words."""
    if len(references) != len(found):
        raise DataError(f"{len(references)} references have {len(found)} texts beside them; there must be one for each.")
    pairs = [(normalized(one, language), normalized(other, language)) for one, other in zip(references, found, strict=True)]
    if empty := [reference for reference, (text, _) in zip(references, pairs, strict=True) if not text]:
        raise DataError(f"errors are counted on words, but the reference {empty[0][:60]!r} has none.")
    if not pairs:
        raise DataError("errors are counted on words, but there is no reference.")
    package = require("jiwer", "judges")
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    words = package.process_words(ours, theirs)
    total = words.hits + words.substitutions + words.deletions
    characters = package.process_characters(ours, theirs)
    letters = characters.hits + characters.substitutions + characters.deletions
    return Errors(words.wer, characters.cer, total, words.substitutions, words.deletions, words.insertions, len(pairs), letters)


@dataclass(frozen=True)
class Intelligibility:
    """How well sounds are understood. errors: on them. floor: by the same recognizer on recordings of the same texts, None without.

    texts: what was understood of each. recognizer: its name. seconds: of CPU that the recognizer took. sound_seconds: of sound it heard.
    """

    errors: Errors
    floor: Errors | None
    texts: list[str]
    recognizer: str
    seconds: float
    sound_seconds: float

    def summary(self) -> dict[str, float | int | str]:
        """Figures for a report, with what they were measured on."""
        found: dict[str, float | int | str] = {"wer": self.errors.wer, "cer": self.errors.cer}
        if self.floor is not None:
            found |= {"wer_of_reference": self.floor.wer, "cer_of_reference": self.floor.cer}
        about: dict[str, float | int | str] = {"clips": self.errors.clips, "words": self.errors.words, "recognizer": self.recognizer}
        return {**found, **about, "recognizer_seconds": self.seconds, "sound_seconds": self.sound_seconds}


def intelligibility(
    recognizer: Recognizer,
    sounds: Sequence[Sound],
    texts: Sequence[str],
    *,
    references: Sequence[Sound] | None = None,
    language: str = "en",
) -> Intelligibility:
    """Errors of a recognizer on sounds that should say the texts. references: recordings of the texts, for the floor."""
    if references is not None and len(references) != len(sounds):
        raise DataError(f"{len(sounds)} sounds have {len(references)} recordings beside them; there must be one for each.")
    began = time.process_time()
    heard = [*sounds, *(references or ())]
    understood = recognizer.transcribe(heard)
    seconds = time.process_time() - began
    ours, theirs = understood[: len(sounds)], understood[len(sounds) :]
    floor = text_errors(texts, theirs, language) if references is not None else None
    errors = text_errors(texts, ours, language)
    return Intelligibility(errors, floor, ours, recognizer.name, seconds, sum(sound.seconds for sound in heard))
