"""Sources of speech: what is read from lists and folders, what is checked of each recording, how it is dealt and drawn."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mmlm.base.errors import DataError, MissingExtra, RecipeError
from mmlm.base.schema import check
from mmlm.data import asterisk, speech_check, synthesized
from mmlm.data.audio_files import write_sound
from mmlm.data.base import HoldsOut, KeepsBack, Listed
from mmlm.data.config import (
    AsteriskConfig,
    DataConfig,
    SpeechConfig,
    SpeechFolderConfig,
    SpeechManifestConfig,
    SynthesizedConfig,
)
from mmlm.data.espeak_library import espeak_library
from mmlm.data.speech import Speech, Utterance
from mmlm.data.speech_source import dealt
from mmlm.data.synthesized import check_voice
from mmlm.sound import Sound

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 8000


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """The user's cache folder stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))).astype(np.float32)


def wav(path: Path, wave_n: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave_n, RATE, subtype="FLOAT")
    return path


def manifest(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def of_list(path: Path, **options):
    return SpeechManifestConfig(path=str(path), **{"hold_out": 0, **options}).build()


def test_lines_of_a_list_become_utterances_that_read_their_part_alone(tmp_path):
    wave_n = noise(3)
    wav(tmp_path / "sub" / "a.wav", wave_n)
    lines = (
        {"audio": "sub/a.wav", "text": " Hello ", "speaker": "ann", "language": "en", "mood": "glad"},
        "",
        {"audio": "sub/a.wav", "start": 1.0, "end": 2.5, "id": 7, "text": None},
    )
    whole, part = of_list(manifest(tmp_path / "list.jsonl", *lines)).everything()
    assert (whole.id, whole.text, whole.speaker, whole.language, whole.labels) == ("sub/a.wav", "Hello", "ann", "en", {"mood": "glad"})
    assert whole.where == f"{tmp_path / 'list.jsonl'}, line 1" and part.where.endswith("line 3")
    assert (part.id, part.text, part.speaker, part.seconds) == ("7", "", "", 1.5)
    assert np.array_equal(whole.sound().wave_n, wave_n) and np.array_equal(part.sound().wave_n, wave_n[RATE : RATE * 5 // 2])
    assert part.sound(16_000).rate_hz == 16_000 and len(part.sound(16_000).wave_n) == 24_000
    assert Utterance("x", "x", whole.path, start_seconds=0.5).seconds == 2.5
    inside = part.part(0.5, 0.25)
    assert np.array_equal(inside.sound().wave_n, wave_n[RATE * 3 // 2 : RATE * 7 // 4]) and part.part(1.0, 9).seconds == 0.5


def test_sounds_are_decoded_once_and_kept_if_asked(tmp_path, monkeypatch):
    wave_n = noise(3)
    wav(tmp_path / "a.wav", wave_n)
    path = manifest(tmp_path / "list.jsonl", {"audio": "a.wav"}, {"audio": "a.wav", "start": 1.0, "end": 2.5})
    of_list(path, keep_hz=RATE)
    monkeypatch.setattr("mmlm.data.speech.read_sound", lambda *_, **__: pytest.fail("decoded"))
    whole, part = of_list(path, keep_hz=RATE).everything()
    for each, wanted_n in (
        (whole, wave_n),
        (part, wave_n[RATE : RATE * 5 // 2]),
        (part.part(0.5, 0.25), wave_n[RATE * 3 // 2 : RATE * 7 // 4]),
    ):
        assert np.abs(each.sound(RATE).wave_n - wanted_n).max() <= 1 / 32768


def test_a_list_may_use_other_names_and_be_packed(tmp_path):
    wav(tmp_path / "a.wav", noise(1))
    with gzip.open(tmp_path / "list.jsonl.gz", "wt") as file:
        file.write(json.dumps({"file": "a.wav", "lang": "it", "speaker": "x", "audio": "other"}) + "\n")
    (found,) = of_list(tmp_path / "list.jsonl.gz", keys={"audio": "file", "language": "lang"}).everything()
    assert (found.path, found.language) == (tmp_path / "a.wav", "it")
    with pytest.raises(DataError, match="keys: 'adio' is none of the keys of a list. Did you mean 'audio'?"):
        of_list(tmp_path / "list.jsonl.gz", keys={"adio": "file"})


def clipped() -> np.ndarray:
    return np.clip(20 * noise(1), -1, 1)


BAD = [
    ('{"audio": "a.wav"', "is not JSON"),
    ('["a.wav"]', "must be an object with the key 'audio', but is [\"a.wav\"]."),
    ({"adio": "a.wav"}, "has no 'audio', the file of the sound. Did you mean 'adio'? It has 'adio'."),
    ({"audio": "a.wav", "text": 3}, "'text' must be a text, but is 3."),
    ({"audio": "a.wav", "start": "1"}, "'start' must be a number of seconds, 0 or more, but is \"1\"."),
    ({"audio": "a.wav", "start": 0.5, "end": 0.5}, "ends at 0.5 s, which is not after its start at 0.5 s."),
    ({"audio": "a.wav", "end": 9}, "ends at 9.00 s, but {}a.wav lasts 1.00 s."),
    ({"audio": "a.wav", "start": 4, "id": "s"}, "a part from 4.00 s on was asked, but the file lasts 1.00 s."),
    ({"audio": "none.wav"}, "none.wav: no such file."),
    ({"audio": "text.wav"}, "text.wav: is not audio that can be read"),
    ({"audio": "empty.wav"}, "empty.wav: is empty (0 bytes)."),
    ({"audio": "cut.wav"}, "cut.wav: is cut short"),
    ({"audio": "nan.wav"}, "nan.wav: holds nan at 0.125 s"),
    ({"audio": "silent.wav"}, "silent.wav is silent: nothing in it is louder than -2"),
    ({"audio": "clipped.wav"}, "clipped.wav is clipped: 50"),
    ({"audio": "a.wav", "rate_hz": 16_000, "id": "r"}, "the list says 16000 Hz, but {}a.wav has 8000 Hz."),
    ({"audio": "a.wav", "seconds": 12.4, "id": "l"}, "the list says 12.40 s, but {}a.wav has 1.00 s of it."),
    ({"audio": "good.wav"}, "has the id 'good.wav' of line 1."),
]


@pytest.fixture
def bad_list(tmp_path):
    """A list with two good lines, and the bad ones between them."""
    for name, wave_n in {"good": noise(1), "a": noise(1), "clipped": clipped(), "silent": np.zeros(RATE, np.float32)}.items():
        wav(tmp_path / f"{name}.wav", wave_n)
    (tmp_path / "text.wav").write_text("no sound " * 100)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:5000])
    holes = noise(1)
    holes[1000] = np.nan
    wav(tmp_path / "nan.wav", holes)
    return manifest(tmp_path / "l.jsonl", {"audio": "good.wav"}, *(line for line, _ in BAD), {"audio": "good.wav", "id": "again"})


def test_bad_recordings_are_all_told_with_their_line(bad_list):
    with pytest.raises(DataError) as error:
        of_list(bad_list)
    head, *lines = str(error.value).splitlines()
    assert head == f"{bad_list}: {len(BAD)} of {len(BAD) + 2} recordings cannot be used; on_bad: skip goes on without them."
    found = {int(line.partition(", line ")[2].partition(":")[0]): line for line in lines}
    assert sorted(found) == list(range(2, len(BAD) + 2))
    for number, (_, told) in enumerate(BAD, 2):
        assert told.format(f"{bad_list.parent}/") in found[number]


def test_bad_recordings_are_listed_and_left_out_if_asked(bad_list, caplog):
    with caplog.at_level(logging.WARNING):
        source = of_list(bad_list, on_bad="skip")
    assert [utterance.id for utterance in source.everything()] == ["good.wav", "again"] and len(source.bad) == len(BAD)
    assert f"{len(BAD)} of {len(BAD) + 2} recordings cannot be used and are left out" in caplog.text and "line 12: " in caplog.text
    assert len(of_list(bad_list, on_bad="skip", max_clipped=0.6).everything()) == 3


def test_too_short_and_too_long_ones_and_those_that_a_filter_names_are_left_out(tmp_path):
    lines = []
    for number, (seconds, speaker, text) in enumerate([(0.05, "a", "x"), (1, "a", "x"), (1, "b", ""), (1, "b", "y"), (5, "b", "z")]):
        wav(tmp_path / f"{number}.wav", noise(seconds))
        lines.append({"audio": f"{number}.wav", "speaker": speaker, "text": text, "language": "en"})
    path = manifest(tmp_path / "l.jsonl", *lines)
    source = of_list(path, max_seconds=4)
    assert [each.id for each in source.everything()] == ["1.wav", "2.wav", "3.wav"]
    assert source.left_out == {"shorter than 0.1 s": 1, "longer than 4 s": 1}
    source = of_list(path, speakers=["b"], needs_text=True)
    assert [each.id for each in source.everything()] == ["3.wav", "4.wav"]
    assert source.left_out == {"of other speakers": 2, "without text": 1}
    with pytest.raises(DataError, match="speakers: unknown speaker 'c'. Known: a, b."):
        of_list(path, speakers=["c"])
    with pytest.raises(DataError, match=r"no recording to use \(left out: 5 longer than 0.02 s\)"):
        of_list(path, min_seconds=0.01, max_seconds=0.02)


def test_hours_are_left_out_by_their_header_alone(tmp_path, monkeypatch):
    wav(tmp_path / "long.wav", noise(50))
    wav(tmp_path / "a.wav", noise(1))
    looked = []
    plain = speech_check.read_sound
    monkeypatch.setattr(speech_check, "read_sound", lambda path, **part: looked.append(path.name) or plain(path, **part))
    source = of_list(manifest(tmp_path / "l.jsonl", {"audio": "long.wav"}, {"audio": "a.wav"}), max_seconds=10, trim_silence=True)
    assert looked == ["a.wav"] and source.left_out == {"longer than 10 s": 1}


def test_silence_is_trimmed_but_for_a_margin(tmp_path):
    still = np.zeros(RATE, np.float32) + noise(1, 1e-4)
    wav(tmp_path / "a.wav", np.concatenate([still, noise(2), still, still]))
    path = manifest(tmp_path / "l.jsonl", {"audio": "a.wav"})
    (found,) = of_list(path, trim_silence=True, trim_margin_seconds=0.2).everything()
    assert found.start_seconds == pytest.approx(0.8, abs=0.021) and found.end_seconds == pytest.approx(3.2, abs=0.021)
    (found,) = of_list(path, trim_silence=True, trim_level_db=80).everything()
    assert found.start_seconds == 0 and found.end_seconds == 5
    assert of_list(path).everything()[0].seconds == 5


def test_what_was_found_is_kept_until_the_file_changes(tmp_path, monkeypatch, caplog):
    wav(tmp_path / "a.wav", noise(1))
    path = manifest(tmp_path / "l.jsonl", {"audio": "a.wav"})
    looked = []
    plain = speech_check.look
    monkeypatch.setattr(speech_check, "look", lambda sound, config: looked.append(sound.seconds) or plain(sound, config))
    for _ in range(2):
        assert of_list(path).everything()[0].seconds == 1
    assert looked == [1]
    wav(tmp_path / "a.wav", noise(2))
    assert of_list(path).everything()[0].seconds == 2 and looked == [1, 2]
    (kept,) = [each for each in (Path(os.environ["XDG_CACHE_HOME"]) / "mmlm" / "speech").iterdir() if str(tmp_path) in each.read_text()]
    kept.write_text('{"version": 1, "found": {"x": 3}}')
    with caplog.at_level(logging.WARNING):
        assert of_list(path).everything()[0].seconds == 2 and looked == [1, 2, 2]
    assert "is damaged" in caplog.text


def texts_in(folder: Path) -> dict[str, str]:
    return {each.id: each.text for each in SpeechFolderConfig(path=str(folder), hold_out=0).build().everything()}


def test_a_folder_gives_texts_beside_the_recordings_or_none(tmp_path):
    for name in ("ann/a.wav", "bob/b.wav", ".hidden/c.wav"):
        wav(tmp_path / name, noise(1))
    assert texts_in(tmp_path) == {"ann/a.wav": "", "bob/b.wav": ""}
    (tmp_path / "ann" / "a.txt").write_text("What Ann says.\n")
    with pytest.raises(DataError, match=r"b\.wav: has no text: b\.txt is missing"):
        texts_in(tmp_path)
    config = SpeechFolderConfig(path=str(tmp_path), on_bad="skip", hold_out=0, speaker_from="folder", language="en")
    (found,) = config.build().everything()
    assert (found.text, found.speaker, found.language) == ("What Ann says.", "ann", "en")
    assert len(SpeechFolderConfig(path=str(tmp_path), texts="none", hold_out=0).build().everything()) == 2
    with pytest.raises(DataError, match=r"texts: table: there is none of metadata\.csv"):
        SpeechFolderConfig(path=str(tmp_path), texts="table").build()
    shutil.rmtree(tmp_path / "bob")
    (tmp_path / "ann" / "a.wav").unlink()
    with pytest.raises(DataError, match=r"no file below this folder ends in \.wav"):
        texts_in(tmp_path)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", 'LJ1|One, "two"|one two\nLJ2|Three|\n'),
        ("metadata.tsv", "client_id\tpath\tsentence\tage\nann\tLJ1.wav\tone two\t20\nbob\tLJ2.wav\tThree\t\n"),
        ("metadata.csv", 'file_name,transcription\nwavs/LJ1.wav,"one two"\nwavs/LJ2.wav,Three\n'),
    ],
)
def test_a_table_gives_the_texts_of_a_folder(name, table, tmp_path):
    for stem in ("LJ1", "LJ2", "unnamed"):
        wav(tmp_path / "wavs" / f"{stem}.wav", noise(1))
    (tmp_path / name).write_text(table)
    assert texts_in(tmp_path) == {"wavs/LJ1.wav": "one two", "wavs/LJ2.wav": "Three"}
    if "client_id" in table:
        first, second = SpeechFolderConfig(path=str(tmp_path), hold_out=0).build().everything()
        assert (first.speaker, first.labels, second.speaker, second.labels) == ("ann", {"age": "20"}, "bob", {})


def test_links_to_folders_are_followed_once_and_those_that_lead_back_are_not(tmp_path):
    for name in ("all/a/x.wav", "all/.b/x.wav", "all/a/.x.wav", "disk/one/y.wav", "disk/two/\u00fc.WAV"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {"c": "disk", "0": "disk/one", "again": "all/a", "up": ".", "round": "all", "gone": "nowhere", "z.wav": "all/a/x.wav"}
    for name, target in links.items():
        (tmp_path / "all" / name).symlink_to(tmp_path / target)
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "all")
    found = [path.relative_to(tmp_path / "all").as_posix() for path in speech_check.files_below(tmp_path / "all", [".wav"])]
    assert found == ["0/y.wav", "a/x.wav", "c/two/\u00fc.WAV", "z.wav"]
    assert speech_check.files_below(tmp_path / "all" / "round" / "a", [".wav"]) == [tmp_path / "all" / "round" / "a" / "x.wav"]


def test_a_row_of_a_table_ends_where_its_line_ends_and_no_sooner(tmp_path):
    for name in ("x.wav", "y.wav"):
        wav(tmp_path / name, noise(1))
    (tmp_path / "metadata.csv").write_text("x|one\u2028two\x0bthree\ny|four\n", encoding="utf-8")
    assert texts_in(tmp_path) == {"x.wav": "one\u2028two\x0bthree", "y.wav": "four"}
    (tmp_path / "metadata.csv").write_text('file,text\nx.wav,one\ny.wav,"' + "never closed " * 20_000, encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.csv, line 3: field larger than field limit"):
        texts_in(tmp_path)


def test_rows_of_a_table_that_name_no_file_or_several_are_told(tmp_path):
    for name in ("a/x.wav", "b/x.wav", "y.wav"):
        wav(tmp_path / name, noise(1))
    (tmp_path / "metadata.csv").write_text("x|one\nz|two\ny|three\ny.wav|four\na/x|five\n")
    source = SpeechFolderConfig(path=str(tmp_path), on_bad="skip", hold_out=0).build()
    assert [each.text for each in source.everything()] == ["three", "five"]
    lines = [str(each) for each in source.bad]
    assert "line 1: 'x': 2 files are named so" in lines[0] and "line 2: 'z': no such file below" in lines[1]
    assert "line 4: 'y.wav' is named in line 3 already." in lines[2]


def utterances(count: int, texts: int, speakers: int) -> list[Utterance]:
    return [Utterance(f"u{at}", f"line {at}", text=f"Text {at % texts}.", speaker=f"s{at % speakers}") for at in range(count)]


def ids(group: list[Utterance]) -> set[str]:
    return {each.id for each in group}


def test_the_split_keeps_equal_texts_together_and_follows_from_the_record_alone():
    config, found = SpeechConfig(type="x", hold_out=0.2, validate_share=0.1), utterances(600, 200, 7)
    held, kept, trained = dealt(found, config, "here")
    assert 600 * 0.14 < len(held) < 600 * 0.26 and 600 * 0.05 < len(kept) < 600 * 0.16 and len(held) + len(kept) + len(trained) == 600
    texts = [{each.text for each in group} for group in (held, kept, trained)]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    again = dealt(found[:300][::-1], config, "here")
    assert [ids(group) for group in again] == [ids(group) & ids(found[:300]) for group in (held, kept, trained)]
    louder = [Utterance(each.id, "", text=each.text.upper().replace(".", " !")) for each in found]
    assert [ids(group) for group in dealt(louder, config, "")] == [ids(group) for group in (held, kept, trained)]
    by_id = dealt(found, config.model_copy(update={"split_by": "utterance"}), "here")
    assert {each.text for each in by_id[0]} & {each.text for each in by_id[2]} and [ids(group) for group in by_id] != [
        ids(held),
        ids(kept),
        ids(trained),
    ]


def test_speakers_are_dealt_whole():
    config = SpeechConfig(type="x", hold_out=0.1, validate_share=0.3, split_by="speaker")
    held, kept, trained = dealt(utterances(100, 10, 10), config, "here")
    speakers = [{each.speaker for each in group} for group in (held, kept, trained)]
    assert [len(names) for names in speakers] == [1, 3, 6] and len(set().union(*speakers)) == 10
    few = [len({each.speaker for each in group}) for group in dealt(utterances(9, 9, 3), config, "here")]
    assert few == [1, 1, 1]
    with pytest.raises(DataError, match="split_by: speaker: 2 speakers are too few"):
        dealt(utterances(9, 9, 2), config, "here")
    with pytest.raises(DataError, match="line 9: has no speaker, which split_by: speaker needs"):
        dealt([*utterances(9, 9, 3), Utterance("x", "line 9")], config, "here")


def test_a_share_of_none_is_told_and_sources_say_what_they_keep(tmp_path):
    lines = []
    for number in range(20):
        wav(tmp_path / f"{number}.wav", noise(0.2))
        lines.append({"audio": f"{number}.wav"})
    path = manifest(tmp_path / "l.jsonl", *lines)
    source = of_list(path, hold_out=0.3, validate_share=0.2)
    parts = [source.everything(), source.held_out_records().everything(), source.kept_back().everything()]
    assert sorted(each.id for part in parts for each in part) == sorted(line["audio"] for line in lines) and all(parts)
    assert isinstance(source, KeepsBack | HoldsOut) and isinstance(source, Listed)
    whole = of_list(path)
    assert whole.held_out_records() is None and whole.kept_back() is None
    with pytest.raises(DataError, match=r"hold_out: 0\.001 of 20 recordings is none; raise it"):
        of_list(path, hold_out=0.001)


def test_drawing_is_even_over_utterances_or_over_seconds():
    lengths = {"long": 8.0, "short": 1.0}
    made = [Utterance(name, name, end_seconds=seconds, held=Sound(noise(seconds), RATE)) for name, seconds in lengths.items()]
    source = Speech(made, "here")
    drawn = [source.draw(np.random.default_rng(number), None).id for number in range(400)]
    assert 150 < drawn.count("long") < 250
    parts = [source.draw(np.random.default_rng(number), 2.0) for number in range(400)]
    assert 320 < sum(each.id == "long" for each in parts) < 390 and {round(each.seconds, 6) for each in parts} == {1.0, 2.0}
    starts = [each.start_seconds for each in parts if each.id == "long"]
    assert min(starts) < 0.5 and max(starts) > 5.5 and all(len(each.sound().wave_n) == round(each.seconds * RATE) for each in parts[:20])
    assert source.draw(np.random.default_rng(3), 2.0).start_seconds == parts[3].start_seconds
    with pytest.raises(DataError, match="here: holds no recording"):
        Speech([], "here")


def test_options_without_effect_and_data_in_two_places_are_refused(tmp_path):
    for options, told in [
        ({"trim_level_db": 30}, "trim_level_db: has no effect: trim_silence is false"),
        ({"split_by": "speaker", "hold_out": 0}, "split_by: has no effect: hold_out and validate_share are 0"),
        ({"min_seconds": 4, "max_seconds": 3}, "must be below max_seconds"),
        ({"hold_out": 0.5, "validate_share": 0.5}, "leave nothing to train on"),
    ]:
        with pytest.raises(RecipeError) as error:
            check(SpeechManifestConfig, {"path": "x", **options}, "source")
        assert told in str(error.value)
    one = {"type": "speech_folder", "path": str(tmp_path)}
    with pytest.raises(RecipeError, match=r"validate\.0: the recordings in .* are trained on too|is trained on too"):
        check(DataConfig, {"train": [one], "validate": [one]}, "data")
    apart = [{**one, "speakers": [name]} for name in ("ann", "bob")]
    assert check(DataConfig, {"train": apart[:1], "test": apart[1:]}, "data").faults({"say": "speech"}) == []
    assert "gives speech, but the task reads texts" in check(DataConfig, {"train": apart[:1]}, "data").faults({"write": "texts"})[0]


needs_prompts = pytest.mark.skipif(not asterisk.SOUNDS.is_dir(), reason="Debian's asterisk-core-sounds-*-g722 are not installed")


@needs_prompts
def test_the_prompts_of_asterisk_have_texts_and_no_tones():
    found = {language: list(asterisk._prompts(language)) for language in ("en", "es", "fr", "it", "ru") if asterisk._folder(language)}
    assert "en" in found
    for language, prompts in found.items():
        assert 450 < len(prompts) < 600 and {each.language for each in prompts} == {language}
        names = {each.id.partition("/")[2] for each in prompts}
        assert not names & {"beep", "beeperr", "tt-monkeys", "ascending-2tone", "silence/1"} and "vm-password" in names
        assert not [each.text for each in prompts if any(sign in each.text for sign in "[]<>()") or not each.text.strip()]
    texts = {each.id: each.text for each in found["en"]}
    assert texts["en/letters/at"] == "at" and texts["en/spy-iax2"] == "IAX"
    assert texts["en/dictate/both_help"] == "press star to toggle pause, press pound to enter a new dictation filename"
    assert "line 3" in found["en"][0].where and {each.speaker for each in found["en"]} == {"Allison"}


@needs_prompts
def test_the_prompts_of_asterisk_are_read_at_16_khz(monkeypatch):
    plain = asterisk._prompts
    monkeypatch.setattr(asterisk, "_prompts", lambda language: [each for each in plain(language) if "/agent" in each.id])
    source = AsteriskConfig(hold_out=0, trim_silence=True).build()
    sound = source.everything()[0].sound()
    assert len(source.everything()) >= 7 and sound.rate_hz == 16_000 and 4 < sound.seconds < 6 and np.abs(sound.wave_n).max() > 0.1


def test_prompts_that_are_not_installed_are_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(asterisk, "SOUNDS", tmp_path)
    with pytest.raises(DataError, match="apt-get install asterisk-core-sounds-it asterisk-core-sounds-it-g722 asterisk-core-sounds-ru"):
        AsteriskConfig(languages=["it", "ru"]).build()
    (tmp_path / "it_IT_m_Carlo").mkdir()
    (tmp_path / "it_IT_m_Carlo" / "x.g722").write_bytes(bytes(100))
    monkeypatch.setattr(asterisk, "DOCS", tmp_path / "doc")
    with pytest.raises(DataError, match=r"core-sounds-it\.txt\.gz, the texts of the prompts, is missing.*--reinstall"):
        AsteriskConfig(languages=["it"]).build()


@pytest.mark.parametrize("voice", ["espeak-ng:en-us+f3", "flite:slt"])
def test_sentences_are_spoken_once_and_said_to_be_made(voice, tmp_path, monkeypatch):
    program = voice.partition(":")[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    (tmp_path / "s.txt").write_text("Good morning.\n\nIt is 9 o'clock!\nNever said.\n")
    config = SynthesizedConfig(path=str(tmp_path / "s.txt"), voices=[voice], max_sentences=2, hold_out=0)
    first, second = config.build().everything()
    assert program in first.labels["made_by"] and first.speaker == voice and first.language == "en"
    assert second.text == "It is 9 o'clock!" and second.where == f"{tmp_path / 's.txt'}, line 3" and first.id != second.id
    assert 0.4 < first.seconds < 2 and first.sound().rate_hz in (16_000, 22_050)
    calls = []
    plain = synthesized._run
    monkeypatch.setattr(synthesized, "_run", lambda command, *more: calls.append(command) or plain(command, *more))
    assert [each.path for each in config.build().everything()] == [first.path, second.path] and calls == []
    with pytest.raises(DataError, match=f"unknown voice of {program} 'nobody'"):
        SynthesizedConfig(sentences=["x"], voices=[f"{program}:nobody"]).build()


def test_without_the_program_the_library_of_espeak_ng_speaks(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(synthesized, "user_cache_folder", lambda: tmp_path)
    synthesized._version.cache_clear()
    try:
        config = SynthesizedConfig(
            sentences=["Good morning.", "A red circle, left of the blue square."], voices=["espeak-ng:en-us+f3"], hold_out=0
        )
        short, long = config.build().everything()
        assert re.fullmatch(r"espeak-ng \d+\.\d+.*", short.labels["made_by"])
        assert 0.4 < short.seconds < long.seconds < 5 and np.abs(long.sound().wave_n).max() > 0.05
        other = SynthesizedConfig(sentences=["Good morning."], voices=["espeak-ng:en-us"], hold_out=0).build().everything()[0]
        assert other.path != short.path and other.seconds > 0.4
        with pytest.raises(DataError, match="espeak-ng has no voice 'nobody'; its voices are languages such as en-us"):
            SynthesizedConfig(sentences=["x"], voices=["espeak-ng:nobody"]).build()
        monkeypatch.setitem(sys.modules, "espeakng_loader", None)
        espeak_library.cache_clear()
        with pytest.raises(MissingExtra, match=r"apt-get install espeak-ng\); in its place"):
            check_voice("espeak-ng:en-us")
    finally:
        synthesized._version.cache_clear()
        espeak_library.cache_clear()


def test_a_synthesizer_that_is_not_there_is_told_with_the_command(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="the program flite is not installed. Install it with: apt-get install flite"):
        SynthesizedConfig(sentences=["x"], voices=["flite:slt"]).build()
    for raw, told in [({"voices": ["say:x"], "sentences": ["a"]}, "espeak-ng or flite"), ({}, "write path, a file with a sentence a line")]:
        with pytest.raises(RecipeError, match=told):
            check(SynthesizedConfig, raw, "source")


def test_write_sound_and_read_back_through_a_list(tmp_path):
    write_sound(tmp_path / "a.flac", Sound(noise(1), RATE))
    (found,) = of_list(manifest(tmp_path / "l.jsonl", {"audio": "a.flac"})).everything()
    assert np.abs(found.sound().wave_n - noise(1)).max() < 1e-4
