"""EnCodec: the package's codes and waveforms, in pieces too; weights from folders; empty books are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.sound import Sound
from mmlm.tokenizers.codec import encodec as module
from mmlm.tokenizers.codec.encodec import EnCodec
from mmlm.tokenizers.config import EnCodecConfig

pytest.importorskip("encodec")


def sound(size: int, rate: int = 24000, seed: int = 0) -> Sound:
    g = np.random.default_rng(seed)
    time = np.arange(size) / rate
    return Sound((0.2 * np.sin(2 * np.pi * 300 * time) * np.sin(9 * time) + 0.02 * g.normal(size=size)).astype(np.float32), rate)


@pytest.fixture(scope="module")
def mono():
    return EnCodec(EnCodecConfig(bandwidth=6.0)).begin([sound(24000)])


@pytest.fixture(scope="module")
def stereo():
    return EnCodec(EnCodecConfig(model="48khz", bandwidth=6.0)).begin([sound(24000, 48000)])


@pytest.mark.parametrize("size", [1, 319, 320, 7001])
def test_codes_and_waveforms_are_those_of_the_package(mono, size):
    given = sound(size)
    mono.model.set_target_bandwidth(6.0)
    with torch.no_grad():
        ((theirs, _),) = mono.model.encode(torch.from_numpy(given.wave_n)[None, None])
        decoded = mono.model.decode([(theirs, None)])[0, 0, :size]
    segment = mono.encode(given)
    assert mono.num_books == 8 and segment.rate_hz == (75, 1) and segment.ids.shape == (-(-size // 320), 8)
    assert float((segment.ids == theirs[0].T).double().mean()) >= 0.99
    again = mono.decode(segment)
    assert len(again.wave_n) == size
    same = mono.decode(module.Segment("codec", theirs[0].T, tags=segment.tags))
    np.testing.assert_allclose(same.wave_n, decoded.numpy(), atol=1e-5)


def test_pieces_change_nothing_and_a_prefix_of_the_sound_gives_a_prefix_of_the_codes(mono, monkeypatch):
    long = sound(20_000)
    whole = mono.encode(long)
    decoded = mono.decode(whole)
    monkeypatch.setattr(module, "PIECE", 11)
    assert float((mono.encode(long).ids == whole.ids).double().mean()) > 0.995
    np.testing.assert_allclose(mono.decode(whole).wave_n, decoded.wave_n, atol=1e-5)
    assert torch.equal(mono.encode(sound(20_000).cut(0, 6400 / 24000), num_books=2).ids, whole.ids[:20, :2])


@pytest.mark.parametrize("size", [1, 480, 47_520, 48_000, 95_100])
def test_the_48_khz_model_works_on_seconds_that_overlap_and_keeps_their_loudness(stereo, size):
    given = sound(size, 48000)
    stereo.model.set_target_bandwidth(6.0)
    with torch.no_grad():
        theirs = stereo.model.encode(torch.from_numpy(given.wave_n).expand(1, 2, -1))
        decoded = stereo.model.decode(theirs)[0].mean(0)[:size]
    segment = stereo.encode(given)
    assert segment.ids.shape[1] == stereo.num_books == 4
    assert float((segment.ids == torch.cat([codes[0].T for codes, _ in theirs])).double().mean()) >= 0.99
    assert int(segment.tags["samples"].sum()) == size
    again = stereo.decode(segment)
    assert len(again.wave_n) == size
    np.testing.assert_allclose(again.wave_n, decoded.numpy(), atol=1e-3)


def test_every_bandwidth_has_its_books():
    for model, books in (("24khz", {1.5: 2, 3: 4, 6: 8, 12: 16, 24: 32}), ("48khz", {3: 2, 6: 4, 12: 8, 24: 16})):
        for bandwidth, count in books.items():
            assert EnCodec(EnCodecConfig(model=model, bandwidth=bandwidth)).num_books == count
    with pytest.raises(RecipeError, match="bandwidth must be one of 3, 6, 12, 24 for the model 48khz, but is 1.5"):
        EnCodec(EnCodecConfig(model="48khz", bandwidth=1.5))
    with pytest.raises(RecipeError, match="encode_books is 9, but 6 kbit/s have 8"):
        _ = EnCodec(EnCodecConfig(encode_books=9)).sizes


def test_empty_books_are_refused(tmp_path, mono):
    new = EnCodec(EnCodecConfig())
    assert not new.is_fitted
    with pytest.raises(DataError, match="no weights: give `path`, or fill the empty books"):
        new.encode(sound(1000))
    mono.save(tmp_path)
    tensors = module.read_tensors(tmp_path / "codec.safetensors")
    tensors["quantizer.vq.layers.3._codebook.embed"].zero_()
    (tmp_path / "codec.safetensors").write_bytes(b"".join(map(bytes, module.safetensors_bytes(tensors))))
    with pytest.raises(CheckpointError, match="its books are empty, so every code would be 0"):
        EnCodec(EnCodecConfig(path=str(tmp_path))).encode(sound(1000))


def test_what_was_saved_is_read_again_and_another_model_is_refused(mono, tmp_path):
    mono.save(tmp_path)
    again = EnCodec(EnCodecConfig(path=str(tmp_path)))
    assert torch.equal(again.encode(sound(3000)).ids, mono.encode(sound(3000)).ids) and again.fingerprint == mono.fingerprint
    assert EnCodec(EnCodecConfig(path=str(tmp_path), encode_books=2)).fingerprint != mono.fingerprint
    (tmp_path / "codec.json").write_text(json.dumps({"type": "encodec", "model": "48khz"}))
    with pytest.raises(CheckpointError, match="but the recipe asks for encodec, model 24khz"):
        EnCodec(EnCodecConfig(path=str(tmp_path))).encode(sound(3000))


def test_weights_of_transformers_are_read(mono, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.EncodecModel(transformers.EncodecConfig()).eval()
    for layer, own in zip(theirs.quantizer.layers, mono.model.quantizer.vq.layers):
        layer.codebook.embed.copy_(own._codebook.embed)
    theirs.save_pretrained(tmp_path)
    codec = EnCodec(EnCodecConfig(path=str(tmp_path)))
    given = sound(6400)
    with torch.no_grad():
        codes = theirs.encode(torch.from_numpy(given.wave_n)[None, None], bandwidth=6.0).audio_codes[0, 0].T
    assert float((codec.encode(given).ids == codes).double().mean()) >= 0.99


def test_what_cannot_be_coded_says_why(mono):
    for do, message in (
        (lambda: mono.encode(Sound(np.zeros(0, np.float32), 24000)), "a sound without samples has no codes"),
        (lambda: mono.encode(sound(999), num_books=33), "num_books must be from 1 to 32, but is 33"),
        (lambda: mono.decode(torch.full((3, 1), 1024)), "codes must lie from 0 to 1023, but reach from 1024 to 1024"),
        (lambda: mono.decode(torch.zeros(3).long()), r"codes must be \[tokens, 1 to 32 books\], but are \[3\]"),
    ):
        with pytest.raises(DataError, match=message):
            do()
