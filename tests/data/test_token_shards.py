"""Tokens that are kept: read as they were made, never stale, never half, made by several processes, gone on with after a stop."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import DataError
from mmlm.data import array_shards, token_shards
from mmlm.data.array_shards import INDEX, ArrayShards, Kind, Place, write_shard
from mmlm.data.speech import Utterance
from mmlm.data.token_shards import fingerprint, identity, sounds_of, tokens_of
from mmlm.sound import Sound
from mmlm.stream import Segment

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE, HOP = 8000, 100


class Levels:
    """Codes of 100 samples: how loud they are, and where they are loudest. scale: another one makes other codes."""

    def __init__(self, scale: int = 200, log: Path | None = None) -> None:
        self.scale, self.log = scale, log

    @property
    def sizes(self) -> dict[str, int]:
        return {"codec.0": self.scale, "codec.1": HOP}

    def encode(self, sound: Sound) -> Segment:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{os.getpid()} {torch.get_num_threads()} {len(sound.wave_n)}\n")
        blocks = np.abs(np.pad(sound.wave_n, (0, -len(sound.wave_n) % HOP))).reshape(-1, HOP)
        ids = np.stack([np.minimum(blocks.max(1) * self.scale, self.scale - 1).astype(np.int64), blocks.argmax(1)], axis=1)
        behind = torch.full((len(ids),), float(HOP))
        behind[-1] = len(sound.wave_n) - HOP * (len(ids) - 1)
        return Segment("codec", torch.from_numpy(ids), weight=1.0, rate_hz=(80, 1), tags={"samples": behind})

    def save(self, folder) -> None:
        (Path(folder) / "levels.json").write_text(json.dumps(self.scale))


@pytest.fixture
def corpus(tmp_path) -> list[Utterance]:
    """12 recordings of 0.3 to 1.4 s, the last two of one file."""
    found = []
    for number in range(11):
        wave_n = np.random.default_rng(number).uniform(-0.9, 0.9, round((0.3 + 0.1 * number) * RATE) + number).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", wave_n, RATE, subtype="FLOAT")
        found.append(Utterance(str(number), f"line {number}", tmp_path / f"{number}.wav", end_seconds=len(wave_n) / RATE))
    return [*found, Utterance("part", "line 11", tmp_path / "10.wav", start_seconds=0.5, end_seconds=1.0)]


def same(found: Segment, wanted: Segment) -> bool:
    alike = torch.equal(found.ids, wanted.ids) and found.ids.dtype == wanted.ids.dtype
    tags = found.tags.keys() == wanted.tags.keys() and all(torch.equal(found.tags[name], wanted.tags[name]) for name in wanted.tags)
    return alike and tags and (found.modality, found.rate_hz, found.weight) == (wanted.modality, wanted.rate_hz, wanted.weight)


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_tokens_are_those_of_the_tokenizer(workers, corpus, tmp_path):
    tokenizer, seen = Levels(log=tmp_path / "log"), []
    kept = tokens_of(corpus, tokenizer, tmp_path / "kept", workers=workers, progress=lambda done, total: seen.append((done, total)))
    calls = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    processes, threads = {call[0] for call in calls}, {call[1] for call in calls}
    assert len(calls) == 12 and threads == {"1"} and len(processes) == max(1, workers) and (str(os.getpid()) in processes) == (workers == 0)
    assert all(same(kept.segment(each), Levels().encode(each.sound())) for each in corpus)
    assert kept.ids(corpus[0]).dtype == np.int16 and not kept.ids(corpus[0]).flags.writeable and seen[0] == (0, 12) and seen[-1] == (12, 12)
    again = tokens_of(corpus[::-1], tokenizer, tmp_path / "kept", workers=workers)
    assert len((tmp_path / "log").read_text().splitlines()) == 12 and same(again.segment(corpus[3]), kept.segment(corpus[3]))
    assert same(pickle.loads(pickle.dumps(again)).segment(corpus[5]), kept.segment(corpus[5]))


def test_another_tokenizer_file_or_part_never_gets_kept_tokens(corpus, tmp_path):
    kept = tokens_of(corpus, Levels(200), tmp_path / "kept", workers=0)
    other = tokens_of(corpus, Levels(100), tmp_path / "kept", workers=0)
    assert fingerprint(Levels(200)) == fingerprint(Levels(200)) != fingerprint(Levels(100))
    assert same(other.segment(corpus[2]), Levels(100).encode(corpus[2].sound())) and not same(
        other.segment(corpus[2]), kept.segment(corpus[2])
    )
    before, part = corpus[2], corpus[2].part(0.1, 0.2)
    assert len({identity(each) for each in (*corpus, part)}) == 13
    with pytest.raises(DataError, match="line 2: is not among the 12 kept in .* or has changed since"):
        kept.ids(part)
    soundfile.write(before.path, 0.5 * before.sound().wave_n, RATE, subtype="FLOAT")
    os.utime(before.path, ns=(1, 1))
    with pytest.raises(DataError, match="line 2: is not among the 12 kept"):
        kept.ids(before)
    assert same(tokens_of(corpus, Levels(200), tmp_path / "kept", workers=0).segment(before), Levels(200).encode(before.sound()))
    before.path.unlink()
    with pytest.raises(DataError, match=r"line 2: .*2\.wav: No such file"):
        kept.ids(before)


def test_sounds_that_are_held_are_known_by_their_samples(tmp_path):
    wave_n = np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32)
    held = [Utterance("x", "x", end_seconds=1.0, held=Sound(wave_n * level, RATE)) for level in (np.float32(1), np.float32(0.5))]
    kept = tokens_of(held, Levels(), tmp_path, workers=0)
    assert all(same(kept.segment(each), Levels().encode(each.sound())) for each in held) and identity(held[0]) != identity(held[1])


def test_large_ids_take_32_bits_and_ids_beyond_are_refused(tmp_path):
    def large(size):
        tokenizer = Levels()
        tokenizer.encode = lambda sound: Segment("text", torch.tensor([0, 69_999]))
        type(tokenizer).sizes, before = property(lambda self: {"text": size}), type(tokenizer).sizes
        return tokenizer, before

    sound = [Utterance("x", "line 1", end_seconds=1.0, held=Sound(np.zeros(RATE, np.float32), RATE))]
    try:
        tokenizer, before = large(70_000)
        found = tokens_of(sound, tokenizer, tmp_path / "a", workers=0)
        assert found.ids(sound[0]).dtype == np.int32 and found.segment(sound[0]).ids.tolist() == [0, 69_999]
        large(1000)
        with pytest.raises(DataError, match="ids from 0 to 69999 do not fit int16"):
            tokens_of(sound, tokenizer, tmp_path / "b", workers=0)
    finally:
        Levels.sizes = before
    tokenizer = Levels()
    tokenizer.encode = lambda sound: Segment("mel", features=torch.zeros(3, 2))
    with pytest.raises(DataError, match="line 1: Levels gives no ids that could be kept"):
        tokens_of(sound, tokenizer, tmp_path / "c", workers=0)


def test_a_recording_that_cannot_be_read_is_told_and_the_others_stay(corpus, tmp_path):
    corpus[4].path.write_bytes(b"no sound")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"line 4: .*4\.wav: is not audio"):
            tokens_of(corpus, Levels(log=tmp_path / "log"), tmp_path / "kept", workers=workers)
    calls = len((tmp_path / "log").read_text().splitlines())
    kept = tokens_of([each for each in corpus if each is not corpus[4]], Levels(log=tmp_path / "log"), tmp_path / "kept", workers=0)
    assert calls >= 10 and len(kept.arrays) == 11 and len((tmp_path / "log").read_text().splitlines()) - calls <= 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_cannot_be_written_is_told(workers, corpus, tmp_path, monkeypatch):
    (tmp_path / "kept").touch()
    with pytest.raises(DataError, match=r"kept/[0-9a-f]{32}: cannot be written: Not a directory\.$"):
        tokens_of(corpus, Levels(), tmp_path / "kept", workers=workers)
    folder = tmp_path / "full"
    places = write_shard(folder, Kind("int16"), [(bytes(16), np.zeros(3, np.int16), {})])

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"full: cannot be written: No space left on device\."):
        ArrayShards(folder).add(Kind("int16"), places)  # the first is named at once


class Slow(Levels):
    """As Levels, with the same fingerprint, but that it takes its time."""

    __module__, __qualname__ = Levels.__module__, Levels.__qualname__

    def encode(self, sound: Sound) -> Segment:
        time.sleep(0.1)
        return super().encode(sound)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_is_gone_on_with_and_nothing_is_half_read(workers, corpus, tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        tokens_of(corpus, Slow(), tmp_path / "kept", workers=workers, progress=lambda done, total: os.write(write, bytes([done])))
        os._exit(0)
    while os.read(read, 1)[0] < 3:
        pass
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (folder,) = (tmp_path / "kept").iterdir()
    before = ArrayShards(folder)
    assert 3 <= len(before) < 12
    (folder / ".index.safetensors.half").write_bytes(b"half")
    kept = tokens_of(corpus, Levels(log=tmp_path / "log"), tmp_path / "kept", workers=0)
    assert len((tmp_path / "log").read_text().splitlines()) == 12 - len(before)
    assert all(same(kept.segment(each), Levels().encode(each.sound())) for each in corpus)


def test_what_is_damaged_is_made_again(corpus, tmp_path, caplog):
    tokenizer = Levels(log=tmp_path / "log")
    kept = tokens_of(corpus, tokenizer, tmp_path / "kept", workers=0)
    (folder,) = (tmp_path / "kept").iterdir()
    shards = sorted(folder.glob("*.bin"))
    assert len(shards) > 1 and sorted(path.name for path in folder.iterdir()) == sorted([INDEX, *(path.name for path in shards)])
    lost = sum(place.shard == shards[0].name for place in kept.arrays.places.values())
    shards[0].write_bytes(shards[0].read_bytes()[:-200])
    for damage in (lambda: None, lambda: (folder / INDEX).write_bytes((folder / INDEX).read_bytes()[:50])):
        damage()
        with caplog.at_level(logging.WARNING):
            again = tokens_of(corpus, tokenizer, tmp_path / "kept", workers=0)
        assert all(same(again.segment(each), Levels().encode(each.sound())) for each in corpus)
    made = len((tmp_path / "log").read_text().splitlines())
    assert "missing or cut short" in caplog.text and "is damaged" in caplog.text and 24 < made <= 24 + lost


def test_two_that_fill_one_folder_keep_what_both_have_made(tmp_path):
    kind = Kind("int16", ("x",))
    one, other = ArrayShards(tmp_path), ArrayShards(tmp_path)
    for shards, number in ((one, 1), (other, 2)):
        digest, ids = bytes([number]) * 16, np.full((3, 2), number)
        shards.add(kind, write_shard(tmp_path, kind, [(digest, ids, {"x": np.ones(3)})]))
    found = ArrayShards(tmp_path)
    assert len(found) == 2 and found.get(b"\1" * 16).ids.tolist() == [[1, 1]] * 3 and found.get(b"\2" * 16).tags["x"].tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="holds arrays of another kind"):
        found.add(Kind("int32"), {})
    with pytest.raises(DataError, match="has the tags none, but others had x"):
        write_shard(tmp_path, kind, [(b"\3" * 16, np.zeros(2), {})])


def test_the_index_of_many_shards_is_written_seldom_and_names_them_all(tmp_path, monkeypatch):
    (tmp_path / "shard-x.bin").write_bytes(bytes(8))
    written = []

    def write(path, pieces):
        written.append(path)
        path.write_bytes(b"".join(pieces))

    monkeypatch.setattr(array_shards, "write_whole", write)
    shards, kind = ArrayShards(tmp_path), Kind("int16")
    for number in range(1000):
        shards.add(kind, {number.to_bytes(16, "little"): Place("shard-x.bin", 0, 4, 0)})
        if number % 100 == 0:
            assert len(ArrayShards(tmp_path)) >= (number + 1) * 63 / 64
    assert len(written) < 300
    shards.finish()
    shards.finish()
    assert len(ArrayShards(tmp_path)) == len(shards) == 1000 and len(written) < 300
    other = ArrayShards(tmp_path)
    shards.add(kind, {bytes(15) + b"a": Place("shard-x.bin", 0, 4, 0)})
    other.add(kind, {bytes(15) + b"b": Place("shard-x.bin", 0, 4, 0)})
    shards.finish()
    other.finish()
    assert len(ArrayShards(tmp_path)) == 1002


def test_arrays_of_another_kind_are_never_named_beside_those_that_are_there(tmp_path):
    late, first = ArrayShards(tmp_path), ArrayShards(tmp_path)
    kinds = [Kind(name) for name in ("int16", "int32")]
    first.add(kinds[0], write_shard(tmp_path, kinds[0], [(bytes(16), np.arange(4), {})]))
    places = write_shard(tmp_path, kinds[1], [(bytes(15) + b"a", np.arange(4), {})])
    for name in (lambda: late.add(kinds[1], places), late.finish):
        with contextlib.suppress(DataError):
            name()
    assert list(ArrayShards(tmp_path).places) == [bytes(16)]


def test_kept_sound_is_the_sound_in_16_bits_at_the_rate(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = sounds_of(corpus, 16_000, workers=0)
    for has, each in zip(kept, corpus, strict=True):
        found, wanted = has.sound(16_000), each.sound(16_000)
        assert found.rate_hz == 16_000 and np.abs(found.wave_n - np.clip(wanted.wave_n, -1, 32767 / 32768)).max() <= 0.5 / 32768 + 1e-9
    assert (tmp_path / "cache" / "mmlm" / "sounds" / "16000_hz" / INDEX).is_file()
    assert token_shards.SHARD_SECONDS >= 60


def test_a_part_of_kept_sound_is_cut_from_it_and_nothing_is_decoded(corpus, tmp_path, monkeypatch):
    (kept,) = sounds_of(corpus[-1:], 16_000, tmp_path / "sounds", workers=0)
    whole_n = kept.sound(16_000).wave_n
    monkeypatch.setattr("mmlm.data.speech.read_sound", lambda *_, **__: pytest.fail("decoded"))
    part = pickle.loads(pickle.dumps(kept)).part(0.1, 0.25)
    inner = part.part(0.05, 9.0)
    assert np.array_equal(part.sound(16_000).wave_n, whole_n[1600:5600])
    assert np.array_equal(inner.sound(16_000).wave_n, whole_n[2400:5600]) and inner.seconds == pytest.approx(0.2)
    assert len(kept.part(0.1, 99.0).sound(16_000).wave_n) == len(whole_n) - 1600


def test_another_rate_than_the_kept_one_is_read_from_the_file(corpus, tmp_path):
    (kept,) = sounds_of(corpus[:1], 16_000, tmp_path / "sounds", workers=0)
    assert np.array_equal(kept.sound().wave_n, corpus[0].sound().wave_n) and kept.sound(4000).rate_hz == 4000


def test_progress_is_told_in_the_log_now_and_then(caplog):
    with caplog.at_level("INFO"):
        tell = token_shards.logged("codes", every_seconds=3600)
        for done in range(5):
            tell(done, 4)
    assert [record.getMessage() for record in caplog.records] == ["codes: 0 of 4 recordings are ready."]
