"""Speech in styles: what is done to sounds, which styles are chosen, what instructions say, and what never crosses from part to part."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import check
from mmlm.data.audio_files import write_sound
from mmlm.data.config import StyledSpeechConfig
from mmlm.data.instructions import WORDS, bare, content, instruction_of, requoted
from mmlm.data.styled import Styled
from mmlm.data.token_shards import identity
from mmlm.recipe import Recipe
from mmlm.sound import Sound
from mmlm.tokenizers.pitch import follow

for package in ("soundfile", "soxr", "librosa"):
    pytest.importorskip(package)
RATE = 16_000


def tone(seconds: float, hertz: float = 200.0, level: float = 0.1) -> Sound:
    """A voice-like tone with harmonics."""
    time_n = np.arange(round(seconds * RATE)) / RATE
    wave_n = sum(np.sin(2 * np.pi * hertz * k * time_n) / k for k in range(1, 8))
    return Sound((level * wave_n).astype(np.float32), RATE)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A list of 40 recordings with texts, two of them of one text."""
    folder = tmp_path_factory.mktemp("styled")
    lines = []
    for number in range(40):
        write_sound(folder / f"{number}.wav", tone(0.4 + 0.01 * number, 180 + number))
        lines.append({"audio": f"{number}.wav", "text": f"Number {max(number, 1)}.", "speaker": "a", "mood": "glad"})
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def source(folder, **options):
    plain = {"type": "speech_manifest", "path": str(folder / "list.jsonl"), "hold_out": 0.2, "validate_share": 0.1}
    given = {"type": "styled_speech", "speech": {**plain, **options.pop("speech", {})}, **options}
    return check(StyledSpeechConfig, given, "source").build()


def test_a_style_is_heard_although_the_plain_sound_is_kept(listed, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept, plain = (source(listed, speech=speech).everything()[1] for speech in ({"keep_hz": RATE}, {}))
    assert kept.id == plain.id and np.array_equal(kept.sound(RATE).wave_n, plain.sound(RATE).wave_n)


@pytest.mark.parametrize(("semitones", "rate", "level_db"), [(4, 1.3, -18), (-4, 1 / 1.3, -34), (0, 1.3, -26), (3, 1, -26), (0, 1, -20)])
def test_pitch_length_and_level_are_what_was_asked(semitones, rate, level_db) -> None:
    plain = tone(1.5)
    found = Styled(semitones, rate, level_db)(plain)
    voice = follow(found, 100.0)
    assert len(found.wave_n) == round(len(plain.wave_n) / rate)
    assert np.median(voice.pitch_hz[voice.pitch_hz > 0]) == pytest.approx(200 * 2 ** (semitones / 12), rel=0.015)
    assert 10 * np.log10(np.mean(np.square(found.wave_n, dtype=np.float64))) == pytest.approx(level_db, abs=0.05)


def test_nothing_goes_beyond_full_scale_and_silence_stays_silent() -> None:
    spiked = tone(0.5)
    spiked.wave_n[100] = 0.9
    assert np.abs(Styled(0, 1, -6)(spiked).wave_n).max() == pytest.approx(0.99)
    assert not Styled(2, 1.2, -20)(Sound(np.zeros(4000, np.float32), RATE)).wave_n.any()


def test_records_say_their_style_ask_for_it_and_last_as_long_as_they_say(listed) -> None:
    found = source(listed, copies=6, wordings=3).everything()
    by_plain: dict[str, list] = {}
    for each in found:
        by_plain.setdefault(each.id.partition(" (")[0], []).append(each)
        assert each.seconds == pytest.approx(each.sound().seconds, abs=1e-3) and each.labels["mood"] == "glad"
        rate = {"slow": 1 / 1.3, "plain": 1, "fast": 1.3}[each.labels["style"]["tempo"]]
        assert each.change.rate == pytest.approx(rate)
        assert each.labels["style_steps"] == pytest.approx({"pitch": 1 / 3, "tempo": np.log2(1.3), "loudness": 8})
        assert len(each.labels["instructions"]) == 3
        for instruction in each.labels["instructions"]:
            assert content(instruction) == each.text
            for name, level in each.labels["style"].items():
                around = " ".join(re.split("«.*»", instruction))
                said = {other for other, words in WORDS[name].items() if any(word in around for word in words)}
                assert said <= {level} and (said or level == "plain")
    assert all(len(group) == 6 == len({json.dumps(one.labels["style"]) for one in group}) for group in by_plain.values())
    levels = Counter(level for each in found for level in each.labels["style"].items())
    assert len(levels) == 9 and min(levels.values()) > 0.25 * len(found)


def test_the_seed_decides_and_other_recordings_change_nothing(listed) -> None:
    first, again, other = (source(listed, seed=seed).everything() for seed in (0, 0, 1))
    told = [[(each.id, each.labels["instructions"]) for each in some] for some in (first, again, other)]
    assert told[0] == told[1] != told[2]
    lines = (listed / "list.jsonl").read_text().splitlines()
    (listed / "half.jsonl").write_text("\n".join(lines[:20]))
    half = source(listed, speech={"path": str(listed / "half.jsonl")}).everything()
    known = dict(told[0])
    assert half and all(known[each.id] == each.labels["instructions"] for each in half)


def test_no_text_is_in_two_parts(listed) -> None:
    made = source(listed)
    parts = [made.everything(), made.kept_back().everything(), made.held_out_records().everything()]
    texts = [{each.text for each in part} for part in parts]
    assert all(texts) and not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert all(each.labels["style"] for part in parts for each in part)


def test_each_style_is_a_sound_of_its_own_and_a_part_of_it_is_that_of_the_changed_sound(listed) -> None:
    found = source(listed).everything()
    assert len({identity(each) for each in found}) == len(found)
    fast = next(each for each in found if each.labels["style"]["tempo"] == "fast")
    part = fast.part(0.1, 0.15)
    assert part.seconds == pytest.approx(0.15, abs=1e-3) == part.sound().seconds
    assert fast.sound(8000).rate_hz == 8000 and fast.sound(8000).seconds == pytest.approx(fast.seconds, abs=1e-3)


def test_an_attribute_that_does_not_change_is_plain(listed) -> None:
    found = source(listed, semitones=0, gain_db=0, copies=3).everything()
    assert {(each.labels["style"]["pitch"], each.labels["style"]["loudness"]) for each in found} == {("plain", "plain")}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"copies": 28}, "copies: must be at most 27"),
        ({"copies": 4, "semitones": 0, "gain_db": 0}, "copies \\(4\\) must be at most 3"),
        ({"rate": 0.5}, "rate: must be at least 1"),
        ({"speech": {"type": "python_docs"}}, "gives texts, not speech"),
        ({"speech": {"type": "styled_speech", "speech": {"type": "asterisk"}}}, "in styles already"),
    ],
)
def test_options_that_cannot_be_are_told(options, told) -> None:
    with pytest.raises(RecipeError, match=told):
        check(StyledSpeechConfig, {"type": "styled_speech", "speech": {"type": "asterisk"}, **options}, "source")


