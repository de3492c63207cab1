"""English numbers as they are said: cardinals, ordinals, years, clock times, fractions, decimals, sums of money."""

from __future__ import annotations

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ["", "thousand", "million", "billion", "trillion"]
MOST = 1000 ** len(SCALES) - 1
ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip
MONEY = {
    "$": ("dollar", "cent"),
    "\u00a3": ("pound", "penny"),
    "\u20ac": ("euro", "cent"),
    "\u00a5": ("yen", ""),
}
IRREGULAR = {"penny": "pence", "yen": "yen", "foot": "feet", "inch": "inches", "half": "halves", "century": "centuries"}


def cardinal(number: int) -> list[str]:
    """A whole number, 0 to 999 trillion and the rest; beyond that digit by digit."""
    if number > MOST:
        return digits(str(number))
    if number < 20:
        return [ONES[number]]
    if number < 100:
        return [TENS[number // 10], *([ONES[number % 10]] if number % 10 else [])]
    if number < 1000:
        return [ONES[number // 100], "hundred", *(cardinal(number % 100) if number % 100 else [])]
    words: list[str] = []
    for power in range(len(SCALES) - 1, -1, -1):
        group = number // 1000**power % 1000
        if group:
            words += [*cardinal(group), *([SCALES[power]] if power else [])]
    return words


def digits(text: str) -> list[str]:
    """One digit after the other."""
    return [ONES[int(digit)] for digit in text]


def as_ordinal(words: list[str]) -> list[str]:
    """The words of a cardinal as an ordinal: twenty two -> twenty second."""
    last = words[-1]
    if last in ORDINALS:
        return [*words[:-1], ORDINALS[last]]
    return [*words[:-1], f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th"]


def ordinal(number: int) -> list[str]:
    """First, second, twenty third."""
    return as_ordinal(cardinal(number))


def year(number: int) -> list[str]:
    """Years from 1100 on in pairs (nineteen eighty four, nineteen oh five), others as cardinals (two thousand seven)."""
    high, low = divmod(number, 100)
    if not 1100 <= number <= 2099 or 2000 <= number < 2010:
        return cardinal(number)
    if low == 0:
        return [*cardinal(high), "hundred"]
    return [*cardinal(high), *(["oh"] if low < 10 else []), *cardinal(low)]


def is_like_year(text: str) -> bool:
    """Whether four digits without a comma are more likely a year than an amount."""
    return len(text) == 4 and text.isdigit() and (1100 <= int(text) <= 1999 or 2010 <= int(text) <= 2099)


def clock(hours: int, minutes: int, seconds: int | None = None) -> list[str]:
    """A time of the day: seven oh five, twelve o'clock only where minutes are 0 and hours above 0."""
    if minutes:
        words = [*cardinal(hours), *(["oh"] if minutes < 10 else []), *cardinal(minutes)]
    else:
        words = [*cardinal(hours), "o'clock"] if 0 < hours <= 12 else [*cardinal(hours), "hundred"]
    if seconds is not None:
        words += ["and", *cardinal(seconds), plural("second", seconds)]
    return words


def decimal(whole: str, after: str) -> list[str]:
    """Three point one four; digits after the point one by one."""
    return [*cardinal(int(whole or "0")), "point", *digits(after)]


def fraction(above: int, below: int) -> list[str]:
    """One half, three quarters, two thirds; others as five over seventeen hundred."""
    if below == 2:
        name = ["half"]
    elif below == 4:
        name = ["quarter"]
    elif 2 < below <= 20 or below in (30, 50, 100, 1000):
        name = ordinal(below) if below < 100 else as_ordinal(cardinal(below)[-1:])
    else:
        return [*cardinal(above), "over", *cardinal(below)]
    return [*cardinal(above), *name[:-1], plural(name[-1], above)]


def money(sign: str, whole: str, after: str, scale: str) -> list[str]:
    """$5.20 as five dollars and twenty cents; $1.5 million as one point five million dollars."""
    unit, part = MONEY[sign]
    if scale or (after and (len(after) != 2 or not part)):
        spoken = decimal(whole, after) if after else cardinal(int(whole))
        return [*spoken, *([scale.lower()] if scale else []), plural(unit, 2)]
    count, rest = int(whole or "0"), int(after or "0")
    words = [*cardinal(count), plural(unit, count)] if count or not rest else []
    if rest:
        words += [*(["and"] if words else []), *cardinal(rest), plural(part, rest)]
    return words


def plural(word: str, count: int) -> str:
    """The word for so many."""
    return word if count == 1 else IRREGULAR.get(word, f"{word}s")
