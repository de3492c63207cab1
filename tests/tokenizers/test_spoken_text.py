"""What an English reader says of numbers, dates, money, abbreviations and signs, and what is refused."""

from __future__ import annotations

import time

import pytest

from mmlm.base.errors import DataError
from mmlm.tokenizers import spoken_numbers as say
from mmlm.tokenizers.spoken_text import spoken

WORDS = {"nasa", "me", "mail", "example", "help", "it", "us"}


def read(text: str, **how) -> str:
    """Words with letters that are named in capitals."""
    return " ".join(word.text.upper() if word.is_letter else word.text for word in spoken(text, is_word=WORDS.__contains__, **how))


SAID = {
    "5 of 12,345 and 007": "five of twelve thousand three hundred forty five and zero zero seven",
    "1000000 100 110": "one million one hundred one hundred ten",
    "the 21st, 102nd and 30th": "the twenty first , one hundred second and thirtieth",
    "3.14 and .5, -2 and +3": "three point one four and zero point five , minus two and plus three",
    "1/2, 3/4, 2/3, 1 1/2 and 7/31": "one half , three quarters , two thirds , one and one half and seven over thirty one",
    "10-20 pages": "ten to twenty pages",
    "50% at 3.5\u00b0C": "fifty percent at three point five degrees celsius",
    "1 kg, 12 km/h, 20 kHz, 6 ft": "one kilogram , twelve kilometers per hour , twenty kilohertz , six feet",
    "$5.20, \u00a31 and \u20ac0.50": "five dollars and twenty cents , one pound and fifty cents",
    "$1.5 million and $1,000": "one point five million dollars and one thousand dollars",
    "1984, 1905, 1900": "nineteen eighty four , nineteen oh five , nineteen hundred",
    "2007, 2015 and 3020": "two thousand seven , twenty fifteen and three thousand twenty",
    "the 1990s and '80s": "the nineteen nineties and eighties",
    "2024-05-17": "may seventeenth twenty twenty four",
    "5/7/98": "may seventh nineteen ninety eight",
    "Jan. 3rd, May 5, 2021": "january third , may fifth twenty twenty one",
    "3:05 pm, 7 a.m. and 15:00": "three oh five P M , seven A M and fifteen hundred",
    "12:00 or 10:15:30": "twelve o'clock or ten fifteen and thirty seconds",
    "Call 555-1234 or (202) 555-0143": "call five five five one two three four or two zero two five five five zero one four three",
    "Dr. Smith vs. Mr. O'Neil, e.g. No. 5": "doctor smith versus mister o'neil , for example number five",
    "No. The end.": "no . the end .",
    "NASA, XQZ and the U.S.A.": "nasa , X Q Z and the U S A .",
    "HELLO XQZ": "hello xqz",
    "B2B, A1 and mp3; a I x": "B two B , A one and mp three ; a i X",
    "www.example.com/help or me@mail.org.": "W W W dot example dot com slash help or me at mail dot O R G .",
    "caf\u00e9 na\u00efve Stra\u00dfe": "cafe naive strasse",
    "\u201cDon\u2019t!\u201d \u2014 state-of-the-art (see #1)\u2026": "don't ! , state of the art , see number one , .",
    "R&D = 2 + 2": "R and D equals two plus two",
    "99999999999999999": " ".join(["nine"] * 17),
    "1/0": "one over zero",
}


@pytest.mark.parametrize("text", SAID)
def test_texts_are_said_as_a_reader_would(text: str) -> None:
    assert read(text) == SAID[text]


@pytest.mark.parametrize("number", [0, 7, 13, 20, 21, 99, 100, 101, 342, 1000, 1001, 45_000, 999_999, 10**6, 10**9 + 1, 10**15 - 1])
def test_cardinals_are_read_back_as_the_number(number: int) -> None:
    values = {word: at for at, word in enumerate(say.ONES)} | {word: 10 * at for at, word in enumerate(say.TENS) if at}
    total = group = 0
    for word in say.cardinal(number):
        if word == "hundred":
            group *= 100
        elif word in say.SCALES:
            total, group = total + group * 1000 ** say.SCALES.index(word), 0
        else:
            group += values[word]
    assert total + group == number


def test_every_word_names_the_characters_that_it_stands_for() -> None:
    text = "He paid $5 to Dr. Who, NBC."
    found = spoken(text, is_word={"he"}.__contains__)
    assert [(word.text, text[word.start : word.end]) for word in found] == [
        ("he", "He"), ("paid", "paid"), ("five", "$5"), ("dollars", "$5"), ("to", "to"), ("doctor", "Dr."), ("who", "Who"), (",", ","),
        ("n", "N"), ("b", "B"), ("c", "C"), (".", "."),
    ]  # fmt: skip
    assert [word.text for word in found if word.is_pause] == [",", "."]


@pytest.mark.parametrize(
    ("text", "skipped", "named"),
    [
        ("hi \U0001f600!", "hi !", "hi grinning face !"),
        ("\u0434\u0430 yes", "yes", "cyrillic small letter de cyrillic small letter a yes"),
        ("a\x07b", "a B", "a unknown character B"),
        ("\u6c34", "", "cjk unified ideograph C"),
    ],
)
def test_what_cannot_be_spoken_is_refused_left_out_or_named(text: str, skipped: str, named: str) -> None:
    with pytest.raises(DataError, match=r"character \d+ of .* cannot be spoken: .*U\+.*unspeakable: skip"):
        spoken(text)
    assert read(text, unspeakable="skip") == skipped
    if "\u6c34" not in text:
        assert read(text, unspeakable="name") == named


@pytest.mark.parametrize("text", ["9" * 4001, "1/" + "9" * 5000, "$" + "9" * 5000, "no 1" + ",000" * 1200, "\u0663" * 4001])
def test_a_number_that_no_reader_could_say_is_refused_by_its_place(text):
    with pytest.raises(DataError, match=r"character \d: a number of .* digits cannot be spoken; 4,000 can"):
        spoken(text)
    assert len(spoken("9" * 4000)) == 4000 and spoken("1,2," * 3000)


@pytest.mark.parametrize("text", ["-" * 20_000, "1-" * 10_000])
def test_signs_in_a_row_are_read_in_time_that_grows_with_them(text):
    began = time.process_time()
    spoken(text)
    assert time.process_time() - began < 15  # minutes, where each of them is tried as the beginning of an address up to the last
