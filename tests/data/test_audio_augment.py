"""What is done to clean sound: exact ratios, kept alignment, lengths and pitches as asked, rooms as measured, the same for a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import check
from mmlm.data import audio_noise
from mmlm.data.audio_augment import Augment, Degrade, band
from mmlm.data.audio_noise import coloured, repeated
from mmlm.data.audio_rooms import decaying_noise, direct_place, in_room, listed_sounds, measured_rt60
from mmlm.data.audio_time import shifted, stretched
from mmlm.data.config.augment import AUGMENTATIONS, NOISES, AddNoiseConfig, AugmentationConfig, RoomConfig
from mmlm.sound import Sound

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 16_000
PLACES = [parent / "shared" / "data" / "noise_rir" for parent in Path(__file__).resolve().parents]
SHARED = next((place for place in PLACES if place.is_dir()), PLACES[3])
needs_recordings = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def voice(seconds: float = 2.0, pitch_hz: float = 150.0, rate_hz: int = RATE, seed: int = 0) -> Sound:
    """A buzz with formants that comes and goes, and a little breath."""
    rng, time_n = np.random.default_rng(seed), np.arange(round(seconds * rate_hz)) / rate_hz
    wave_n = sum(np.exp(-(((k * pitch_hz - 700) / 600) ** 2)) * np.sin(2 * np.pi * k * pitch_hz * time_n + k * k) for k in range(1, 20))
    wave_n = 0.1 * wave_n * (0.55 + 0.45 * np.sin(2 * np.pi * 3 * time_n)) + 0.002 * rng.normal(size=len(time_n))
    return Sound(wave_n.astype(np.float32), rate_hz)


def f0(wave_n: np.ndarray, rate_hz: int = RATE) -> float:
    """Hz: the median over 64 ms frames of the lag of the largest autocorrelation between 65 and 500 Hz, refined by a parabola."""
    found = []
    for start in range(rate_hz // 4, len(wave_n) - rate_hz // 4, rate_hz // 20):
        frame_n = wave_n[start : start + rate_hz // 16] - wave_n[start : start + rate_hz // 16].mean()
        spectrum = np.fft.rfft(frame_n * np.hanning(len(frame_n)), 8192)
        alike = np.fft.irfft(np.abs(spectrum) ** 2)
        low = rate_hz // 500
        lag = low + int(np.argmax(alike[low : rate_hz // 65]))
        before, here, after = alike[lag - 1 : lag + 2]
        found.append(rate_hz / (lag + 0.5 * (before - after) / (before - 2 * here + after)))
    return float(np.median(found))


def lag(x_n: np.ndarray, y_n: np.ndarray) -> int:
    """Samples by which y comes after x, where their correlation is largest."""
    size = 1 << (2 * len(x_n)).bit_length()
    alike = np.fft.irfft(np.fft.rfft(y_n, size) * np.conj(np.fft.rfft(x_n, size)), size)
    place = int(np.argmax(alike))
    return place if place < size // 2 else place - size


def first_lag(x_n: np.ndarray, y_n: np.ndarray) -> int:
    """Samples by which the earliest strong copy of x in y comes after x: at least half as strong as the strongest."""
    size = 1 << (2 * len(x_n)).bit_length()
    alike = np.abs(np.fft.irfft(np.fft.rfft(y_n, size) * np.conj(np.fft.rfft(x_n, size)), size))
    return int(np.flatnonzero(np.roll(alike, 200) >= 0.5 * alike.max())[0]) - 200


def one(name: str, **options) -> AugmentationConfig:
    return check(AUGMENTATIONS.get(name), {"type": name, **options}, name)


def run(config: AugmentationConfig, sound: Sound, seed: int = 0):
    return Augment([config])(sound, np.random.default_rng(seed))


@pytest.mark.parametrize("rate", [0.8, 0.93, 1.0, 1.2])
@pytest.mark.parametrize("rate_hz", [8000, RATE, 44_100])
def test_a_stretch_changes_the_length_by_its_rate_and_not_the_pitch(rate, rate_hz):
    sound = voice(rate_hz=rate_hz)
    found_n = stretched(sound.wave_n, rate, rate_hz)
    assert len(found_n) == round(len(sound.wave_n) / rate) and found_n.dtype == np.float32
    assert f0(found_n, rate_hz) == pytest.approx(150, rel=0.01)
    assert 0.8 < np.std(found_n) / np.std(sound.wave_n) < 1.1
    beats = [np.abs(np.fft.rfft(np.abs(wave_n)))[round(3 * len(wave_n) / rate_hz * factor)] for wave_n, factor in ((found_n, rate),)]
    around = np.abs(np.fft.rfft(np.abs(found_n)))[1 : round(12 * len(found_n) / rate_hz)]
    assert beats[0] == around.max(), "the rhythm is as much faster as was asked"


@pytest.mark.parametrize("semitones", [-4, -1.5, 2, 4])
def test_a_pitch_shift_changes_the_measured_pitch_and_not_the_length(semitones):
    found_n = shifted(voice().wave_n, semitones, RATE)
    assert len(found_n) == 2 * RATE and abs(12 * np.log2(f0(found_n) / 150) - semitones) < 0.2
    assert 0.7 < np.std(found_n) / np.std(voice().wave_n) < 1.2


def test_short_sounds_survive_changes_of_time():
    for size in (1, 5, 100, 600):
        assert len(stretched(np.ones(size, np.float32), 0.8, RATE)) == max(1, round(size / 0.8))
        assert len(shifted(np.ones(size, np.float32), 3, RATE)) == size


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "hum"])
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.5])
def test_noise_has_exactly_the_ratio_that_was_asked(kind, snr_db):
    sound = Sound(0.2 * voice().wave_n, RATE)
    noisy, (made,) = run(one("add_noise", noises=[{"type": "generated", "kinds": [kind]}], snr_db=[snr_db, snr_db]), sound)
    noise_n = noisy.wave_n.astype(np.float64) - sound.wave_n
    assert made["noise"] == kind and made["snr_db"] == snr_db
    assert 10 * np.log10(np.mean(sound.wave_n.astype(np.float64) ** 2) / np.mean(noise_n**2)) == pytest.approx(snr_db, abs=1e-3)


@pytest.mark.parametrize(("power", "slope_db"), [(0, 0.0), (1, -3.01), (2, -6.02)])
def test_coloured_noise_falls_by_its_power_with_each_octave(power, slope_db):
    spectrum = np.abs(np.fft.rfft(coloured(np.random.default_rng(0), power, 1 << 17, RATE))) ** 2
    octaves = [10 * np.log10(spectrum[1 << k : 2 << k].mean()) for k in range(10, 15)]
    assert np.polyfit(range(5), octaves, 1)[0] == pytest.approx(slope_db, abs=0.25)


def test_silence_stays_silent_and_says_so():
    silent = Sound(np.zeros(1000, np.float32), RATE)
    found, (made,) = run(one("add_noise"), silent)
    assert not found.wave_n.any() and made["snr_db"] is None
    for name in sorted(AUGMENTATIONS.entries):
        found, _ = run(one(name), silent)
        assert np.isfinite(found.wave_n).all(), name


KEEP_TIME = [
    one("room"),
    one("room", kind="simulated"),
    one("add_noise", snr_db=[5, 20]),
    one("gain"),
    one("band_limit"),
    one("telephone"),
    one("clip"),
    one("packet_loss"),
    one("packet_loss", fill="repeat"),
]


@pytest.mark.parametrize("config", KEEP_TIME, ids=lambda config: f"{config.type}-{getattr(config, 'kind', getattr(config, 'fill', ''))}")
def test_what_degrades_stays_aligned_and_within_full_scale(config):
    if getattr(config, "kind", "") == "simulated":
        pytest.importorskip("pyroomacoustics")
    clean = Sound((0.1 * voice().wave_n + 0.05 * np.random.default_rng(1).normal(size=2 * RATE)).astype(np.float32), RATE)
    delay = first_lag if config.type == "room" else lag  # in a room two reflections together may be stronger than the direct sound
    for seed in range(4):
        found, _ = Degrade([config])(clean, np.random.default_rng(seed))
        assert len(found.wave_n) == len(clean.wave_n) and found.wave_n.dtype == np.float32 and found.rate_hz == RATE
        assert np.abs(found.wave_n).max() <= 1 and delay(clean.wave_n, found.wave_n) == 0
        assert not np.array_equal(found.wave_n, clean.wave_n)


def test_every_augmentation_that_keeps_time_was_tried_above():
    keep = {name for name, config in AUGMENTATIONS.entries.items() if config.keeps_time}
    assert keep == {config.type for config in KEEP_TIME} and len(AUGMENTATIONS.entries) == len(keep) + 2
    assert set(NOISES.entries) == {"generated", "noise_folder", "keyboard", "babble"}
    with pytest.raises(
        RecipeError, match=r"'pitch_shift' would move the degraded sound against the clean one. Those that do not: add_noise"
    ):
        Degrade([one("gain"), one("pitch_shift")])


def test_a_chain_is_the_same_for_the_same_seed_and_done_again_from_its_record():
    configs = [
        one("time_stretch"),
        one("pitch_shift", chance=0.5),
        one("room"),
        one("add_noise"),
        one("packet_loss"),
        one("gain", gain_db=[30, 30]),
    ]
    chain, sound = Augment(configs), voice()
    found, made = chain(sound, np.random.default_rng(3))
    again, said = Augment(configs)(sound, np.random.default_rng(3))
    assert np.array_equal(found.wave_n, again.wave_n) and made == said == json.loads(json.dumps(made))
    other, _ = chain(sound, np.random.default_rng(4))
    assert len(other.wave_n) != len(found.wave_n)


def test_chances_are_kept_and_one_changes_no_other():
    sound, often = voice(0.2), []
    for seed in range(200):
        _, made = Augment([one("gain", chance=0.3), one("clip")])(sound, np.random.default_rng(seed))
        _, without = Augment([one("gain", chance=0), one("clip")])(sound, np.random.default_rng(seed))
        often.append(len(made) == 2)
        assert made[-1]["seed"] == without[0]["seed"] and made[-1]["level"] == without[0]["level"]
    assert 0.2 < np.mean(often) < 0.4


def test_what_would_be_too_loud_is_scaled_down_and_says_so():
    loud = Sound((0.95 / np.abs(voice().wave_n).max() * voice().wave_n).astype(np.float32), RATE)
    found, made = run(one("add_noise", snr_db=[-5, -5]), loud)
    assert np.abs(found.wave_n).max() == pytest.approx(0.99, abs=1e-4) and made[-1]["type"] == "level" and made[-1]["factor"] < 1
    found, made = run(one("gain", gain_db=[20, 20]), loud)
    assert np.abs(found.wave_n).max() == pytest.approx(0.99, abs=1e-4) and made[0]["gain_db"] < 1 and len(made) == 1


@pytest.mark.parametrize("rt60", [0.2, 0.4, 0.9])
def test_rooms_ring_about_as_long_as_was_asked_and_say_how_long(rt60):
    responses = [decaying_noise(np.random.default_rng(seed), rt60, 3.0, RATE) for seed in range(8)]
    assert np.median([measured_rt60(each, RATE) for each in responses]) == pytest.approx(rt60, rel=0.1)
    for each in responses:
        assert each[0] == 1 and 10 * np.log10(1 / np.sum(each[1:] ** 2)) == pytest.approx(3, abs=1e-6)
    exact = np.exp(-3 * np.log(10) * np.arange(2 * RATE) / RATE / rt60)
    assert measured_rt60(exact, RATE) == pytest.approx(rt60, rel=0.01)
    _, (made,) = run(one("room", rt60=[rt60, rt60]), voice(0.3))
    assert made["asked_rt60"] == rt60 and made["rt60"] == pytest.approx(rt60, rel=0.25)


def test_simulated_rooms_ring_about_as_long_as_was_asked():
    pytest.importorskip("pyroomacoustics")
    for rt60 in (0.3, 0.6):
        found = [run(one("room", kind="simulated", rt60=[rt60, rt60]), voice(0.3), seed)[1][0] for seed in range(6)]
        assert (
            np.median([made["rt60"] for made in found]) == pytest.approx(rt60, rel=0.25)
            and len({str(made["size_m"]) for made in found}) == 6
        )


@needs_recordings
def test_measured_rooms_have_the_rt60_of_their_index_and_their_direct_sound_at_delay_0():
    rooms = listed_sounds(str(SHARED), "rir")
    assert len(rooms) == 4
    for room in rooms:
        wave_n, rate_hz = soundfile.read(room.path)
        assert measured_rt60(wave_n, rate_hz) == pytest.approx(room.about["rt60"], rel=0.1)
    noise_n = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1
    for seed in range(6):
        found, (made, *_) = run(one("room", kind="measured", path=str(SHARED)), Sound(noise_n, RATE), seed)
        assert made["room"] in {room.label for room in rooms} and abs(first_lag(noise_n, found.wave_n)) <= 2


def test_a_room_of_a_direct_sound_alone_changes_nothing():
    response_h = np.zeros(500)
    response_h[37] = -0.5
    assert direct_place(response_h, RATE) == 37 and np.abs(in_room(voice().wave_n, response_h, 37) - voice().wave_n).max() < 1e-6


@needs_recordings
def test_recorded_noise_of_held_out_kinds_is_never_drawn_in_training():
    kinds = {}
    for part in ("trained", "held_out"):
        noise = {"type": "noise_folder", "path": str(SHARED), "hold_out": 0.25, "part": part}
        made = [run(one("add_noise", noises=[noise]), voice(1.0), seed)[1][0] for seed in range(60)]
        kinds[part] = {each["noise"] for each in made}
    assert not kinds["trained"] & kinds["held_out"] and len(kinds["held_out"]) == 4 and len(kinds["trained"]) >= 8
    made = run(one("add_noise", noises=[{"type": "noise_folder", "path": str(SHARED), "kinds": ["birds"]}]), voice(20.0))[1][0]
    assert made["noise"] == "birds"
    with pytest.raises(DataError, match=r"kinds: unknown label 'bird'. Did you mean 'birds'\?"):
        one("add_noise", noises=[{"type": "noise_folder", "path": str(SHARED), "kinds": ["bird"]}]).build()


def test_folders_without_an_index_are_labelled_by_folder_or_name(tmp_path):
    for name in ("rain/a.wav", "rain/b.wav", "wind_2.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.ones(100), 8000)
    assert [each.label for each in listed_sounds(str(tmp_path), "noise")] == ["rain", "rain", "wind"]
    (tmp_path / "index.jsonl").write_text('{"file": "wind_2.wav", "kind": "noise", "label": "gale"}\n{"name": 3}\n')
    with pytest.raises(DataError, match=r"index\.jsonl, line 2: must be an object with the key 'file'"):
        listed_sounds(str(tmp_path), "noise")
    (tmp_path / "index.jsonl").write_text('{"file": "wind_2.wav", "kind": "rir"}\n')
    with pytest.raises(DataError, match="holds no noise"):
        listed_sounds(str(tmp_path), "noise")


def test_a_short_recording_is_repeated_without_clicks():
    wave_n = np.sin(2 * np.pi * 50 * np.arange(RATE // 2 + 37) / RATE)
    found_n = repeated(wave_n, 3 * RATE, RATE)
    assert len(found_n) == 3 * RATE and np.abs(np.diff(found_n)).max() < 2.5 * np.abs(np.diff(wave_n)).max()
    assert len(repeated(np.ones(3), 10, RATE)) == 10 and np.array_equal(repeated(wave_n, 100, RATE), wave_n[:100])


def test_a_keyboard_clicks_as_often_as_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_noise, "CLICKS", tmp_path)
    with pytest.raises(DataError, match="apt-get install bucklespring-data"):
        one("add_noise", noises=["keyboard"]).build()
    click = np.exp(-np.arange(400) / 30)
    for key in ("01", "02"):
        for state in "01":
            soundfile.write(tmp_path / f"{key}-{state}.wav", np.stack([click, click], 1), 44_100)
    noise = NOISES.get("keyboard")(keys_per_second=[5, 5]).build()
    noise_n, made = noise.draw(np.random.default_rng(0), 20 * RATE, RATE)
    starts = np.flatnonzero((np.abs(noise_n[1:]) > 0.1) & (np.abs(noise_n[:-1]) <= 0.1))
    assert made["keys_per_second"] == 5 and 100 < len(starts) < 300


def test_babble_is_several_voices_of_a_source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(5):
        soundfile.write(tmp_path / f"{number}.wav", voice(0.5, 100 + 20 * number).wave_n, RATE)
    babble = {"type": "babble", "speech": {"type": "speech_folder", "path": str(tmp_path), "hold_out": 0}, "min_voices": 2, "max_voices": 4}
    config = one("add_noise", noises=[babble], snr_db=[3, 3])
    counts = {len(run(config, voice(1.3), seed)[1][0]["voices"]) for seed in range(20)}
    assert counts == {2, 3, 4}
    with pytest.raises(RecipeError, match="speech: 'python_docs' gives texts, not speech"):
        one("add_noise", noises=[{"type": "babble", "speech": "python_docs"}])


def test_bands_are_cut_and_what_lies_within_is_kept():
    noise_n = np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32)
    before, after = (np.abs(np.fft.rfft(each)) ** 2 for each in (noise_n, band(noise_n, RATE, 300, 3400)))
    hz = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    for low, high, factor in [(350, 3300, 1.0), (0, 250, 0.0), (3800, 8000, 0.0)]:
        inside = (hz >= low) & (hz < high)
        assert after[inside].mean() / before[inside].mean() == pytest.approx(factor, abs=0.01)
    found, _ = run(one("telephone"), Sound(0.1 * noise_n, RATE))
    error = found.wave_n - band(0.1 * noise_n, RATE, 300, 3400)
    assert 25 < 10 * np.log10(np.mean(found.wave_n**2) / np.mean(error**2)) < 45, "the noise of 8 bits of mu-law"


def test_peaks_are_cut_and_packets_lost_as_often_as_recorded():
    found, (made,) = run(one("clip", level=[0.3, 0.3]), voice())
    assert np.abs(found.wave_n).max() == pytest.approx(0.3 * np.abs(voice().wave_n).max(), rel=1e-5)
    assert made["clipped"] == pytest.approx(np.mean(found.wave_n != voice().wave_n), abs=1e-3) and made["clipped"] > 0.01
    ones = Sound(np.ones(60 * RATE, np.float32), RATE)
    lost = []
    for seed in range(5):
        found, (made,) = run(one("packet_loss", rate=[0.1, 0.1], burst=3), ones, seed)
        packets = found.wave_n.reshape(-1, RATE // 50)
        gone = packets[:, 0] == 0
        assert (packets == packets[:, :1]).all() and gone.mean() == made["lost"]
        runs = np.flatnonzero(np.diff(np.concatenate([[False], gone, [False]]).astype(int)))
        lost.append((gone.mean(), np.mean(runs[1::2] - runs[::2])))
    assert np.mean(lost, axis=0) == pytest.approx([0.1, 3], rel=0.2)
    found, _ = run(one("packet_loss", rate=[0.5, 0.5], fill="repeat"), voice())
    assert np.std(found.wave_n) > 0.5 * np.std(voice().wave_n)


def test_ranges_and_options_without_effect_are_checked():
    for name, options, told in [
        ("gain", {"gain_db": [3, 1]}, "a range is [low, high], but 3 is above 1"),
        ("time_stretch", {"rate": [0, 1]}, "a range of values above 0, but it begins at 0"),
        ("clip", {"level": [0.5, 2]}, "a range within 0 to 1"),
        ("gain", {"gain_db": [3]}, "at least 2 items"),
        ("room", {"kind": "measured"}, "kind: measured needs path"),
        ("room", {"path": "x"}, "path: has no effect: kind is decay"),
        ("room", {"kind": "simulated", "direct_db": [0, 1]}, "direct_db: has no effect: kind is simulated"),
        ("add_noise", {"noises": [{"type": "noise_folder", "path": "x", "part": "held_out"}]}, "needs hold_out above 0"),
        ("add_noise", {"noises": ["rain"]}, "unknown noise 'rain'"),
    ]:
        with pytest.raises(RecipeError) as error:
            one(name, **options)
        assert told in str(error.value)
    assert RoomConfig().kind == "decay" and AddNoiseConfig().noises[0].type == "generated"
