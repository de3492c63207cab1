"""Texts laid along their sound: times, frames that sum up, and texts that are not what is heard."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import DataError
from mmlm.data.alignment import PhoneAligner, ctc_frames, frames_of
from mmlm.data.audio_files import read_sound
from mmlm.sound import Sound

PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXT = "Please enter your personal identification number followed by the pound, or hash key."

pocketsphinx = pytest.importorskip("pocketsphinx")
prompts = pytest.mark.skipif(not PROMPTS.is_dir(), reason="needs: apt-get install asterisk-core-sounds-en-g722")


@pytest.fixture(scope="module")
def aligner() -> PhoneAligner:
    return PhoneAligner()


@pytest.fixture(scope="module")
def sound() -> Sound:
    if not PROMPTS.is_dir():
        pytest.skip("needs: apt-get install asterisk-core-sounds-en-g722")
    return read_sound(PROMPTS / "confbridge-pin.g722")


@pytest.fixture(scope="module")
def found(aligner, sound):
    return aligner.align(sound, TEXT)


def test_every_word_of_the_text_is_found_in_order(found, sound) -> None:
    assert [word.text for word in found.words] == TEXT.lower().replace(",", "").replace(".", "").split()
    places = [phone.word for phone in found.phones if phone.word >= 0]
    assert places == sorted(places) and set(places) == set(range(len(found.words)))
    assert found.symbols[:4] == ["P", "L", "IY", "Z"] and "SIL" in found.symbols
    assert found.phones[-1].end_seconds == sound.seconds and abs(sum(found.seconds) - sound.seconds) < 1e-9
    assert -30 < found.score < 0


def begin(found, word: int) -> float:
    first = [phone.word for phone in found.phones].index(word)
    return found.phones[first - 1].end_seconds if first else 0.0


def test_the_words_lie_where_they_are_heard(found, sound, aligner) -> None:
    """The prompt is cut where a word was found, and the two halves are aligned by themselves."""
    at = [word.text for word in found.words].index("number")
    start = begin(found, at)
    first = aligner.align(sound.cut(0, start), TEXT[: found.words[at].start])
    second = aligner.align(sound.cut(start), TEXT[found.words[at].start :])
    assert first.symbols[-1] == found.symbols[len(first.symbols) - 1] == "N"
    for place in range(at + 1, len(found.words)):
        assert abs(begin(second, place - at) + start - begin(found, place)) < 0.06


@pytest.mark.parametrize("rate_hz", [Fraction(50), Fraction(75), Fraction(25, 2), 100.0])
def test_frames_of_the_phones_are_exactly_those_of_the_sound(found, sound, rate_hz) -> None:
    num_frames = int(np.ceil(sound.seconds * float(rate_hz)))
    frames = found.frames(rate_hz, num_frames)
    assert sum(frames) == num_frames and min(frames) >= 0 and len(frames) == len(found.phones)
    ends = np.cumsum(frames) / float(rate_hz)
    assert max(abs(end - phone.end_seconds) for end, phone in zip(ends, found.phones)) <= 1 / float(rate_hz)


def test_rounding_ends_keeps_what_rounding_lengths_loses() -> None:
    lengths = [0.03] * 20  # 1.5 frames each
    ends = np.cumsum(lengths).tolist()
    assert sum(round(each * 50) for each in lengths) != 30 == sum(frames_of(ends, 50, 30))
    assert frames_of([0.1, 0.2], 50, 9) == [5, 4]
    assert frames_of([0.1, 9.0, 9.5], 10, 5) == [1, 4, 0]
    with pytest.raises(DataError, match="must rise"):
        frames_of([0.2, 0.1], 50, 10)


def test_a_text_that_is_not_what_is_heard_is_refused(aligner, sound) -> None:
    with pytest.raises(DataError, match="list.jsonl, line 7: .*(does not fit the sound|do not fit the text)"):
        aligner.align(sound, "The weather will be sunny tomorrow.", "list.jsonl, line 7")
    silence = Sound(np.zeros(16_000, np.float32), 16_000)
    for what in (silence, sound.cut(0, 0.1), sound.cut(0, 0)):
        with pytest.raises(DataError, match="recording: .*fit"):
            aligner.align(what, TEXT)


def test_bad_texts_name_their_row(aligner, sound) -> None:
    for text, told in (
        ("hello \U0001f600", "cannot be spoken"),
        ("...", "nothing that can be spoken"),
        ("zyzzyvy", "'zyzzyvy' is not in the"),
    ):
        with pytest.raises(DataError, match=rf"x\.jsonl, line 3: .*{told}"):
            aligner.align(sound, text, "x.jsonl, line 3")


@prompts
def test_unknown_words_are_said_by_the_rules(sound) -> None:
    class Rules:
        is_fitted = True

        def pronounce(self, word: str) -> tuple[str, ...]:
            return ("P", "L", "IY", "Z")

    aligner = PhoneAligner()
    aligner.phones.rules = Rules()
    found = aligner.align(sound, TEXT.replace("Please", "Plyzz"))
    assert found.symbols[:4] == ["P", "L", "IY", "Z"] and found.words[0].text == "plyzz"


def ctc(path: list[int], num_classes: int = 5) -> torch.Tensor:
    log_p_tc = torch.full((len(path), num_classes), -8.0)
    log_p_tc[torch.arange(len(path)), torch.tensor(path)] = 0.0
    return log_p_tc.log_softmax(-1)


@pytest.mark.parametrize(
    ("path", "labels", "frames"),
    [
        ([1, 1, 2, 2, 2, 3], [1, 2, 3], [2, 3, 1]),
        ([0, 1, 0, 0, 2, 0], [1, 2], [3, 3]),
        ([1, 0, 0, 0, 1], [1, 1], [3, 2]),
        ([4, 4], [4], [2]),
        ([0, 0, 3, 0], [3], [4]),
    ],
)
def test_ctc_paths_become_frames_that_sum_up(path, labels, frames) -> None:
    assert ctc_frames(ctc(path), labels) == frames and sum(frames) == len(path)


def test_ctc_refuses_what_cannot_be_aligned() -> None:
    with pytest.raises(DataError, match="row 4: 2 labels need at least 3 frames, but there are 2"):
        ctc_frames(ctc([1, 1]), [1, 1], where="row 4")
    for labels in ([], [0], [5], [-1]):
        with pytest.raises(DataError, match="labels must lie within 0 and 4 without the blank 0"):
            ctc_frames(ctc([1, 1]), labels)
