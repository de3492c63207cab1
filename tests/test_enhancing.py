"""Files through a model that mends sounds: windows without seams, any rate and channels, flat memory, and what is said of bad files."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mmlm import enhancing
from mmlm.base.errors import DataError, RecipeError
from mmlm.cli import main
from mmlm.data.audio_files import read_sound, sound_facts, write_sound, writing
from mmlm.enhancing import enhance, enhance_file
from mmlm.sound import Sound

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


class Halves:
    """Makes sounds half as loud, and shows the edges of its windows where it is told to."""

    window_seconds = 10.0

    def __init__(self, rate_hz: int = 8000, edge: int = 0) -> None:
        self.rate_hz, self.edge, self.lengths = rate_hz, edge, []

    def enhance(self, model, sounds):
        self.lengths.append([len(one.wave_n) for one in sounds])
        found = []
        for one in sounds:
            assert one.rate_hz == self.rate_hz
            wave_n = 0.5 * one.wave_n
            if self.edge:
                wave_n[: self.edge] = wave_n[len(wave_n) - self.edge :] = 0
            found.append(Sound(wave_n, self.rate_hz))
        return found


def wave(size: int, channels: int = 1, rate_hz: int = 8000) -> np.ndarray:
    """float32 [n, c]: slow sines, of which no resampling takes anything."""
    time_n1, tone_c = np.arange(size)[:, None] / rate_hz, 300.0 + 100.0 * np.arange(channels)
    return (0.4 * np.sin(2 * np.pi * tone_c * time_n1)).astype(np.float32)


def written(path, wave_nc: np.ndarray, rate_hz: int = 8000):
    with writing(path, rate_hz, wave_nc.shape[1]) as write:
        write(wave_nc)
    return path


def read(path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


@pytest.mark.parametrize("size", [2, 7999, 80_000, 80_001, 152_000, 152_001, 300_003])
def test_windows_leave_no_seam_and_every_sample_its_place(tmp_path, size):
    source, done = written(tmp_path / "a.wav", wave(size)), []
    task = Halves()
    enhance_file(task, None, source, tmp_path / "b.wav", done.append)
    made_nc = read(tmp_path / "b.wav")
    assert made_nc.shape == (size, 1) and np.abs(made_nc - 0.5 * wave(size)).max() < 1e-4
    assert done == sorted(done) and abs(done[-1] - size / 8000) < 1e-3
    assert max(max(each) for each in task.lengths) <= 80_000 + 8000
    assert len(task.lengths) == max(1, -(-(size - 8000) // 72_000))


def test_what_is_bad_at_the_edges_of_windows_is_hardly_heard(tmp_path):
    source = written(tmp_path / "a.wav", wave(300_000))
    enhance_file(Halves(edge=200), None, source, tmp_path / "b.wav", lambda done: None)
    error_nc = np.abs(read(tmp_path / "b.wav") - 0.5 * wave(300_000))[200:-200]
    assert error_nc.max() < 1e-3


@pytest.mark.parametrize(("rate_hz", "channels", "ending"), [(44_100, 2, ".wav"), (16_000, 1, ".flac"), (11_025, 3, ".wav")])
def test_rate_channels_and_samples_stay(tmp_path, rate_hz, channels, ending):
    size = round(23.7 * rate_hz) + 1
    source = written(tmp_path / f"a{ending}", wave(size, channels, rate_hz), rate_hz)
    enhance_file(Halves(), None, source, tmp_path / f"b{ending}", lambda done: None)
    facts, made_nc = sound_facts(tmp_path / f"b{ending}"), read(tmp_path / f"b{ending}")
    assert (facts.rate_hz, facts.channels, facts.num_samples) == (rate_hz, channels, size)
    inside = slice(rate_hz // 10, -rate_hz // 10)
    assert np.abs(made_nc - 0.5 * wave(size, channels, rate_hz))[inside].max() < 2e-3


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for seconds in (40, 160):
        source = written(tmp_path / f"{seconds}.wav", wave(seconds * 16_000, 1, 16_000), 16_000)
        tracemalloc.start()
        enhance_file(Halves(), None, source, tmp_path / "out.wav", lambda done: None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.fixture
def run(monkeypatch):
    """A run whose model halves."""

    class Recipe:
        tasks = [type("Task", (), {"type": "halving"})]

    monkeypatch.setattr(enhancing, "load_run", lambda folder, fits: (Recipe, Halves(), None))
    return "runs/halves"


def test_a_folder_is_mended_and_bad_files_are_told_at_the_end(tmp_path, run, capsys):
    given = tmp_path / "given"
    (given / "deep").mkdir(parents=True)
    written(given / "deep" / "a.flac", wave(9000))
    written(given / "b.wav", wave(9000, 2))
    (given / "empty.wav").write_bytes(b"")
    (given / "text.wav").write_text("no sound at all, only letters")
    (given / "cut.wav").write_bytes((given / "b.wav").read_bytes()[:20_000])
    write_sound(given / "silent.wav", Sound(np.full(9000, 1e-4, np.float32), 8000))
    assert main(["generate", run, "--audio", str(given), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")) == ["b.wav", "deep/a.flac"]
    assert "4 of 6 files could not be mended" in told.err and told.out.count("written") == 2
    for name, why in (
        ("empty", "is empty"),
        ("text", "not"),
        ("cut", "cut short"),
        ("silent", "is silent: nothing in it is louder than -60 dB"),
    ):
        assert any(f"{name}.wav" in line and why in line for line in told.err.splitlines()), (name, told.err)


def test_no_file_of_a_folder_is_written_over_that_of_another(tmp_path, run):
    for name, hz in (("a.wav.aiff", 500), ("a.aiff", 1000), ("a.aiff.wav", 2000)):
        (tmp_path / "given").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "given" / name, np.sin(2 * np.pi * hz * np.arange(9000) / 8000), 8000)
    written, failed = enhance(run, tmp_path / "given", tmp_path / "out")
    assert [path.name for path in written] == ["a.aiff.2.wav", "a.aiff.wav", "a.wav.aiff.wav"] and not failed
    heard = [int(np.abs(np.fft.rfft(read_sound(path).wave_n)).argmax()) * 8000 / 9000 for path in written]
    assert heard == pytest.approx([1000, 2000, 500], abs=2)


def test_a_file_gets_a_name_beside_it(tmp_path, run, capsys):
    source = written(tmp_path / "a.wav", wave(9000))
    assert main(["generate", run, "--audio", str(source)]) == 0
    assert len(read_sound(tmp_path / "a.enhanced.wav").wave_n) == 9000 and "a.enhanced.wav: written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "message"),
    [("a.wav", "is read from"), ("none/b.wav", "does not exist"), ("", "is a folder"), ("b.mp3", "sound is written as .wav or .flac")],
)
def test_an_output_that_cannot_be_is_told(tmp_path, run, output, message):
    source = written(tmp_path / "a.wav", wave(9000))
    before = source.read_bytes()
    with pytest.raises(DataError, match=message):
        enhance(run, source, tmp_path / output)
    assert source.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_folder_within_the_one_that_is_read_is_no_output(tmp_path, run):
    written(tmp_path / "a.wav", wave(9000))
    with pytest.raises(DataError, match="lies in the folder that is read"):
        enhance(run, tmp_path, tmp_path / "out")


def test_a_run_that_mends_nothing_says_so(tmp_path, monkeypatch):
    class Recipe:
        tasks = [type("Task", (), {"type": "text"})]

    monkeypatch.setattr(enhancing, "load_run", lambda folder, fits: (Recipe, object(), None))
    with pytest.raises(RecipeError, match="its task 'text' mends no sounds"):
        enhance("runs/text", tmp_path / "a.wav")


def test_ways_of_use_exclude_each_other(capsys):
    assert main(["generate", "runs/x", "--audio", "a.wav", "--text", "a"]) == 2
    assert "--text and --audio exclude each other" in capsys.readouterr().err
    assert main(["generate", "runs/x", "--audio", "a.wav", "--target", "a"]) == 2
    assert "--audio and --target exclude each other" in capsys.readouterr().err
