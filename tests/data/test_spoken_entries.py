"""Entries of a text and of a recording of it are the same ones, and their frames are those of the sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.data.alignment import AlignedPhone, Alignment
from mmlm.data.audio_files import read_sound
from mmlm.data.speech import Utterance
from mmlm.data.spoken_entries import Entries, EntryTokens, aligned_entries, entries_of_text
from mmlm.data.token_shards import tokens_of
from mmlm.tokenizers.config import PhonemesConfig, ProsodyConfig
from mmlm.tokenizers.phonemes import PhonemeTokenizer, Transcript
from mmlm.tokenizers.prosody import Prosody
from mmlm.tokenizers.spoken_text import Spoken

PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXT = "Please enter your personal identification number followed by the pound, or hash key."


def word(text: str) -> Spoken:
    return Spoken(text, 0, len(text))


def test_pauses_go_to_the_slots_behind_their_words() -> None:
    transcript = Transcript(
        ["HH", "AY", ",", "DH", "EH", "|", "Y", "UW", "."], [word("hi"), word("the"), word("you")], [0, 0, -1, 1, 1, -1, 2, 2, -1]
    )
    names, owners = ["SIL", "HH", "AY", "SIL", "DH", "IY", "Y", "UW", "SIL"], [-1, 0, 0, -1, 1, 1, 2, 2, -1]
    times = [0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0, 1.3]
    phones = zip(names, times, owners, strict=True)
    alignment = Alignment([AlignedPhone(*phone) for phone in phones], transcript.words, -10.0)
    symbols, ends = aligned_entries(transcript, alignment)
    assert symbols == ["SIL", "HH", "AY", ",", "DH", "IY", "|", "Y", "UW", ".", "SIL"]
    assert ends == [0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.8, 0.9, 1.0, 1.0, 1.3]
    assert len(symbols) == len(entries_of_text(transcript))
    without = Alignment([phone for phone in alignment.phones if phone.word >= 0], transcript.words, -10.0)
    assert aligned_entries(transcript, without)[1][0] == 0.0


def test_joined_recordings_have_one_slot_between_them_and_long_entries_are_split() -> None:
    one = Entries(torch.tensor([0, 5, 0]), torch.tensor([0, 9, 0]), torch.tensor([2, 7, 3]))
    both = one.then(one, slot=1)
    assert both.phone.tolist() == [0, 5, 1, 5, 0] and both.frames.tolist() == [2, 7, 5, 7, 3] and both.pitch.tolist() == [0, 9, 0, 9, 0]
    assert one.phone.tolist() == [0, 5, 0]
    split = both.split(4)
    assert split.frames.tolist() == [2, 4, 3, 4, 1, 4, 3, 3] and split.phone.tolist() == [0, 5, 5, 1, 1, 5, 5, 0]


@pytest.fixture(scope="module")
def tokens() -> EntryTokens:
    pytest.importorskip("pocketsphinx")
    phonemes = PhonemeTokenizer(PhonemesConfig(boundaries=True))
    phonemes.fit([])
    return EntryTokens(phonemes, Prosody(ProsodyConfig()), 16000, Fraction(50))


@pytest.mark.skipif(not PROMPTS.is_dir(), reason="needs: apt-get install asterisk-core-sounds-en-g722")
def test_a_recording_and_its_text_have_the_same_entries(tokens, tmp_path) -> None:
    sound = read_sound(PROMPTS / "confbridge-pin.g722")
    good = Utterance("good", "list, line 1", held=sound, text=TEXT)
    wrong = Utterance(
        "wrong", "list, line 2", held=sound, text="Nothing of this kind has ever been said by anybody in here at all, I believe."
    )
    shards = tokens_of([good, wrong], tokens, tmp_path, workers=0)
    entries = tokens.entries(torch.from_numpy(shards.ids(good).astype("int64")))
    assert entries is not None and len(entries.phone) == len(entries_of_text(tokens.phonemes.transcribe(TEXT)))
    assert int(entries.frames.sum()) == -(-len(sound.at(16000).wave_n) // 320)
    slots = entries.frames[entries.phone == tokens.slot]
    assert len(slots) == 11 and int((slots == 0).sum()) >= 6  # most borders of words have no pause
    assert tokens.entries(torch.from_numpy(shards.ids(wrong).astype("int64"))) is None
    import dataclasses

    with pytest.raises(Exception, match="line 1"):  # another text is another recording
        shards.ids(dataclasses.replace(good, text="Please enter"))


def test_tokenizers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="boundaries: true"):
        EntryTokens(PhonemeTokenizer(PhonemesConfig()), Prosody(ProsodyConfig()), 16000, Fraction(50))
    with pytest.raises(RecipeError, match="50 frames a second, but the codec 75"):
        EntryTokens(PhonemeTokenizer(PhonemesConfig(boundaries=True)), Prosody(ProsodyConfig()), 24000, Fraction(75))
