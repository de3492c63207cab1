"""Recordings read in their ways: 200 clips of 4 s at 16 kHz, one thread, CPU time, in random order.

Goals, each asserted with a margin of 1.3: what `read_sound` does around the decoder costs at most 5 % of decoding FLAC; sound kept in
shards is read at least 30 times as fast as FLAC is decoded, tokens at least as fast as that; resampling is at least 1.4 times as fast as
torchaudio's from 44.1 to 16 kHz, whose filter is shorter, and no slower from 16 to 24 kHz, where its is shortest.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.data.audio_files import read_sound
from mmlm.data.speech import Utterance
from mmlm.data.token_shards import sounds_of, tokens_of
from mmlm.sound import Sound
from mmlm.stream import Segment
from tests.bench.measure import MARGIN, compare

pytestmark = [pytest.mark.bench, pytest.mark.slow]
soundfile = pytest.importorskip("soundfile")
RATE, SECONDS, CLIPS = 16_000, 4, 200


class Codes:
    """Eight books at 50 tokens a second, drawn from the samples."""

    fingerprint = "codes of this benchmark"
    sizes = {f"codec.{number}": 1024 for number in range(8)}

    def encode(self, sound: Sound) -> Segment:
        ids = np.abs(sound.wave_n[: 50 * SECONDS * 8] * 1023).astype(np.int64).reshape(-1, 8)
        return Segment("codec", torch.from_numpy(ids), rate_hz=(50, 1))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Files of a coloured noise that comes and goes, which FLAC packs about as well as speech."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    found = []
    for number in range(CLIPS):
        wave_n = np.convolve(rng.normal(size=RATE * SECONDS), np.exp(-np.arange(50) / 8), "same")
        wave_n *= 0.05 * (0.05 + np.abs(np.sin(np.arange(len(wave_n)) * rng.uniform(1e-4, 4e-4))))
        soundfile.write(folder / f"{number}.flac", wave_n, RATE)
        found.append(Utterance(str(number), str(number), folder / f"{number}.flac", end_seconds=float(SECONDS)))
    return found


def test_kept_sound_and_tokens_are_read_many_times_as_fast_as_flac_is_decoded(clips, tmp_path):
    sounds, tokens = sounds_of(clips, RATE, tmp_path / "s", workers=0), tokens_of(clips, Codes(), tmp_path / "t", workers=0)
    at_random = np.random.default_rng(1).permutation(CLIPS)
    order = [clips[at] for at in at_random]
    assert all(np.abs(each.sound(RATE).wave_n - read_sound(each.path).wave_n).max() < 1e-4 for each in sounds[:10])
    assert all(torch.equal(tokens.segment(each).ids, Codes().encode(each.sound()).ids) for each in order[:10])

    def each_of(read, things):
        """Reads 50 things one after the other; each is dropped before the next, as it is by who trains on it."""

        def run():
            for thing in things[:50]:
                read(thing)

        return run

    found = compare(
        {
            "decode": each_of(lambda each: soundfile.read(str(each.path), dtype="float32"), order),
            "read_sound": each_of(lambda each: read_sound(each.path), order),
            "sounds": each_of(lambda each: each.sound(RATE), [sounds[at] for at in at_random]),
            "views": each_of(sounds[0].kept.arrays.get, list(sounds[0].kept.arrays.places)),
            "tokens": each_of(tokens.segment, order),
        },
        rounds=7,
        seconds=2.0,
    )
    rate = {name: 50 / milliseconds * 1e3 for name, milliseconds in found.items()}
    print("\nclips of 4 s a second: " + ", ".join(f"{name} {value:,.0f}" for name, value in rate.items()))
    print(f"kept sound {rate['sounds'] / rate['decode']:.1f} x FLAC, tokens {rate['tokens'] / rate['decode']:.1f} x FLAC, ", end="")
    print(f"read_sound {100 * (rate['decode'] / rate['read_sound'] - 1):.1f} % over the decoder")
    assert rate["read_sound"] / rate["decode"] > 1 / 1.05 / MARGIN
    assert rate["sounds"] / rate["decode"] > 30 / MARGIN
    assert rate["tokens"] / rate["decode"] > 30 / MARGIN


@pytest.mark.parametrize(("own_hz", "rate_hz", "goal"), [(44_100, 16_000, 1.4), (16_000, 24_000, 1.0)])
def test_resampling_beside_torchaudio(own_hz, rate_hz, goal):
    pytest.importorskip("soxr")
    resample = pytest.importorskip("torchaudio").functional.resample
    time_n = np.arange(own_hz * SECONDS) / own_hz
    sound = Sound((0.5 * np.sin(2 * np.pi * 1000 * time_n)).astype(np.float32), own_hz)
    wave_n = torch.from_numpy(sound.wave_n)
    theirs_n, ours_n = resample(wave_n, own_hz, rate_hz).numpy(), sound.at(rate_hz).wave_n
    assert np.abs(theirs_n - ours_n)[1000:-1000].max() < 0.01
    found = compare({"torchaudio": lambda: resample(wave_n, own_hz, rate_hz), "soxr": lambda: sound.at(rate_hz)}, seconds=1.0)
    print(f"\n4 s from {own_hz} to {rate_hz} Hz: soxr {found['soxr']:.2f} ms, {found['torchaudio'] / found['soxr']:.1f} x torchaudio")
    assert found["torchaudio"] / found["soxr"] > goal / MARGIN
