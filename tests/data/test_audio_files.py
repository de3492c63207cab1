"""Files of sound: every container read whole and in part, written, and what is told of files that are no sound or not whole."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data import audio_readers
from mmlm.data.audio_files import read_sound, sound_facts, write_sound
from mmlm.sound import Sound

soundfile = pytest.importorskip("soundfile")
av = pytest.importorskip("av")
pytest.importorskip("soxr")

RATE, SECONDS = 44_100, 5


def sweep(rate_hz: int = RATE) -> np.ndarray:
    """float32 [n]: a tone that rises from 300 Hz, so that every place sounds unlike the others."""
    time_n = np.arange(rate_hz * SECONDS) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (300 + 60 * time_n) * time_n)).astype(np.float32)


def encode(path, codec: str, rate_hz: int, kind: str | None = None, picture: bool = False) -> None:
    """The sweep in a container of FFmpeg; picture: beside a stream of video."""
    wave_n = np.rint(sweep(rate_hz) * 32768).astype(np.int16)
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        if picture:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
            for _ in range(10 * SECONDS):
                container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(video.encode(None))
        for start in range(0, len(wave_n), 1000):
            frame = av.AudioFrame.from_ndarray(wave_n[None, start : start + 1000], format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate_hz, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The sweep in many kinds of files; those of two channels hold it and half of its mirror image."""
    path = tmp_path_factory.mktemp("sounds")
    wave_n = sweep()
    both_nc = np.stack([wave_n, -0.5 * wave_n], axis=1)
    soundfile.write(path / "pcm.wav", wave_n, RATE, subtype="PCM_16")
    soundfile.write(path / "pcm24.wav", both_nc, RATE, subtype="PCM_24")
    soundfile.write(path / "float.wav", wave_n, RATE, subtype="FLOAT")
    soundfile.write(path / "lossless.flac", both_nc, RATE)
    soundfile.write(path / "vorbis.ogg", wave_n, RATE, subtype="VORBIS")
    soundfile.write(path / "voice.mp3", wave_n, RATE)
    encode(path / "opus.webm", "libopus", 48_000)
    encode(path / "aac.m4a", "aac", RATE)
    encode(path / "aac.mkv", "aac", RATE)
    encode(path / "film.mp4", "aac", RATE, picture=True)
    encode(path / "phone.g722", "g722", 16_000, kind="g722")
    return path


KINDS = {  # rate, channels, samples by which the codec may delay
    "pcm.wav": (RATE, 1, 0),
    "pcm24.wav": (RATE, 2, 0),
    "float.wav": (RATE, 1, 0),
    "lossless.flac": (RATE, 2, 0),
    "vorbis.ogg": (RATE, 1, 0),
    "voice.mp3": (RATE, 1, 0),
    "opus.webm": (48_000, 1, 400),
    "aac.m4a": (RATE, 1, 0),
    "aac.mkv": (RATE, 1, 1100),
    "film.mp4": (RATE, 1, 0),
    "phone.g722": (16_000, 1, 24),
}


