"""Phonemes of many languages in IPA, from espeak-ng: the program where it is installed, else the library that phonemizer calls.

espeak-ng is under the GPL; it is run as a program of its own, and the extra `phonemes` with the packages of that licence is in no other.
Words that espeak-ng runs together in connected speech are asked for one by one, so that each phoneme belongs to a word.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from typing import Any

from mmlm.base.errors import DataError, MissingExtra, require
from mmlm.tokenizers.spoken_text import FOLDED, PAUSE_OF, SIGNS, SILENT, Spoken, Unspeakable, cannot, name_of

PROGRAM = "espeak-ng"
STRESS = "\u02c8\u02cc"
SECONDS = 60  # for one call
SCRIPTS = {
    "CYRILLIC": "ru uk be bg mk sr kk ky tt ba cv",
    "GREEK": "el grc",
    "ARABIC": "ar fa ur ug sd",
    "HEBREW": "he",
    "DEVANAGARI": "hi mr ne kok",
    "HANGUL": "ko",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy hyw",
}
LATIN = "LATIN"
UNCHECKED = [
    "am",
    "as",
    "bn",
    "chr",
    "gu",
    "ja",
    "kn",
    "ml",
    "my",
    "or",
    "pa",
    "si",
    "shn",
    "ta",
    "te",
    "th",
    "zh",
    "cmn",
    "yue",
    "hak",
    "bpy",
]

_PIECE = re.compile(
    r"(?P<space>\s+)|(?P<pause>[.,:](?!\d)|[;?!\u2026\u2014\u2013()\[\]])|(?P<word>(?:[.,:](?=\d)|[^\s.,:;?!\u2026\u2014\u2013()\[\]])+)"
)
_OTHER_VOICE = re.compile(r"\([\w-]+\)")


class EspeakPhones:
    """Words and pauses of texts in one language, and the phones of its words. stress: whether stress marks are phones of their own."""

    def __init__(self, language: str, *, stress: bool = False) -> None:
        self.language, self.stress = language, stress
        base = language.lower().partition("-")[0]
        self.script = next((script for script, languages in SCRIPTS.items() if base in languages.split()), LATIN)
        self.is_checked = base not in UNCHECKED
        self._said: dict[Spoken, tuple[str, ...]] = {}

    def words(self, text: str, unspeakable: Unspeakable) -> list[Spoken]:
        """The words and pauses of a text. Raises DataError for emoji and for letters of a script that the language does not use."""
        text = self._speakable(text, unspeakable)
        found, clauses = [], [[]]  # type: ignore[var-annotated]
        for match in _PIECE.finditer(text):
            if match.lastgroup == "word" and (word := match.group().strip("".join(SILENT))):
                start = match.start() + match.group().index(word)
                found.append(Spoken(word, start, start + len(word)))
                clauses[-1].append(found[-1])
            elif match.lastgroup == "pause":
                sign = match.group()
                found.append(Spoken(PAUSE_OF.get(sign, sign), match.start(), match.end(), is_pause=True))
                clauses.append([])
        self._said = {}
        for clause in clauses:
            phones = self._clause(tuple(word.text for word in clause)) if clause else []
            self._said.update(zip(clause, phones, strict=True))
        return [word for word in found if word.is_pause or self._said[word]]

    def pronounce(self, word: Spoken) -> tuple[str, ...]:
        """The phones of a word that `words` has just returned; a pause has none."""
        return () if word.is_pause else self._said[word]

    def _clause(self, words: tuple[str, ...]) -> list[tuple[str, ...]]:
        groups = said(self.language, " ".join(words)).split()
        if len(groups) == len(words):
            return [self._split(group) for group in groups]
        return [self._split("_".join(said(self.language, word).split())) for word in words]

    def _split(self, group: str) -> tuple[str, ...]:
        phones = []
        for piece in group.split("_"):
            phone = piece.strip("-")
            stress, phone = "".join(mark for mark in phone if mark in STRESS), phone.strip(STRESS)
            phones += [stress] if stress and self.stress else []
            phones += [phone] if phone else []
        return tuple(phones)

    def _speakable(self, text: str, unspeakable: Unspeakable) -> str:
        """The text with what cannot be spoken put right; every other character keeps its place."""
        found = []
        for at, sign in enumerate(text):
            if self._is_known(sign):
                found.append(sign)
            elif unspeakable == "error":
                raise cannot(text, at)
            else:
                found.append(f" {name_of(sign)} " if unspeakable == "name" else " ")
        return "".join(found)

    def _is_known(self, sign: str) -> bool:
        kind = unicodedata.category(sign)
        if sign.isspace() or kind[0] in "NPM" or sign in SIGNS or sign in SILENT:
            return True
        if kind[0] != "L":
            return False
        if not self.is_checked or sign.translate(FOLDED).isascii():
            return True
        return unicodedata.name(sign, "").startswith((self.script, LATIN, "MODIFIER"))


@functools.lru_cache(maxsize=100_000)
def said(language: str, text: str) -> str:
    """Phones of a text without pauses, joined by _ within a word and by spaces between. Raises DataError for an unknown language."""
    lines = _program(language, text) if shutil.which(PROGRAM) else _library(language, [text])
    joined = _OTHER_VOICE.sub("", " ".join(lines))
    return re.sub(r"_+", "_", joined)


def _program(language: str, text: str) -> list[str]:
    command = [PROGRAM, "-q", "--ipa", "--sep=_", "-v", language, "--stdin"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", timeout=SECONDS, check=False)
    if done.returncode:
        raise DataError(f"espeak-ng cannot speak {language!r}: {done.stderr.strip()[:200]} Its voices: {PROGRAM} --voices")
    return done.stdout.split("\n")


def _library(language: str, texts: Sequence[str]) -> list[str]:
    try:
        backends, separators = require("phonemizer.backend", "phonemes"), require("phonemizer.separator", "phonemes")
        loader, wrapper = require("espeakng_loader", "phonemes"), require("phonemizer.backend.espeak.wrapper", "phonemes")
    except MissingExtra as error:
        raise MissingExtra(f"phonemes of {language!r} need the program espeak-ng (apt-get install espeak-ng), or: {error}") from None
    wrapper.EspeakWrapper.set_library(loader.get_library_path())
    wrapper.EspeakWrapper.set_data_path(loader.get_data_path())
    separator = separators.Separator(phone="_", word=" ")
    try:
        speaker: Any = backends.EspeakBackend(language, with_stress=True, language_switch="remove-flags")
    except RuntimeError as error:
        raise DataError(f"espeak-ng cannot speak {language!r}: {str(error)[:200]}") from None
    return [line.replace("_ ", " ").strip("_ ") for line in speaker.phonemize(list(texts), separator=separator)]
