"""English words to ARPABET phones: a pronunciation dictionary, rules for endings, and learned letter-to-sound rules for the rest.

The default dictionary is the one in the package pocketsphinx (CMU Pronouncing Dictionary, BSD licence, no stress), which is also what the
aligner in mmlm.data.alignment reads, so both use the same phones.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path

from mmlm.base.errors import CheckpointError, DataError, require
from mmlm.base.files import user_cache_folder
from mmlm.tokenizers import letter_to_sound
from mmlm.tokenizers.letter_to_sound import LetterToSound
from mmlm.tokenizers.spoken_text import Spoken, Unspeakable, spoken

logger = logging.getLogger(__name__)

ENDINGS, VOICELESS, HISSING = {"S", "Z", "IH"}, {"P", "T", "K", "F", "TH"}, {"S", "Z", "SH", "ZH", "CH", "JH"}
LETTER_A = ("EY",)  # the dictionary's "a" is the article
_LINE = re.compile(r"(?P<word>[^\s(]+)(?:\(\d+\))?\s+(?P<phones>\S.*)")
_PLAIN = re.compile(r"[a-z']+")

Dictionary = dict[str, list[tuple[str, ...]]]


def default_dictionary() -> Path:
    """The dictionary file of the installed package pocketsphinx. Raises MissingExtra without it."""
    return Path(require("pocketsphinx", "speech").get_model_path("en-us/cmudict-en-us.dict"))


@functools.lru_cache(maxsize=4)
def read_dictionary(path: Path) -> Dictionary:
    """{word: its pronunciations, the usual one first} of a file with lines such as `tomato(2) T AH M AA T OW`.

    Digits of stress are taken off. Raises DataError naming file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    found: Dictionary = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith((";;;", "#")):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(f"{path}, line {number}: must be a word and its phones, but is {line[:60]!r}.")
        phones = tuple(phone.rstrip("012") for phone in match["phones"].partition("#")[0].split())
        known = found.setdefault(match["word"].lower(), [])
        if phones not in known:
            known.append(phones)
    if not found:
        raise DataError(f"{path}: holds no word.")
    return found


class EnglishPhones:
    """Words and pauses of English texts, and phones of its words. path: of the dictionary; None for the default one."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.rules = LetterToSound()
        self._guessed: dict[str, tuple[str, ...]] = {}

    @functools.cached_property
    def dictionary(self) -> Dictionary:
        """{word: its pronunciations}."""
        return read_dictionary(self.path or default_dictionary())

    @property
    def phones(self) -> list[str]:
        """Every phone of the dictionary, sorted."""
        return sorted({phone for each in self.dictionary.values() for phones in each for phone in phones})

    @functools.cached_property
    def _known(self) -> set[str]:
        return set(self.phones)

    def fit(self) -> None:
        """Learn the letter-to-sound rules from the dictionary: some 15 seconds for 125,000 words, once for each dictionary, as they are
        kept in the user's cache folder."""
        self._guessed.clear()
        dictionary = self.dictionary
        made_of = (self.path or default_dictionary()).read_bytes() + Path(letter_to_sound.__file__).read_bytes()
        kept = user_cache_folder() / "letter_to_sound" / hashlib.blake2b(made_of, digest_size=16).hexdigest()
        try:
            self.rules.load(kept)
        except CheckpointError:  # not kept yet, or damaged
            self.rules.fit(entries(dictionary))
            try:
                self.rules.save(kept)
            except OSError as error:
                logger.warning("%s cannot be written (%s); letter-to-sound rules will be learned again next time.", kept, error)

    def words(self, text: str, unspeakable: Unspeakable) -> list[Spoken]:
        """The words and pauses of a text. Raises DataError for what cannot be spoken."""
        return spoken(text, unspeakable=unspeakable, is_word=self.dictionary.__contains__)

    def pronounce(self, word: Spoken) -> tuple[str, ...]:
        """The phones of a word: as it stands in the dictionary, its stem there with an 's, or by the learned rules."""
        text = word.text
        if word.is_letter and text == "a":
            return LETTER_A
        if text in self.dictionary:
            return self.dictionary[text][0]
        stem = text.removesuffix("'s")
        if stem != text and stem and self._known >= ENDINGS:
            return self._with_s(self.pronounce(Spoken(stem, word.start, word.end, word.is_letter)))
        if text not in self._guessed:
            self._guessed[text] = self.rules.pronounce(text)
        return self._guessed[text]

    @staticmethod
    def _with_s(phones: tuple[str, ...]) -> tuple[str, ...]:
        if phones and phones[-1] in HISSING:
            return (*phones, "IH", "Z")
        return (*phones, "S" if phones and phones[-1] in VOICELESS else "Z")


def entries(dictionary: Dictionary) -> Iterable[tuple[str, tuple[str, ...]]]:
    """(word, phones) of the words written in letters and apostrophes alone, which are what rules can be learned from."""
    return ((word, phones) for word, each in dictionary.items() if _PLAIN.fullmatch(word) for phones in each)
