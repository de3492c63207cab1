"""What in an English text is written in digits, and the words for it: each rule is a pattern and a reader of what it matched.

The first rule that matches at a place counts, so that a date is not read as three numbers. Years and decades: four digits from 1100 to 1999
and from 2010 to 2099 without a comma. Dates in slashes are American (month, day, year).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from mmlm.tokenizers import spoken_numbers as say

MONTHS = ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
UNITS = {
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "kg": "kilogram", "g": "gram", "mg": "milligram",
    "l": "liter", "ml": "milliliter", "mi": "mile", "lb": "pound", "lbs": "pound", "oz": "ounce", "ft": "foot", "yd": "yard",
    "h": "hour", "hr": "hour", "hrs": "hour", "min": "minute", "s": "second", "sec": "second", "ms": "millisecond",
    "hz": "hertz", "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "kb": "kilobyte", "mb": "megabyte", "gb": "gigabyte",
    "tb": "terabyte", "kw": "kilowatt", "mph": "mile per hour", "km/h": "kilometer per hour",
}  # fmt: skip
UNCHANGING = {"hertz", "kilohertz", "megahertz", "gigahertz"}
NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
SCALE = r"(?:\s(?P<scale>thousand|million|billion|trillion)\b)?"
HALF = r"(?P<half>[ap])\.?m\b\.?"


class Rule(NamedTuple):
    """A pattern, and the words of a match; words of one letter that are its name end in a point ("p.")."""

    pattern: re.Pattern[str]
    words: Callable[[re.Match[str]], list[str]]


def _rule(pattern: str, words: Callable[[re.Match[str]], list[str]]) -> Rule:
    return Rule(re.compile(pattern, re.IGNORECASE), words)


def _money(match: re.Match[str]) -> list[str]:
    whole = (match["whole"] or "").replace(",", "")
    return say.money(match["sign"], whole or "0", match["cents"] or "", match["scale"] or "")


def _date(year: str, month: str, day: str) -> list[str]:
    full = int(year) if len(year) == 4 else int(year) + (2000 if int(year) < 50 else 1900)
    return [MONTHS[int(month) - 1], *say.ordinal(int(day)), *say.year(full)]


def _month_day(match: re.Match[str]) -> list[str]:
    month = next(name for name in MONTHS if name.startswith(match["month"].lower()[:3]))
    return [month, *say.ordinal(int(match["day"])), *(say.year(int(match["year"])) if match["year"] else [])]


def _half_of_day(match: re.Match[str]) -> list[str]:
    return [f"{match['half'].lower()}.", "m."] if match["half"] else []


def _time(match: re.Match[str]) -> list[str]:
    hours, minutes, seconds = int(match["hour"]), int(match["minute"]), match["second"]
    if match["half"] and not minutes and not seconds:
        return [*say.cardinal(hours), *_half_of_day(match)]
    return [*say.clock(hours, minutes, int(seconds) if seconds else None), *_half_of_day(match)]


def _decade(match: re.Match[str]) -> list[str]:
    words = say.year(int(match["tens"]))
    return [*words[:-1], f"{words[-1][:-1]}ies" if words[-1].endswith("y") else f"{words[-1]}s"]


def _fraction(match: re.Match[str]) -> list[str]:
    above, below = int(match["above"]), int(match["below"])
    words = say.fraction(above, below)
    return [*say.cardinal(int(match["whole"])), "and", *words] if match["whole"] else words


def _amount(written: str) -> list[str]:
    """A whole number as it is written: a year, digits after a leading zero, or a cardinal."""
    units = written.replace(",", "")
    if len(units) > 1 and units[0] == "0":
        return say.digits(units)
    return say.year(int(units)) if say.is_like_year(written) else say.cardinal(int(units))


def _number(match: re.Match[str]) -> list[str]:
    written, tenths = match["units"] or "0", match["tenths"] or match["only_tenths"]
    units = written.replace(",", "")
    sign = {"-": ["minus"], "+": ["plus"]}.get(match["sign"] or "", [])
    is_measured = bool(match["percent"] or match["unit"] or match["degrees"] or match["scale"])
    if tenths:
        words = say.decimal(units, tenths)
    else:
        words = say.cardinal(int(units)) if is_measured or sign else _amount(written)
    words += [match["scale"].lower()] if match["scale"] else []
    if match["percent"]:
        words.append("percent")
    if match["degrees"]:
        words += ["degrees", "celsius" if match["degrees"].upper() == "C" else "fahrenheit"]
    if match["unit"]:
        first, *rest = UNITS[match["unit"].lower()].split()
        is_one = units == "1" and not tenths
        words += [first if is_one or first in UNCHANGING else say.plural(first, 2), *rest]
    return [*sign, *words]


_MONTH = "|".join([*MONTHS, "sept", *(month[:3] for month in MONTHS)])
_UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
RULES = [
    _rule(rf"(?P<sign>[$\u00a3\u20ac\u00a5])\s?(?P<whole>{NUMBER})?(?:\.(?P<cents>\d+))?{SCALE}(?<=\w)", _money),
    _rule(
        r"(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])(?!\w)",
        lambda match: _date(match["year"], match["month"], match["day"]),
    ),
    _rule(
        r"(?P<month>0?[1-9]|1[0-2])/(?P<day>0?[1-9]|[12]\d|3[01])/(?P<year>\d{4}|\d\d)(?!\w)",
        lambda match: _date(match["year"], match["month"], match["day"]),
    ),
    _rule(
        rf"(?P<month>{_MONTH})\b\.?\s(?P<day>0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?(?!\w|[.:/%,]\d)(?:,?\s(?P<year>[12]\d{{3}})(?!\w|[.,]\d))?",
        _month_day,
    ),
    _rule(rf"(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?!\d)(?:\s?{HALF})?", _time),
    _rule(rf"(?P<hour>1[0-2]|0?[1-9])\s?{HALF}", lambda match: [*say.cardinal(int(match["hour"])), *_half_of_day(match)]),
    _rule(
        r"(?:\+?1[\s-])?(?:\(\d{3}\)\s?|\d{3}-)\d{3}-\d{4}(?!\w)|\d{3}-\d{4}(?!\w)",
        lambda match: say.digits(re.sub(r"\D", "", match.group())),
    ),
    _rule(r"'?(?P<tens>\d{1,3}0)s\b", _decade),
    _rule(rf"(?P<nth>{NUMBER})(?:st|nd|rd|th)\b", lambda match: say.ordinal(int(match["nth"].replace(",", "")))),
    _rule(r"(?:(?P<whole>\d+)\s)?(?P<above>\d{1,3})/(?P<below>\d{1,4})(?![\w/])", _fraction),
    _rule(
        rf"(?P<low>{NUMBER})[-\u2013](?P<high>{NUMBER})(?![\w-])",
        lambda match: [*_amount(match["low"]), "to", *_amount(match["high"])],
    ),
    _rule(
        rf"(?P<sign>(?<![\w).])[-+])?(?:(?P<units>{NUMBER})(?:\.(?P<tenths>\d+))?|(?<!\d)\.(?P<only_tenths>\d+)){SCALE}"
        rf"(?:\s?(?P<percent>%)|\s?(?P<unit>{_UNIT})(?![\w'])|\s?\u00b0\s?(?P<degrees>[CF])(?!\w))?",
        _number,
    ),
]
