"""Numbers and dates in files as people write them: 3,14   1,234.50   12 %   $5   (7)   31.01.2024   ? for a missing cell.

A column is read so only where all its texts agree on one reading and no other fits; whatever is ambiguous stays text: 1,234 alone may
be 1.234 or 1234, and 03/04/2024 may be in March or in April. Every guess is told, column by column.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

logger = logging.getLogger(__name__)

FILE_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_THOUSANDS_COMMA = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+(\.[0-9]*)?")
_DECIMAL_COMMA = re.compile(r"[+-]?([0-9]+|[1-9][0-9]{0,2}(([. '\u00a0\u202f\u2019])[0-9]{3})(\3[0-9]{3})*)?(,[0-9]+)?([eE][+-]?[0-9]+)?")
_GROUPING = re.compile(r"[. '\u00a0\u202f\u2019]")
_CURRENCY = "$\u20ac\u00a3\u00a5"
_DAY = re.compile(r"([0-9]{1,2})([./-])([0-9]{1,2})\2([0-9]{4})([ T][0-9]{1,2}:[0-9]{2}(:[0-9]{2})?)?")
_YEAR_FIRST = re.compile(r"([0-9]{4})([./])([0-9]{1,2})\2([0-9]{1,2})([ T][0-9]{1,2}:[0-9]{2}(:[0-9]{2})?)?")
_ISO_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?")
_NO_VALUE = frozenset({"?", "-", "--", ".", "\u2013", "\u2014", "n.a.", "N.A.", "na", "Na", "n.d.", "none", "None", "NONE", "nil"})


class Notes:
    """What was guessed about the cells of a file: {guess: columns}."""

    def __init__(self) -> None:
        self.columns: dict[str, list[str]] = {}

    def add(self, guess: str, column: str) -> None:
        """Put down a guess about a column."""
        self.columns.setdefault(guess, []).append(column)

    def log(self, path: Path) -> None:
        """One warning for each guess."""
        for guess, names in self.columns.items():
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            logger.warning("%s: column%s %s%s: %s.", path, "s" * (len(names) > 1), ", ".join(map(repr, names[:5])), more, guess)


def without_marks(name: str, words: Sequence[str], absent: Sequence[bool], notes: Notes) -> tuple[list[str], list[bool]]:
    """(words, which are missing) of a column, its numbers and dates rewritten as 1234.5 and 2024-01-31 where they can be read so.

    The words are stripped and distinct. Where there is nothing to rewrite, or no one reading fits all words, they come back as they are.
    """
    words, absent = list(words), list(absent)
    present = [word for word, gone in zip(words, absent, strict=True) if not gone]
    marks = _NO_VALUE.intersection(present)
    shown = [word for word in present if word not in marks] if marks else present
    if not shown or len(marks) > 2:
        return words, absent
    plain = all(map(FILE_NUMBER.fullmatch, shown)) or all(map(_ISO_DATE.fullmatch, shown))
    found = ({}, "") if plain else _numbers(shown) or _dates(shown)
    if found is None:
        return words, absent
    rewritten, guess = found
    if guess:
        notes.add(guess, name)
    if marks and (rewritten or plain):
        notes.add(f"{' and '.join(map(repr, sorted(marks)))} is read as a missing cell", name)
    else:
        marks = frozenset()
    return [rewritten.get(word, word) for word in words], [gone or word in marks for word, gone in zip(words, absent, strict=True)]


def has_decimal_commas(texts: Sequence[str]) -> bool:
    """Whether these texts are numbers with decimal commas."""
    found = _numbers([text for text in texts if text])
    return found is not None and found[1].startswith("decimal commas")


def _numbers(words: Sequence[str]) -> tuple[dict[str, str], str] | None:
    """({text: number with a decimal point}, what was guessed); None where the texts are no numbers, {} where they may be two."""
    if not any(letter.isdigit() for letter in words[0]):
        return None
    bare, signs = [], set()
    for word in words:
        found = _bare(word)
        if found is None:
            return None
        bare.append(found[0])
        signs.add(found[1])
    if len(signs) > 1:
        return None
    sign = signs.pop()
    guesses = [f"the sign {sign!r} is left out"] if sign else []
    if not all(map(FILE_NUMBER.fullmatch, bare)):
        if not any("," in number for number in bare):
            return _parentheses(words, bare, guesses)
        thousands = all(_THOUSANDS_COMMA.fullmatch(number) or FILE_NUMBER.fullmatch(number) for number in bare)
        decimal = all(map(_DECIMAL_COMMA.fullmatch, bare))
        if thousands and decimal:
            return {}, "stays text, since its commas may be decimal or stand between thousands"
        if not (thousands or decimal):
            return None
        guesses.insert(0, "commas between thousands are left out" if thousands else "decimal commas are read as points")
        bare = [number.replace(",", "") if thousands else _GROUPING.sub("", number).replace(",", ".") for number in bare]
    return _parentheses(words, bare, guesses)


def _parentheses(words: Sequence[str], bare: Sequence[str], guesses: list[str]) -> tuple[dict[str, str], str] | None:
    if not all(map(FILE_NUMBER.fullmatch, bare)):
        return None
    if any(word.startswith("(") for word in words):
        guesses.append("numbers in parentheses are negative")
    return dict(zip(words, bare, strict=True)), ", ".join(guesses)


def _bare(word: str) -> tuple[str, str] | None:
    """(the number of a text without its sign, the percent or currency sign); None for an unfinished parenthesis."""
    negative = ""
    if word.startswith("("):
        if not word.endswith(")"):
            return None
        word, negative = word[1:-1].strip(), "-"
    if word[:1] in ("-", "+") and word[1:2] in tuple(_CURRENCY):
        word, negative = word[1:], negative or word[0].replace("+", "")
    sign = next((mark for mark in ("%", *_CURRENCY) if word.endswith(mark) or (mark != "%" and word.startswith(mark))), "")
    if sign:
        word = (word[:-1] if word.endswith(sign) else word[1:]).strip()
    return (negative + word, sign) if word else None


def _dates(words: Sequence[str]) -> tuple[dict[str, str], str] | None:
    """({text: ISO date}, what was guessed); None where the texts are no dates, {} where day and month cannot be told apart."""
    if all(found := [_YEAR_FIRST.fullmatch(word) for word in words]):
        parts = [(match[1], match[3], match[4], match[5]) for match in found if match]
        return _iso(words, parts, "dates are read as year, month, day")
    if not all(found := [_DAY.fullmatch(word) for word in words]):
        return None
    matches = [match for match in found if match]
    firsts, seconds = [int(match[1]) for match in matches], [int(match[3]) for match in matches]
    day_first = max(seconds) <= 12 and (max(firsts) > 12 or {match[2] for match in matches} == {"."})
    if not day_first and max(firsts) <= 12 and max(seconds) <= 12:
        return {}, "stays text, since day and month of its dates cannot be told apart"
    if not day_first and max(firsts) > 12:
        return None
    parts = [(match[4], *((match[3], match[1]) if day_first else (match[1], match[3])), match[5]) for match in matches]
    return _iso(words, parts, f"dates are read as {'day, month' if day_first else 'month, day'}, year")


def _iso(words: Sequence[str], parts: Sequence[tuple[str, str, str, str | None]], guess: str) -> tuple[dict[str, str], str] | None:
    texts: dict[str, str] = {}
    for word, (year, month, day, clock) in zip(words, parts, strict=True):
        hours, _, rest = (clock or " 0:00")[1:].partition(":")
        texts[word] = f"{year}-{int(month):02d}-{int(day):02d}T{int(hours):02d}:{rest}"
        try:
            datetime.fromisoformat(texts[word])
        except ValueError:
            return None
    return texts, guess
