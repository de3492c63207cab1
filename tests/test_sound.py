"""Sounds: rates, lengths, parts, and what is none."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock, Timeout

from mmlm import sound as module
from mmlm.base.errors import DataError, MissingExtra
from mmlm.base.files import user_cache_folder
from mmlm.sound import Sound, librosa

pytest.importorskip("soxr")


@pytest.mark.parametrize("num_samples", [1, 441, 8001, 44_100])
@pytest.mark.parametrize("rate_hz", [8000, 16_000, 24_000, 48_000])
def test_another_rate_has_the_length_that_was_promised(num_samples: int, rate_hz: int) -> None:
    sound = Sound(np.random.default_rng(0).normal(size=num_samples).astype(np.float32), 44_100)
    found = sound.at(rate_hz)
    assert len(found.wave_n) == int(np.ceil(num_samples * rate_hz / 44_100)) and found.wave_n.dtype == np.float32
    assert sound.at(44_100) is sound


def test_a_tone_keeps_its_pitch_and_level_at_another_rate() -> None:
    time_n = np.arange(44_100) / 44_100
    found = Sound(np.sin(2 * np.pi * 440 * time_n).astype(np.float32), 44_100).at(16_000)
    wanted_n = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert np.abs(found.wave_n - wanted_n)[500:-500].max() < 1e-3


def test_parts_and_their_seconds() -> None:
    sound = Sound(np.arange(10, dtype=np.float32), 5)
    assert sound.seconds == 2.0
    assert sound.cut(0.4, 0.6).wave_n.tolist() == [2, 3, 4]
    assert sound.cut(1.8).wave_n.tolist() == [9] and sound.cut(3).seconds == 0.0


def test_what_is_no_sound_is_refused() -> None:
    with pytest.raises(DataError, match=r"float32 \[samples\], but this is float64 \[3\]"):
        Sound(np.zeros(3), 16_000)
    with pytest.raises(DataError, match="at least 1 sample a second"):
        Sound(np.zeros(3, np.float32), 0)


def test_librosa_is_compiled_by_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    imported = []

    def require(name: str, extra: str) -> None:
        with pytest.raises(Timeout):
            FileLock(user_cache_folder() / "librosa.lock").acquire(timeout=0)
        imported.append(name)

    monkeypatch.setattr(module, "require", require)
    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=lambda name: require(name, "speech")))
    librosa.__wrapped__()
    assert imported == ["librosa", *module.COMPILED]
    with FileLock(user_cache_folder() / "librosa.lock").acquire(timeout=0):
        pass


def test_all_of_librosa_that_is_compiled_at_import_is_imported_under_the_lock():
    pytest.importorskip("librosa")
    use = "found.feature.melspectrogram, found.sequence.dtw, found.yin, found.pyin, found.power_to_db, found.load"
    modules = "[one for name, one in list(sys.modules.items()) if name.startswith('librosa')]"
    gufuncs = f"sum(type(each).__name__ == 'GUFunc' for one in {modules} for each in vars(one).values())"
    code = f"import sys; from mmlm.sound import librosa; found = librosa(); before = {gufuncs}; {use}; print(before, {gufuncs})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    before, after = done.stdout.split()
    assert before == after != "0", done.stderr


def test_librosa_is_had_where_no_lock_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pytest.importorskip("librosa")
    assert librosa.__wrapped__().yin
    monkeypatch.setitem(sys.modules, "librosa", None)
    with pytest.raises(MissingExtra, match="speech"):
        librosa.__wrapped__()
