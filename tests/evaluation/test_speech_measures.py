"""Judges of speech on cases made by hand, and on a real prompt with noise, whose figures are known."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mmlm.base.errors import CheckpointError, DataError, MissingExtra
from mmlm.evaluation import speaker, speech_quality
from mmlm.evaluation.speech_prosody import cepstra_of, cepstral_distortion, duration_error_ms, pitch_errors, pitch_errors_of
from mmlm.evaluation.speech_quality import dnsmos, pesq, quality, si_sdr, stoi
from mmlm.evaluation.speech_units import Speed, codebook_use, timed
from mmlm.sound import Sound

for name in ("pesq", "pystoi", "librosa", "rapidfuzz", "soxr"):
    pytest.importorskip(name)
PROMPTS = Path("/usr/share/asterisk/sounds")
VOICES = ("en_US_f_Allison", "it_IT_m_Carlo")
prompts = pytest.mark.skipif(
    not all((PROMPTS / voice).is_dir() for voice in VOICES), reason="needs: apt-get install asterisk-core-sounds-{en,it}-g722"
)


def needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs: pip install --no-deps {package}")


def read(voice: str, name: str, seconds: float) -> Sound:
    from mmlm.data.audio_files import read_sound

    return read_sound(PROMPTS / voice / f"{name}.g722").cut(0, seconds)


def with_noise(sound: Sound, snr_db: float) -> Sound:
    noise_n = np.random.default_rng(0).normal(size=len(sound.wave_n))
    level = np.sqrt(np.mean(sound.wave_n**2) / 10 ** (snr_db / 10) / np.mean(noise_n**2))
    return Sound((sound.wave_n + level * noise_n).astype(np.float32), sound.rate_hz)


def wave(seed: int = 0, size: int = 16_000) -> Sound:
    return Sound(np.random.default_rng(seed).normal(size=size).astype(np.float32), 16_000)


def test_si_sdr_of_a_scaled_copy_is_without_bound_and_of_known_noise_is_known() -> None:
    one = wave()
    assert si_sdr(Sound(0.1 * one.wave_n + 0.0, 16_000), one) > 100
    wanted = np.array([1.0, -1.0, 1.0, -1.0] * 400, np.float32)
    error = np.array([1.0, 1.0, -1.0, -1.0] * 400, np.float32)  # at a right angle to it
    for share in (0.1, 0.5, 2.0):
        found = Sound((3 * wanted + 3 * share * error + 7).astype(np.float32), 16_000)
        assert abs(si_sdr(found, Sound(wanted, 16_000)) - -20 * np.log10(share)) < 1e-4
    with pytest.raises(DataError, match="not silent"):
        si_sdr(one, Sound(np.zeros(16_000, np.float32), 16_000))
    with pytest.raises(DataError, match=r"1\.00 s cannot be compared with a reference of 0\.50 s"):
        si_sdr(one, wave(size=8000))


@prompts
def test_quality_falls_with_noise_as_published() -> None:
    clean = read("en_US_f_Allison", "conf-usermenu", 6)
    rows = [quality([with_noise(clean, snr) if snr is not None else clean], [clean], ["pesq_wb", "stoi", "si_sdr"]).values for snr in
            (None, 20, 10, 0)]  # fmt: skip
    assert np.allclose([row["pesq_wb"] for row in rows], [4.64, 1.30, 1.06, 1.02], atol=0.06)
    assert np.allclose([row["stoi"] for row in rows], [1.00, 0.97, 0.87, 0.73], atol=0.03)
    assert np.allclose([row["si_sdr"] for row in rows[1:]], [20, 10, 0], atol=0.1)


@pytest.mark.slow
@prompts
@needs("speechmos")
def test_dnsmos_falls_with_noise_as_published() -> None:
    clean = read("en_US_f_Allison", "conf-usermenu", 6)
    rows = [dnsmos(with_noise(clean, snr) if snr is not None else clean) for snr in (None, 20, 0)]
    assert np.allclose([row["ovrl"] for row in rows], [3.30, 2.42, 1.55], atol=0.25)
    assert np.allclose([row["bak"] for row in rows], [4.09, 2.60, 1.26], atol=0.3)


@prompts
def test_narrow_and_extended_forms_are_measures_of_their_own() -> None:
    clean = read("en_US_f_Allison", "conf-usermenu", 3)
    noisy = with_noise(clean, 10)
    assert pesq(noisy, clean, is_wide=False) > pesq(noisy, clean) + 0.1
    assert stoi(noisy, clean, is_extended=True) < stoi(noisy, clean) - 0.05


def test_silence_is_counted_and_does_not_stop_the_others() -> None:
    silent = Sound(np.zeros(16_000, np.float32), 16_000)
    found = quality([wave(), silent], [wave(), silent], ["pesq_wb", "stoi"])
    assert found.clips == 2 and found.not_measured["pesq_wb"] >= 1 and found.not_measured["stoi"] == 1
    assert found.seconds.keys() == {"pesq_wb", "stoi"} and found.sound_seconds == 2
    assert abs(found.values["stoi"] - 1) < 1e-6


def test_what_is_not_defined_is_no_figure() -> None:
    """A quarter of a second of sound in a second of silence, of which the package of STOI makes 1e-5, and copies without an error."""
    short = Sound(np.pad(wave(size=4000).wave_n, (0, 12_000)), 16_000)
    assert stoi(short, short) is None
    silent = Sound(np.zeros(16_000, np.float32), 16_000)
    found = quality([wave(), silent, short], [wave()] * 3, ["si_sdr"])
    assert found.not_measured["si_sdr"] == 2 and abs(found.values["si_sdr"]) < 30


def test_measures_that_cannot_be_made_are_told() -> None:
    with pytest.raises(DataError, match="unknown measure 'pesq' .no references were given.; known: dnsmos"):
        quality([wave()], None, ["pesq"])
    with pytest.raises(DataError, match="1 sounds have 2 references"):
        quality([wave()], [wave(), wave()], ["stoi"])
    with pytest.raises(DataError, match="empty or holds samples that are not finite"):
        stoi(Sound(np.full(16_000, np.nan, np.float32), 16_000), wave())


def test_what_is_not_installed_is_told_with_the_command(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "speechmos.dnsmos", None)
    with pytest.raises(MissingExtra, match="pip install --no-deps speechmos"):
        speech_quality.dnsmos(wave())
    monkeypatch.setattr(speaker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install --no-deps resemblyzer"):
        speaker.SpeakerEncoder()


@prompts
@needs("resemblyzer")
def test_one_voice_is_nearer_to_itself_than_to_another() -> None:
    encoder = speaker.SpeakerEncoder()
    names = ("conf-usermenu", "conf-adminmenu", "conf-getpin")
    vectors = [encoder.encode([read(voice, name, 4) for name in names]) for voice in VOICES]
    assert np.allclose(np.linalg.norm(np.concatenate(vectors), axis=1), 1, atol=1e-5)
    other = ~np.eye(3, dtype=bool)
    within = [float((one @ one.T)[other].mean()) for one in vectors]
    assert min(within) > 0.7 and float((vectors[0] @ vectors[1].T).mean()) < 0.65
    sounds = [read(VOICES[0], name, 4) for name in names]
    assert np.allclose(speaker.speaker_similarity(encoder, sounds, sounds), 1, atol=1e-5)
    quiet = [Sound(0.01 * sound.wave_n, 16_000) for sound in sounds]
    assert speaker.speaker_similarity(encoder, sounds, quiet).min() > 0.95
    with pytest.raises(DataError, match="sound 2 of 2 is silent"):
        encoder.encode([sounds[0], Sound(np.zeros(16_000, np.float32), 16_000)])


def test_weights_that_are_none_are_refused_and_not_unpickled(tmp_path) -> None:
    import pickle

    path, mark = tmp_path / "weights.pt", tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (mark.write_text, ("ran",))

    path.write_bytes(pickle.dumps({"model_state": Evil()}))
    with pytest.raises(CheckpointError, match=r"weights\.pt: not a state dict"):
        speaker.SpeakerEncoder(path)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="no such file"):
        speaker.SpeakerEncoder(tmp_path / "none.pt")


def test_codebooks_used_evenly_and_not() -> None:
    even, one, half = codebook_use(np.stack([np.arange(64) % 8, np.zeros(64, int), np.arange(64) % 4], axis=1), [8, 8, 8], 50.0)
    assert (
        even.used == 1 and abs(even.perplexity - 8) < 1e-9 and even.bits_per_second == 150 and abs(even.coded_bits_per_second - 150) < 1e-9
    )
    assert one.used == 1 / 8 and abs(one.perplexity - 1) < 1e-9 and abs(one.coded_bits_per_second) < 1e-9
    assert half.used == 0.5 and abs(half.perplexity - 4) < 1e-9 and abs(half.coded_bits_per_second - 100) < 1e-9
    with pytest.raises(DataError, match="codebook 0 has entries 0 to 7, but codes reach from 0 to 8"):
        codebook_use(np.arange(9), [8], 50.0)


def test_speed_is_time_for_sound() -> None:
    assert Speed(2.0, 1.0, 8.0).real_time_factor == 0.25
    made, speed = timed(lambda: [wave(size=8000), wave(size=24_000)])
    assert len(made) == 2 and speed.sound_seconds == 2.0 and 0 < speed.real_time_factor < 1


def test_pitch_errors_of_tracks_made_by_hand() -> None:
    wanted = np.array([100.0, 200, 150, 0, 0, 120])
    found = pitch_errors_of(wanted * 2 ** (50 / 1200), wanted)
    assert abs(found.rmse_cents - 50) < 1e-9 and abs(found.correlation - 1) < 1e-9 and found.gross == found.voicing == 0
    found = pitch_errors_of(np.array([200.0, 200, 0, 90, 0, 120]), wanted)
    assert abs(found.rmse_cents - 1200 / np.sqrt(3)) < 1e-9 and found.gross == 1 / 3 and found.voicing == 2 / 6
    assert found.frames == 6 and found.both_voiced == 3
    assert np.isnan(pitch_errors_of(np.zeros(4), np.ones(4)).rmse_cents)
    with pytest.raises(DataError, match="3 and 2 frames"):
        pitch_errors_of(np.ones(3), np.ones(2))


def test_pitch_of_a_slower_copy_is_the_same_after_warping() -> None:
    def siren(seconds: float) -> Sound:
        time_n = np.arange(round(seconds * 16_000)) / 16_000
        hz_n = 150 + 60 * np.sin(2 * np.pi * time_n / seconds)
        phase_n = 2 * np.pi * np.cumsum(hz_n) / 16_000
        return Sound((0.2 * sum(np.sin(k * phase_n) / k for k in range(1, 20))).astype(np.float32), 16_000)

    locked, warped = (pitch_errors(siren(1.3), siren(1.0), is_time_locked=how) for how in (True, False))
    assert warped.correlation > 0.95 > locked.correlation + 0.1 and warped.rmse_cents < 0.3 * locked.rmse_cents


def test_cepstral_distortion_of_a_known_ripple_is_known() -> None:
    log_mel = np.random.default_rng(0).normal(size=(1, 80)) * 0.1
    ripple = 0.5 * np.cos(np.pi * 3 * (np.arange(80) + 0.5) / 80)
    one, other = cepstra_of(np.repeat(log_mel, 5, 0)), cepstra_of(np.repeat(log_mel + ripple, 9, 0))
    assert np.allclose((other[0] - one[0])[[2]], 0.5) and np.abs(np.delete(other[0] - one[0], 2)).max() < 1e-9
    assert abs(cepstral_distortion(one, other) - 10 * np.sqrt(2) / np.log(10) * 0.5) < 1e-9
    assert cepstral_distortion(one, one[:2]) < 1e-9


def test_duration_error_is_a_mean_over_phones() -> None:
    assert abs(duration_error_ms([0.1, 0.2], [0.13, 0.19]) - 20) < 1e-9
    with pytest.raises(DataError, match="1 and 2 phones"):
        duration_error_ms([0.1], [0.1, 0.2])
