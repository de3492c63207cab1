"""Units: the same sounds give the same ones, whatever batch, stream or file they went through; no run is shortened by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError
from mmlm.encoders.config import LogMelConfig
from mmlm.sound import Sound
from mmlm.tokenizers.clustering import fit_centroids, nearest
from mmlm.tokenizers.config import UnitsConfig
from mmlm.tokenizers.units import UnitClassifier, UnitTokenizer, dedup, expand

pytest.importorskip("torchaudio")
SMALL = UnitsConfig(num_units=8, fit_frames=1000, encoder=LogMelConfig(num_bands=12, context=1))


def tones(seed: int, seconds: float = 1.0) -> Sound:
    """Notes of 0.1 s from a scale of eight, a little noisy."""
    rng = np.random.default_rng(seed)
    hertz_n = np.repeat(300 * 1.3 ** rng.integers(8, size=round(seconds * 10)), 1600)
    wave_n = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz_n) / 16_000) + 0.003 * rng.normal(size=len(hertz_n))
    return Sound(wave_n.astype(np.float32), 16_000)


@pytest.fixture(scope="module")
def fitted() -> UnitTokenizer:
    return UnitTokenizer(SMALL).fit([tones(seed) for seed in range(20)])


def classified(fitted: UnitTokenizer) -> UnitTokenizer:
    """The same with a classifier of random weights."""
    found = UnitTokenizer(fitted.config)
    found.mean_f, found.scale_f, found.centroids_kf = fitted.mean_f, fitted.scale_f, fitted.centroids_kf
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found.classifier = UnitClassifier(36, 8, hidden=16, context=2).eval()
    return found


def test_centroids_find_the_heaps_and_leave_none_empty() -> None:
    generator = torch.Generator().manual_seed(0)
    heaps_kf = 10 * torch.randn(20, 5, generator=generator)
    vectors_nf = heaps_kf.repeat_interleave(60, 0) + 0.1 * torch.randn(1200, 5, generator=generator)
    found_kf = fit_centroids(vectors_nf, 20, iterations=30, generator=torch.Generator().manual_seed(1))
    at, distance_n = nearest(vectors_nf, found_kf)
    assert len(at.unique()) == 20 and float(distance_n.max()) < 1
    wanted = torch.cdist(vectors_nf, found_kf).argmin(1)
    assert torch.equal(at, wanted)


def test_a_centroid_that_nothing_is_near_to_moves_to_the_farthest_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_nf = torch.tensor([[100.0], [100.1], [105.0], [105.1], [150.0]])
    monkeypatch.setattr("mmlm.tokenizers.clustering._first", lambda *_: torch.tensor([[100.0], [105.0], [1000.0]]))
    found = fit_centroids(vectors_nf, 3, iterations=10, generator=torch.Generator())
    torch.testing.assert_close(found.sort(0).values, torch.tensor([[100.05], [105.05], [150.0]]))


def test_fewer_different_vectors_than_centroids_are_told() -> None:
    with pytest.raises(DataError, match="3 units need as many different frames, but there are 2"):
        fit_centroids(torch.tensor([[1.0], [2.0]]).repeat(50, 1), 3, iterations=5, generator=torch.Generator())


def test_the_seed_decides_the_units(fitted: UnitTokenizer) -> None:
    again = UnitTokenizer(SMALL).fit([tones(seed) for seed in range(20)])
    other = UnitTokenizer(SMALL.model_copy(update={"seed": 1})).fit([tones(seed) for seed in range(20)])
    assert torch.equal(again.centroids_kf, fitted.centroids_kf) and again.fingerprint == fitted.fingerprint
    assert other.fingerprint != fitted.fingerprint


def test_frames_beyond_the_most_are_drawn_evenly(fitted: UnitTokenizer) -> None:
    small = UnitTokenizer(SMALL.model_copy(update={"fit_frames": 1000, "standardize": False}))
    frames = torch.cat(list(small._sampled([tones(seed, 2.0) for seed in range(60)], torch.Generator().manual_seed(0), None)))
    everything = torch.cat(list(small.encoder.frames([tones(seed, 2.0) for seed in range(60)])))
    assert len(everything) == 6000 and len(frames) == 1000
    place = {tuple(row): number for number, row in enumerate(everything.tolist())}
    places = [place[tuple(row)] for row in frames.tolist()]
    assert places == sorted(places) and all(np.histogram(places, bins=6, range=(0, 6000))[0] > 80) and len(set(places)) == 1000


def test_there_is_a_unit_for_every_frame_and_a_rate(fitted: UnitTokenizer) -> None:
    segment = fitted.encode(tones(99, 0.7))
    assert segment.modality == "unit" and segment.rate_hz == (50, 1) and len(segment) == 35 and segment.weight == 1.0
    assert fitted.sizes == {"unit": 8} and int(segment.ids.max()) < 8
    assert bool((segment.ids[1:] == segment.ids[:-1]).any()), "runs are kept"


@pytest.mark.parametrize("kind", ["centroids", "classifier"])
def test_batches_streams_and_files_change_no_unit(fitted: UnitTokenizer, kind: str, tmp_path: Path) -> None:
    tokenizer = fitted if kind == "centroids" else classified(fitted)
    sounds = [tones(seed, seconds) for seed, seconds in ((1, 0.5), (2, 1.3), (3, 0.1))]
    alone = [tokenizer.encode(sound).ids for sound in sounds]
    assert all(torch.equal(one, other.ids) for one, other in zip(alone, tokenizer.encode_many(sounds, batch_size=3), strict=True))
    tokenizer.save(tmp_path)
    loaded = UnitTokenizer(UnitsConfig(path=str(tmp_path)))
    assert loaded.fingerprint == tokenizer.fingerprint and loaded.config == tokenizer.config
    assert all(torch.equal(one, loaded.encode(sound).ids) for one, sound in zip(alone, sounds, strict=True))
    for parts in (1, 7, 40):
        for ids, sound in zip(alone, sounds, strict=True):
            stream = tokenizer.stream()
            given = [stream.push(part) for part in np.array_split(sound.wave_n, parts)]
            assert torch.equal(torch.cat([*given, stream.flush()]), ids)


def test_a_classifier_has_a_fingerprint_of_its_own(fitted: UnitTokenizer) -> None:
    assert classified(fitted).fingerprint != fitted.fingerprint


def test_runs_are_shortened_on_request_and_come_back() -> None:
    units = torch.tensor([3, 3, 1, 1, 1, 3, 0])
    short, lengths = dedup(units)
    assert short.tolist() == [3, 1, 3, 0] and lengths.tolist() == [2, 3, 1, 1]
    assert torch.equal(expand(short, lengths), units) and torch.equal(expand(short, lengths.tolist()), units)
    assert dedup(torch.tensor([], dtype=torch.long))[0].tolist() == []


def test_a_classifier_leaves_out_blanks_in_its_string_and_has_none_among_its_units() -> None:
    classifier = UnitClassifier(1, 2, hidden=4, context=0)
    logits_tk = torch.tensor([[5.0, 0, 1], [5.0, 0, 1], [0, 1, 9.0], [5.0, 0, 1], [0, 5.0, 1]])
    classifier.forward = lambda sounds: logits_tk  # type: ignore[method-assign]
    x_tf = torch.zeros(5, 1)
    assert classifier.string(x_tf).tolist() == [0, 0, 1]
    assert classifier.units(x_tf).tolist() == [0, 0, 0, 0, 1]


def test_what_is_not_fitted_or_damaged_is_told(fitted: UnitTokenizer, tmp_path: Path) -> None:
    empty = UnitTokenizer(SMALL)
    assert not empty.is_fitted and fitted.is_fitted
    with pytest.raises(DataError, match="no units yet"):
        empty.encode(tones(0))
    with pytest.raises(DataError, match="8 units need at least as many frames, but these sounds hold 5"):
        UnitTokenizer(SMALL).fit([tones(0, 0.1)])
    with pytest.raises(CheckpointError, match=r"units\.json: missing or damaged"):
        UnitTokenizer(UnitsConfig(path=str(tmp_path)))
    fitted.save(tmp_path)
    about = (tmp_path / "units.json").read_text()
    (tmp_path / "units.json").write_text(about.replace('"num_bands": 12', '"num_bands": 13').replace('"context": 1', '"context": 2'))
    with pytest.raises(CheckpointError, match="fitted on other weights of the encoder 'log_mel'"):
        UnitTokenizer(UnitsConfig(path=str(tmp_path)))


def test_an_encoder_that_reads_whole_sounds_does_not_stream(fitted: UnitTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fitted.encoder), "can_stream", False)
    with pytest.raises(DataError, match="'log_mel' reads whole sounds"):
        fitted.stream()
