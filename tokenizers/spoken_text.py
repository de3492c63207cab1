"""English text as the words that a reader would say, each with the place in the text that it stands for.

Numbers, ordinals, fractions, years, dates, times, sums of money, percentages, units, telephone numbers, abbreviations, initials, web and
mail addresses and single signs become words. What cannot be spoken (emoji, letters of other scripts, control characters) is an error, is
left out or is called by its Unicode name, as told.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mmlm.base.errors import DataError
from mmlm.tokenizers import spoken_numbers as say
from mmlm.tokenizers.spoken_rules import MONTHS, RULES

Unspeakable = Literal["error", "skip", "name"]
IsWord = Callable[[str], bool]

WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "st": "saint", "jr": "junior", "sr": "senior",
    "vs": "versus", "etc": "et cetera", "e.g": "for example", "i.e": "that is", "inc": "incorporated", "ltd": "limited",
    "co": "company", "corp": "corporation", "dept": "department", "approx": "approximately", "gen": "general", "col": "colonel",
    "capt": "captain", "lt": "lieutenant", "sgt": "sergeant", "rev": "reverend", "hon": "honorable", "mt": "mount", "ft": "fort",
    "ave": "avenue", "blvd": "boulevard", "rd": "road", "fig": "figure", "vol": "volume", "ed": "edition",
    **{month[:3]: month for month in MONTHS if month != "may"}, "sept": "september",
    **{day[:3]: day for day in WEEKDAYS if day not in ("saturday", "sunday")}, "tues": "tuesday", "thurs": "thursday",
}  # fmt: skip
NEEDS_CAPITAL = {"st", "co", "gen", "col", "mt", "ft", "fig", "ed", "hon", "rev", "mar", "mon", "wed", "fri", "jan", "dec", "thu", "tue"}
SIGNS = {
    "&": "and", "+": "plus", "=": "equals", "%": "percent", "@": "at", "#": "number", "/": "slash", "*": "star", "\\": "backslash",
    "<": "less than", ">": "greater than", "^": "caret", "|": "bar", "~": "tilde", "\u00b0": "degrees", "\u00a7": "section",
    "$": "dollars", "\u00a3": "pounds", "\u20ac": "euros", "\u00a5": "yen", "\u00d7": "times", "\u00f7": "divided by",
    "\u00b1": "plus or minus", "\u00a9": "copyright", "\u00ae": "registered", "\u2122": "trademark",
    "\u00bd": "one half", "\u00bc": "one quarter", "\u00be": "three quarters", "\u00b2": "squared", "\u00b3": "cubed",
}  # fmt: skip
IN_ADDRESSES = {".": "dot", "@": "at", "/": "slash", ":": "colon", "-": "dash", "_": "underscore", "+": "plus"}
PAUSES = ",.?!;:"
PAUSE_OF = {"\u2026": ".", "\u2014": ",", "\u2013": ",", "(": ",", ")": ",", "[": ",", "]": ","}
SILENT = set("\"'`_-{}\u00bf\u00a1\u00ab\u00bb\u201c\u201d\u201e\u201a\u200b\u200d\ufe0f\u00ad\ufeff")
PLAIN = {0x2018: "'", 0x2019: "'", 0x02BC: "'", 0x2010: "-", 0x2011: "-", 0x2212: "-", 0x00A0: " ", 0x202F: " "}
FOLDED = {
    0xDF: "ss",
    0xE6: "ae",
    0xC6: "AE",
    0xF8: "o",
    0xD8: "O",
    0x153: "oe",
    0x152: "OE",
    0x142: "l",
    0x141: "L",
    0xF0: "th",
    0xFE: "th",
}

MOST_DIGITS = 4000  # in a row; Python turns no more than 4,300 into a number
_DIGITS = re.compile(r"\d{1,3}(?:,\d{3})+|\d+")
_SPACE = re.compile(r"\s+")
_LABEL = r"[\w-]{1,63}"  # as long as part of a name can be; without an end each of many dashes would be read on to the last
_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s,;!?]*[^\s,;!?.:]"
    rf"|[\w.+-]{{1,64}}@{_LABEL}(?:\.{_LABEL}){{1,8}}"
    rf"|{_LABEL}(?:\.{_LABEL}){{0,8}}\.(?:com|org|net|edu|gov|io)\b(?:/[\w./-]*\w)?",
    re.IGNORECASE,
)
_INITIALS = re.compile(r"(?:[A-Za-z]\.){2,}(?:[A-Za-z](?!\w))?")
_LETTERS = re.compile(r"(?:(?<!\w)'(?=(?:em|til|tis|twas|cause|bout|round)\b))?[^\W\d_]+(?:'[^\W\d_]+)*")


@dataclass(frozen=True)
class Spoken:
    """A word to say, or a pause. text: a lower-case word, or one of PAUSES.   start, end: the characters of the text that it stands for.
    is_letter: said as the name of that letter.   is_pause: punctuation."""

    text: str
    start: int
    end: int
    is_letter: bool = False
    is_pause: bool = False


def spoken(text: str, *, unspeakable: Unspeakable = "error", is_word: IsWord | None = None) -> list[Spoken]:
    """The words and pauses of an English text.

    unspeakable: what to do with characters that are no English writing: an error, leave them out, or say their Unicode names.
    is_word: whether a lower-case text is a known word; words in capitals that are none are spelled. Without it none are.
    Raises DataError naming the character and its place, also for a number of more than MOST_DIGITS digits.
    """
    plain = text.translate(PLAIN)
    if long := next((each for each in _DIGITS.finditer(plain) if len(each.group()) > MOST_DIGITS), None):
        raise DataError(f"character {long.start() + 1}: a number of {len(long.group()):,} digits cannot be spoken; {MOST_DIGITS:,} can.")
    if plain.upper() == plain:
        is_word = None  # where all is in capitals they say nothing about initials
    found: list[Spoken] = []
    at = 0
    while at < len(plain):
        new, end = _next(plain, at, unspeakable, is_word)
        found += new
        at = end
    return found


def _next(text: str, at: int, unspeakable: Unspeakable, is_word: IsWord | None) -> tuple[list[Spoken], int]:
    """What is said at a place, and where that ends."""
    if match := _SPACE.match(text, at):
        return [], match.end()
    begins_word = not text[at - 1 : at].isalnum()
    if begins_word and (match := _ADDRESS.match(text, at)):
        return list(_address(match.group(), at, is_word)), match.end()
    for rule in RULES if begins_word or text[at].isdecimal() else ():
        if match := rule.pattern.match(text, at):
            end = match.end()
            words = [Spoken(word.rstrip("."), at, end, is_letter=word.endswith(".")) for word in rule.words(match)]
            return [*words, *_closing(text, end)], end
    if begins_word and (match := _INITIALS.match(text, at)):
        return [*_initials(match.group(), at), *_closing(text, match.end())], match.end()
    if match := _LETTERS.match(text, at):
        return _word(match.group(), at, text, is_word, unspeakable)
    return list(_sign(text[at], at, text, unspeakable)), at + 1


def _closing(text: str, end: int) -> list[Spoken]:
    """The end of a sentence, where the point of an abbreviation is its full stop too."""
    is_last = text[end - 1] == "." and not text[end:].strip(" \"')\n")
    return [Spoken(".", end - 1, end, is_pause=True)] if is_last else []


def _word(word: str, start: int, text: str, is_word: IsWord | None, unspeakable: Unspeakable) -> tuple[list[Spoken], int]:
    end = start + len(word)
    folded = _in_latin(word, start, text, unspeakable)
    lower = folded.lower()
    if text[end : end + 1] == "." and lower in ABBREVIATIONS and (lower not in NEEDS_CAPITAL or folded[0].isupper()):
        return [*(Spoken(part, start, end + 1) for part in ABBREVIATIONS[lower].split()), *_closing(text, end + 1)], end + 1
    if lower == "no" and re.match(r"\.\s?\d", text[end:]):
        return [Spoken("number", start, end + 1)], end + 1
    spelled = len(lower) > 1 and folded.isupper() and lower.isalpha() and is_word is not None and not is_word(lower)
    if spelled and lower.isascii():
        width = len(word) == len(lower)
        return [
            Spoken(letter, start + at * width, start + at + 1 if width else end, is_letter=True) for at, letter in enumerate(lower)
        ], end
    beside_digit = text[start - 1 : start].isdigit() or text[end : end + 1].isdigit()
    is_letter = len(lower) == 1 and (lower not in "ai" or beside_digit)
    return [Spoken(part, start, end, is_letter=is_letter) for part in lower.split()], end


def _in_latin(word: str, start: int, text: str, unspeakable: Unspeakable) -> str:
    """The word in letters a to z: accents are taken off, and other letters called by their names or left out."""
    found = []
    for at, letter in enumerate(word, start):
        parts = [part for part in unicodedata.normalize("NFKD", letter.translate(FOLDED)) if not unicodedata.combining(part)]
        if all(part.isascii() and (part.isalpha() or part == "'") for part in parts):
            found += parts
        elif unspeakable == "error":
            raise cannot(text, at)
        elif unspeakable == "name":
            found.append(f" {name_of(letter)} ")
    return "".join(found)


def _sign(sign: str, start: int, text: str, unspeakable: Unspeakable) -> Iterator[Spoken]:
    end = start + 1
    if sign == "-" and text[start - 1 : start].isspace() and text[end : end + 1].isspace():
        sign = "\u2014"
    if sign in SIGNS:
        for word in SIGNS[sign].split():
            yield Spoken(word, start, end)
    elif sign in PAUSES or sign in PAUSE_OF:
        yield Spoken(PAUSE_OF.get(sign, sign), start, end, is_pause=True)
    elif sign not in SILENT and not unicodedata.combining(sign):
        if unspeakable == "error":
            raise cannot(text, start)
        if unspeakable == "name":
            for word in name_of(sign).split():
                yield Spoken(word, start, end)


def name_of(sign: str) -> str:
    """The Unicode name of a character, in words of letters alone."""
    return " ".join(re.sub(r"[^a-z]+", " ", unicodedata.name(sign, "unknown character").lower()).split())


def cannot(text: str, at: int) -> DataError:
    """The error for a character that cannot be spoken."""
    low, high = max(0, at - 20), at + 20
    shown = f"{'...' if low else ''}{text[low:high]}{'...' if high < len(text) else ''}"
    name = unicodedata.name(text[at], "no name").lower()
    return DataError(
        f"character {at + 1} of {shown!r} cannot be spoken: {text[at]!r} (U+{ord(text[at]):04X}, {name}). "
        "Take it out, or set unspeakable: skip (left out) or name (its Unicode name is said)."
    )


def _initials(initials: str, start: int) -> Iterator[Spoken]:
    if words := ABBREVIATIONS.get(initials.lower().rstrip(".")):
        for word in words.split():
            yield Spoken(word, start, start + len(initials))
        return
    for at, letter in enumerate(initials, start):
        if letter != ".":
            yield Spoken(letter.lower(), at, min(at + 2, start + len(initials)), is_letter=True)


def _address(address: str, start: int, is_word: IsWord | None) -> Iterator[Spoken]:
    """A web or mail address: names as words, letter by letter where they are short and no known word."""
    body = re.sub(r"^https?://", lambda match: " " * len(match.group()), address, flags=re.IGNORECASE)
    for match in re.finditer(r"[A-Za-z]+|\d+|[^\sA-Za-z0-9]", body):
        part, at, end = match.group().lower(), start + match.start(), start + match.end()
        if part.isalpha() and part != "com" and len(part) <= 3 and not (is_word is not None and is_word(part)):
            for place, letter in enumerate(part, at):
                yield Spoken(letter, place, place + 1, is_letter=True)
            continue
        words = [part] if part.isalpha() else (IN_ADDRESSES.get(part) or SIGNS.get(part, "")).split()
        if part.isdigit():
            words = say.digits(part) if len(part) > 2 else say.cardinal(int(part))
        for word in words:
            yield Spoken(word, at, end)