def test_recordings_without_texts_are_told(listed, tmp_path) -> None:
    write_sound(tmp_path / "a.wav", tone(0.5))
    (tmp_path / "list.jsonl").write_text('{"audio": "a.wav"}')
    with pytest.raises(DataError, match="list.jsonl, line 1: has no text"):
        source(tmp_path, speech={"hold_out": 0, "validate_share": 0})


@pytest.mark.parametrize(
    ("instruction", "said"), [("say «a b» slowly", "a b"), ("“Hi!”", "Hi!"), ('x: " 7 "', "7"), ('«a "b" c»', 'a "b" c')]
)
def test_what_is_quoted_is_what_is_said(instruction, said) -> None:
    assert content(instruction) == said and content(requoted(instruction, "new")) == "new"


@pytest.mark.parametrize(
    ("instruction", "told"),
    [
        ("say it slowly", "nothing in"),
        ("«a» and «b»", "2 parts in"),
        ("say « ... »", "hold nothing"),
        ('""', "hold nothing"),
        ("«open", "nothing"),
    ],
)
def test_instructions_that_quote_nothing_or_too_much_are_refused(instruction, told) -> None:
    with pytest.raises(DataError, match=told):
        content(instruction)


def test_wordings_are_many_and_the_content_stands_before_between_and_after_them() -> None:
    rng = np.random.default_rng(0)
    style = {"pitch": "high", "tempo": "slow", "loudness": "plain"}
    found = [instruction_of("Hello.", style, rng) for _ in range(300)]
    place = Counter((bool(before), bool(after)) for before, _, after in (each.partition("«Hello.»") for each in found))
    assert len(set(found)) > 150 and set(place) == {(True, False), (False, True), (True, True)} and min(place.values()) > 30
    plain = [instruction_of("Hello.", dict.fromkeys(WORDS, "plain"), rng) for _ in range(50)]
    assert bare("Hello.") not in plain and bare("a «b»") == "«a b»"


def test_the_shipped_recipe_asks_for_validation_through_the_source() -> None:
    recipe = Recipe.read("tts/voxinstruct")
    assert recipe.data.has_validation and recipe.data.train[0].holds() == recipe.data.train[0].speech.holds()