def likeness(found_n: np.ndarray, wanted_n: np.ndarray, delay: int) -> float:
    """The largest correlation of 3 seconds, of all delays from -delay to delay."""
    size = 3 * len(wanted_n) // SECONDS
    parts = [found_n[size // 3 + lag : size + lag] for lag in range(-delay, delay + 1)]
    return max(float(np.corrcoef(part_n, wanted_n[size // 3 : size])[0, 1]) for part_n in parts)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_whole_and_in_part_alike(name, folder, monkeypatch):
    monkeypatch.setattr(audio_readers, "BLOCK", 50_000)
    rate_hz, channels, delay = KINDS[name]
    facts, whole = sound_facts(folder / name), read_sound(folder / name, channel=0)
    assert (facts.rate_hz, facts.channels) == (rate_hz, channels) and facts.seconds == pytest.approx(SECONDS, abs=0.05)
    assert whole.rate_hz == rate_hz and abs(len(whole.wave_n) - facts.num_samples) <= 0.01 * rate_hz
    assert likeness(whole.wave_n, sweep(rate_hz), delay) > 0.998
    part = read_sound(folder / name, start_seconds=3.1, seconds=1.0, channel=0)
    assert len(part.wave_n) == rate_hz and np.abs(part.wave_n - whole.cut(3.1, 1.0).wave_n).max() < 1e-4
    told = read_sound(folder / name, rate_hz=24_000, channel=0)
    part = read_sound(folder / name, rate_hz=24_000, start_seconds=2.3333, seconds=0.5, channel=0)
    assert told.rate_hz == 24_000 and np.abs(part.wave_n - told.cut(2.3333, 0.5).wave_n).max() < 1e-4


def test_channels_are_averaged_unless_one_is_named(folder):
    wave_n = sweep()
    assert np.abs(read_sound(folder / "lossless.flac").wave_n - 0.25 * wave_n).max() < 1e-4
    assert np.abs(read_sound(folder / "lossless.flac", channel=1).wave_n + 0.5 * wave_n).max() < 1e-4
    with pytest.raises(DataError, match=r"lossless\.flac: channel 2: the file has 2, counted from 0"):
        read_sound(folder / "lossless.flac", channel=2)


def test_a_part_ends_with_the_file_and_may_not_begin_after_it(folder):
    assert read_sound(folder / "pcm.wav", start_seconds=4.5, seconds=3).seconds == 0.5
    with pytest.raises(DataError, match=r"a part from 5\.50 s on was asked, but the file lasts 5\.00 s"):
        read_sound(folder / "pcm.wav", start_seconds=5.5)
    for wrong in ({"start_seconds": -1}, {"seconds": 0}):
        with pytest.raises(DataError, match=r"pcm\.wav: a part begins at 0 s or later and is longer than 0 s"):
            read_sound(folder / "pcm.wav", **wrong)


def test_a_part_of_a_long_file_is_read_without_the_rest(folder, tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(np.rint(sweep() * 32768).astype(np.int16), 20), RATE)
    read: list[int] = []
    plain = audio_readers._SoundFile.blocks

    def counted(self, first, last):
        for block_nc in plain(self, first, last):
            read.append(len(block_nc))
            yield block_nc

    monkeypatch.setattr(audio_readers._SoundFile, "blocks", counted)
    assert read_sound(path, rate_hz=16_000, start_seconds=61, seconds=2).seconds == 2
    assert sum(read) < 2.5 * RATE


@pytest.mark.parametrize(("name", "as_float"), [("x.wav", False), ("x.flac", False), ("x.wav", True)])
def test_what_is_written_is_read_again(name, as_float, tmp_path):
    levels = np.arange(-32768, 32768, 7, dtype=np.float32) / 32768
    write_sound(tmp_path / "new" / name, Sound(levels, 22_050), as_float=as_float)
    found = read_sound(tmp_path / "new" / name)
    assert found.rate_hz == 22_050 and np.array_equal(found.wave_n, levels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_what_cannot_be_written_is_told(tmp_path, caplog):
    loud = Sound(np.array([0.5, 1.5, -2.0], np.float32), 8000)
    with caplog.at_level(logging.WARNING):
        write_sound(tmp_path / "x.wav", loud)
    assert read_sound(tmp_path / "x.wav").wave_n.tolist() == [0.5, 32767 / 32768, -1] and "the largest is 2.00" in caplog.text
    write_sound(tmp_path / "x.wav", loud, as_float=True)
    assert read_sound(tmp_path / "x.wav").wave_n.tolist() == [0.5, 1.5, -2.0]
    for name, sound, told in [
        ("x.mp3", loud, "sound is written as .wav or .flac"),
        ("x.wav", Sound(np.zeros(0, np.float32), 8000), "without samples"),
        ("x.wav", Sound(np.full(3, np.nan, np.float32), 8000), "NaN"),
    ]:
        with pytest.raises(DataError, match=told):
            write_sound(tmp_path / name, sound)
    with pytest.raises(DataError, match=r"floats as \.wav alone"):
        write_sound(tmp_path / "x.flac", loud, as_float=True)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "phone.g722"])  # which has no header to tell its length
def test_a_file_that_was_cut_short_is_told(name, folder, tmp_path):
    raw = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: len(raw) * 6 // 10])
    for look in (sound_facts, read_sound):
        with pytest.raises(DataError, match=rf"{name}: .*(cut short|not audio that can be read)"):
            look(tmp_path / name)


@pytest.mark.parametrize("name", ["lossless.flac", "aac.m4a", "opus.webm", "vorbis.ogg", "voice.mp3"])
def test_a_file_that_is_damaged_in_the_middle_is_told(name, folder, tmp_path):
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 2000] = np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=rf"{name}: is (damaged|cut short)"):
        read_sound(tmp_path / name)


def changed(raw: bytes, place: int, value: bytes) -> bytes:
    return raw[:place] + value + raw[place + len(value) :]


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("empty.wav", lambda wav: b"", "is empty (0 bytes)"),
        ("text.wav", lambda wav: b"not a sound at all\n" * 50, "is not audio that can be read"),
        ("list.mp3", lambda wav: b"#EXTM3U\nhttp://example.org/x.mp3\n", "is not audio that can be read"),
        ("x.raw", lambda wav: bytes(100), "raw samples say neither their rate nor their form"),
        ("x.g722", lambda wav: wav, "is named .g722 but holds wav"),
        ("rate.wav", lambda wav: changed(wav, 24, struct.pack("<I", 8000)), "contradicts itself: 1 channels of 16 bits at 8000 Hz"),
        ("open.wav", lambda wav: changed(wav, 40, bytes(4)), "was never finished: its header tells of no samples, but 441,000 bytes"),
        ("head.wav", lambda wav: wav[:30], "is cut short within its header"),
    ],
)
def test_what_is_no_sound_is_told(name, make, told, folder, tmp_path):
    (tmp_path / name).write_bytes(make((folder / "pcm.wav").read_bytes()))
    for look in (sound_facts, read_sound):
        with pytest.raises(DataError) as error:
            look(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ") and told in str(error.value)


def test_missing_files_folders_pictures_nan_and_nothing_are_told(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    wave_n = np.zeros(1000, np.float32)
    wave_n[500] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave_n, 16_000, subtype="FLOAT")
    for path, told in [
        (tmp_path / "no.wav", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "x.png", "is not audio that can be read"),
        (tmp_path / "none.wav", "holds no samples"),
        (tmp_path / "nan.wav", r"holds nan at 0\.031 s \(sample 500\)"),
    ]:
        with pytest.raises(DataError, match=told):
            read_sound(path)


def test_files_whose_writer_knew_no_length_are_counted(folder, tmp_path):
    wav, flac = (folder / "pcm.wav").read_bytes(), bytearray((folder / "lossless.flac").read_bytes())
    (tmp_path / "pipe.wav").write_bytes(changed(wav, 40, b"\xff" * 4))
    flac[21] &= 0xF0  # the number of samples: 36 bits of the first block
    flac[22:26] = bytes(4)
    (tmp_path / "pipe.flac").write_bytes(flac)
    for name in ("pipe.wav", "pipe.flac"):
        assert sound_facts(tmp_path / name).num_samples == len(read_sound(tmp_path / name).wave_n) == RATE * SECONDS
