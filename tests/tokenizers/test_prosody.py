"""Pitch, level and duration: tones whose pitch is known, buckets and back, long phones split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.base.schema import check
from mmlm.sound import Sound
from mmlm.tokenizers.config import ProsodyConfig
from mmlm.tokenizers.pitch import follow, num_frames
from mmlm.tokenizers.prosody import Prosody, Quantizer, split_long

pytest.importorskip("librosa")
pytest.importorskip("soxr")
VOICES = [Path("/usr/share/asterisk/sounds") / name for name in ("en_US_f_Allison/conf-usermenu.g722", "it_IT_m_Carlo/conf-usermenu.g722")]


def tone(hz: float, seconds: float = 1.0, rate_hz: int = 16_000, level: float = 0.3) -> Sound:
    """A buzz with four harmonics."""
    time_n = np.arange(round(seconds * rate_hz)) / rate_hz
    return Sound((level * sum(np.sin(2 * np.pi * hz * k * time_n) / k for k in range(1, 5)) / 1.5).astype(np.float32), rate_hz)


def joined(*sounds: Sound) -> Sound:
    return Sound(np.concatenate([sound.wave_n for sound in sounds]), sounds[0].rate_hz)


def silence(seconds: float) -> Sound:
    return Sound(np.zeros(round(seconds * 16_000), np.float32), 16_000)


@pytest.mark.parametrize("rate_hz", [50.0, 75.0, 12.5])
@pytest.mark.parametrize("hz", [70, 110, 220, 450])
def test_the_pitch_of_a_tone_is_found_at_every_frame_rate(hz: float, rate_hz: float) -> None:
    found = follow(tone(hz, rate_hz=24_000), rate_hz)
    assert len(found.pitch_hz) == np.ceil(rate_hz)
    inner = found.pitch_hz[1:-1]
    assert (inner > 0).all() and np.abs(1200 * np.log2(inner / hz)).max() < 15


def test_noise_and_silence_have_no_pitch_and_their_own_level() -> None:
    noise = Sound((0.1 * np.random.default_rng(0).normal(size=16_000)).astype(np.float32), 16_000)
    found = follow(joined(noise, silence(0.5)), 50.0)
    assert (found.pitch_hz == 0).all()
    assert abs(found.level_db[5:45].mean() + 20) < 0.5 and found.level_db[60] == -np.inf


def test_pitch_starts_and_ends_where_the_voice_does() -> None:
    found = follow(joined(silence(0.4), tone(150, 0.4), silence(0.4)), 50.0)
    voiced = np.flatnonzero(found.pitch_hz)
    assert abs(voiced[0] - 20) <= 2 and abs(voiced[-1] - 39) <= 2 and len(found.pitch_hz) == 60


@pytest.mark.slow
@pytest.mark.skipif(not all(path.exists() for path in VOICES), reason="needs: apt-get install asterisk-core-sounds-{en,it}-g722")
def test_both_trackers_agree_on_real_voices() -> None:
    from mmlm.data.audio_files import read_sound

    fast, slow = [], []
    for path in VOICES:
        sound = read_sound(path).cut(0, 2.5)
        fast.append(follow(sound, 50.0).pitch_hz)
        slow.append(follow(sound, 50.0, method="pyin").pitch_hz)
    fast_t, slow_t = np.concatenate(fast), np.concatenate(slow)
    both = (fast_t > 0) & (slow_t > 0)
    assert both.mean() > 0.4 and ((fast_t > 0) == (slow_t > 0)).mean() > 0.8
    assert np.median(np.abs(1200 * np.log2(fast_t[both] / slow_t[both]))) < 15
    assert (np.abs(fast_t[both] / slow_t[both] - 1) > 0.2).mean() < 0.05


@pytest.mark.parametrize("wave", [np.zeros(0, np.float32), np.array([0.0, np.nan], np.float32)])
def test_what_has_no_pitch_at_all_is_refused(wave) -> None:
    with pytest.raises(DataError, match="it is empty|holds NaN"):
        follow(Sound(wave, 16_000), 50.0)


QUANTIZERS = {
    "even": Quantizer.even(65, 500, 256),
    "octaves": Quantizer.octaves(65, 500, 256),
    "learned": Quantizer.learned(np.random.default_rng(0).normal(200, 40, 5000).clip(66, 499), 16),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_bucket_comes_back_to_itself_and_a_value_to_its_bucket(name: str) -> None:
    quantizer = QUANTIZERS[name]
    buckets = np.arange(len(quantizer.centres) + 1)
    assert (quantizer.encode(quantizer.decode(buckets)) == buckets).all()
    assert quantizer.encode(np.array([np.nan, -1e9, 1e9])).tolist() == [0, 1, buckets[-1]]
    values = np.random.default_rng(1).uniform(quantizer.edges[0], quantizer.edges[-1], 500)
    place = quantizer.encode(values)
    assert (quantizer.edges[place - 1] <= values).all() and (values <= quantizer.edges[place]).all()


def test_learned_buckets_hold_equally_many() -> None:
    values = np.random.default_rng(2).exponential(1, 4000)
    counts = np.bincount(Quantizer.learned(values, 17).encode(values))
    assert counts[0] == 0 and counts[1:].min() >= 248 and counts[1:].max() <= 252
    with pytest.raises(DataError, match="8 buckets need more different values than the 3 found"):
        Quantizer.learned(np.array([1.0, 2.0, 3.0]), 8)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(1, 64))
def test_splitting_long_phones_keeps_their_frames(frames, longest) -> None:
    lengths, phone = split_long(frames, longest)
    assert max(lengths) <= longest and np.bincount(phone, lengths).tolist() == frames
    assert split_long([70, 32, 0, 1], 32) == ([32, 32, 6, 32, 0, 1], [0, 0, 0, 1, 2, 3])


def test_phones_get_the_mean_of_their_voiced_frames() -> None:
    sound = joined(tone(120, 0.4), silence(0.2), tone(240, 1.4), tone(300, 0.02))
    prosody = ProsodyConfig().build()
    found = prosody.of_phones(sound, [20, 10, 70, 1])
    assert found.phone.tolist() == [0, 1, 2, 2, 2, 3] and found.duration.tolist() == [20, 10, 32, 32, 6, 1]
    pitch = prosody.decode(found.pitch)
    assert abs(pitch[0] - 120) < 3 and pitch[1] == 0 and (np.abs(pitch[2:5] - 240) < 4).all()
    assert pitch[5] == 0, "one voiced frame is not enough"
    assert found.energy[1] == 0 < found.energy[0] and found.energy.max() < 32
    assert all(int(getattr(found, name).max()) < size for name, size in prosody.sizes.items())
    with pytest.raises(DataError, match="the phones have 99 frames, but 2.02 s at 50 Hz have 101"):
        prosody.of_phones(sound, [20, 10, 69])


def test_frames_are_encoded_and_decoded() -> None:
    prosody = ProsodyConfig(scale="log", rate_hz=75).build()
    segment = prosody.encode(tone(200))
    assert segment.modality == "pitch" and segment.rate_hz == (75, 1) and len(segment) == num_frames(tone(200), 75)
    assert np.abs(prosody.decode(segment)[2:-2] - 200).max() < 4


def test_relative_pitch_is_the_same_for_a_higher_speaker() -> None:
    prosody = ProsodyConfig(is_relative=True).build()
    low, high = joined(tone(100), tone(120)), joined(tone(200), tone(240))
    assert (prosody.encode(low).ids - prosody.encode(high).ids).abs().max() <= 1
    told = prosody.decode(prosody.encode(high, median_hz=200), median_hz=100)
    assert abs(told[10] - 100) < 2 and abs(told[-10] - 120) < 2
    with pytest.raises(DataError, match="give median_hz"):
        prosody.decode([1, 2])


def test_quantiles_are_fitted_saved_and_loaded(tmp_path) -> None:
    config = ProsodyConfig(scale="quantiles", pitch_buckets=6)
    prosody = config.build()
    assert not prosody.is_fitted
    with pytest.raises(DataError, match="not fitted yet"):
        prosody.encode(tone(100))
    prosody.fit([tone(hz, 0.5) for hz in range(80, 400, 20)]).save(tmp_path)
    again: Prosody = config.build().load(tmp_path)
    assert again.is_fitted and torch.equal(again.encode(tone(210)).ids, prosody.encode(tone(210)).ids)
    with pytest.raises(CheckpointError, match="holds 6 buckets, but pitch_buckets is 8"):
        ProsodyConfig(scale="quantiles", pitch_buckets=8).build().load(tmp_path)
    (tmp_path / "prosody.json").write_text("{}")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        config.build().load(tmp_path)


def test_a_range_that_falls_is_refused() -> None:
    with pytest.raises(RecipeError, match="lowest_hz must lie below highest_hz"):
        check(ProsodyConfig, {"lowest_hz": 300, "highest_hz": 200}, "recipe")
