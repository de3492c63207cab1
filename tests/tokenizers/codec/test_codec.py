"""Codecs: lengths, batches, pieces, files; the same for all that are trained here."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.base.registry import Component
from mmlm.base.schema import check
from mmlm.sound import Sound
from mmlm.tokenizers.codec import base
from mmlm.tokenizers.codec.streaming import StreamingDecoder
from mmlm.tokenizers.config import TOKENIZERS
from mmlm.tokenizers.trained import CONFIG

KINDS = {
    "small": {"type": "small_codec", "num_books": 3, "book_size": 16},
    "causal": {"type": "small_codec", "num_books": 3, "book_size": 16, "causal": True},
    "fsq": {"type": "small_codec", "quantizer": {"type": "fsq", "levels": [5, 4]}},
    "lfq": {"type": "small_codec", "quantizer": {"type": "lfq", "bits": 4}},
    "groups": {"type": "single_codec", "group_size": 8, "kept": [4, 4]},
    "single": {"type": "single_codec", "kept": [4, 4], "stage_one": 0.0},
    "waveform": {
        "type": "single_codec", "group_size": 8, "kept": [4, 4], "network": "waveform", "channels": 2, "strides": [4, 5], "hop": 20,
        "latent_size": 8,
    },
}  # fmt: skip
TINY = {"hop": 32, "window": 64, "mel_bands": 20, "width": 16, "encoder_blocks": 1, "decoder_blocks": 2, "fine_blocks": 1, "latent_size": 8}


def config(kind: str, **more) -> Component:
    raw = {**({} if kind == "waveform" else TINY), **KINDS[kind], **more}
    return check(TOKENIZERS.get(raw["type"]), raw, "test")


def built(kind: str, **more):
    """A codec with random weights whose entries are about as large as its vectors."""
    codec = config(kind, **more).build()
    torch.manual_seed(0)
    model = codec.begin().eval()
    for module in model.quantizer.modules():
        if hasattr(module, "vectors_sd"):
            module.vectors_sd.data.normal_(std=0.5)
    return codec


@pytest.fixture(scope="module", params=sorted(KINDS))
def codec(request):
    return built(request.param)


def sound(size: int, seed: int = 0, rate: int = 16000) -> Sound:
    g = np.random.default_rng(seed)
    return Sound((g.normal(size=size) * np.sin(np.arange(size) / 50) * 0.2).astype(np.float32), rate)


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 640, 1999])
def test_a_sound_of_n_samples_gives_ceil_n_over_hop_tokens_and_n_samples_again(codec, size):
    segment = codec.encode(sound(size))
    assert segment.modality == "codec" and segment.ids.dtype == torch.long
    assert segment.ids.shape == (-(-size // codec.hop), codec.num_books)
    assert Fraction(*segment.rate_hz) == Fraction(16000, codec.hop) == codec.token_rate
    again = codec.decode(segment)
    assert len(again.wave_n) == size and again.rate_hz == 16000 and np.isfinite(again.wave_n).all()
    assert len(codec.decode(segment.ids).wave_n) == len(segment) * codec.hop
    assert all(int(segment.ids[:, number].max()) < size for number, size in enumerate(codec.sizes.values()))
    assert list(codec.sizes) == [f"codec.{number}" for number in range(codec.num_books)]


def test_sounds_in_a_batch_are_coded_as_each_by_itself(codec):
    sounds = [sound(size, seed) for seed, size in enumerate((1, 700, 640, 333, 1200))]
    together = codec.encode_many(sounds)
    for one, segment in zip(sounds, together, strict=True):
        assert torch.equal(codec.encode(one).ids, segment.ids)
    decoded = codec.decode_many(together)
    for segment, out in zip(together, decoded, strict=True):
        np.testing.assert_allclose(codec.decode(segment).wave_n, out.wave_n, atol=1e-5)


def test_long_sounds_in_pieces_are_coded_as_whole_ones(codec, monkeypatch):
    long = sound(200 * codec.hop + 7)
    segment = codec.encode(long)
    whole = codec.decode(segment)
    monkeypatch.setattr(base, "PIECE", 13)
    assert torch.equal(codec.encode(long).ids, segment.ids)
    np.testing.assert_allclose(codec.decode(segment).wave_n, whole.wave_n, atol=1e-5)


def test_silence_and_another_rate_are_coded(codec):
    assert len(codec.encode(Sound(np.zeros(1000, np.float32), 16000)).ids) == -(-1000 // codec.hop)
    segment = codec.encode(sound(1000, rate=8000))
    assert len(codec.decode(segment).wave_n) == 2000


def test_a_saved_codec_is_the_same_codec(codec, tmp_path):
    codec.save(tmp_path / "tokenizers" / "codec")
    again = type(codec)(check(type(codec.given), {"type": codec.given.type, "path": str(tmp_path)}, "test"))
    assert again.is_fitted and again.sizes == codec.sizes and again.hop == codec.hop
    assert torch.equal(again.encode(sound(999)).ids, codec.encode(sound(999)).ids)
    assert again.fingerprint == codec.fingerprint
    name, tensor = next(iter(again.model.state_dict().items()))
    tensor.flatten()[0] += 1
    assert again.fingerprint != codec.fingerprint, name


def test_pushed_codes_give_the_samples_of_all_codes_at_once(codec):
    codes = codec.encode(sound(150 * codec.hop)).ids
    whole = codec.decode(codes).wave_n
    g = np.random.default_rng(0)
    stream = StreamingDecoder(codec)
    for _ in range(2):  # flush makes it new
        parts, at = [], 0
        while at < len(codes):
            step = int(g.integers(1, 12))
            parts.append(stream.push(codes[at : at + step]))
            at += step
            if at < stream.tokens_to_first_sample:
                assert sum(map(len, parts)) == 0
        assert sum(map(len, parts)) > 0
        parts.append(stream.flush())
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    stream.push(codes[:20])
    assert len(stream.flush(num_samples=20 * codec.hop - 5)) <= 20 * codec.hop - 5


def test_a_stream_keeps_little_and_refuses_another_number_of_books():
    codec = built("causal")
    stream = StreamingDecoder(codec)
    codes = codec.encode(sound(400 * codec.hop)).ids
    for at in range(0, 400, 10):
        stream.push(codes[at : at + 10])
    assert len(stream._kept) < stream.past + 15
    with pytest.raises(DataError, match="codes of 2 books cannot follow codes of 3"):
        stream.push(codes[:5, :2])
    assert stream.tokens_to_first_sample == 1 and StreamingDecoder(built("small")).tokens_to_first_sample > 5


def test_a_causal_codec_knows_nothing_of_what_comes():
    codec = built("causal")
    wave = sound(3200)
    changed = wave.wave_n.copy()
    changed[1600:] = sound(1600, seed=5).wave_n
    assert torch.equal(codec.encode(wave).ids[:50], codec.encode(Sound(changed, 16000)).ids[:50])
    codes = codec.encode(wave).ids
    part, whole = codec.decode(codes[:50]).wave_n, codec.decode(codes).wave_n
    np.testing.assert_allclose(
        part[: -codec.model.decoder.ahead_samples], whole[: len(part)][: -codec.model.decoder.ahead_samples], atol=1e-5
    )
    assert codec.model.decoder.ahead_samples < 64
    other = built("small")
    assert not torch.equal(other.encode(wave).ids[:50], other.encode(Sound(changed, 16000)).ids[:50])


def test_fewer_books_are_the_first_of_all():
    codec = built("small")
    every = codec.encode(sound(1000)).ids
    assert torch.equal(codec.encode(sound(1000), num_books=2).ids, every[:, :2])
    assert built("small", encode_books=1).sizes == {"codec.0": 16}
    assert len(codec.decode(every[:, :1]).wave_n) == len(every) * codec.hop


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (lambda codec: codec.encode(Sound(np.zeros(0, np.float32), 16000)), DataError, "a sound without samples has no codes"),
        (lambda codec: codec.encode(Sound(np.full(9, np.nan, np.float32), 16000)), DataError, "holds samples that are not finite"),
        (lambda codec: codec.encode("a.wav"), DataError, "a codec reads a Sound, but this is str"),
        (lambda codec: codec.encode(sound(9), num_books=4), DataError, "num_books must be from 1 to 3, but is 4"),
        (lambda codec: codec.decode(torch.zeros(5, 4).long()), DataError, r"codes must be \[tokens, 1 to 3 books\], but are \[5, 4\]"),
        (lambda codec: codec.decode(torch.full((5, 1), 16)), DataError, "codes must lie from 0 to 15, but reach from 16 to 16"),
        (lambda codec: config("small").build().encode(sound(9)), DataError, "has no weights yet: train it by a recipe with the task codec"),
        (lambda codec: built("small", encode_books=4).sizes, RecipeError, "encode_books is 4, but the codec has 3"),
        (lambda codec: config("small", window=100), RecipeError, r"window \(100\) must be a multiple of half the hop \(16\)"),
        (lambda codec: config("groups", kept=[9, 4]), RecipeError, r"kept \(9\) must be at most group_size \(8\)"),
        (lambda codec: config("waveform", hop=40), RecipeError, r"strides \[4, 5\] must multiply to the hop \(40\), but give 20"),
        (lambda codec: config("small", path="x"), RecipeError, "num_books: has no effect"),
    ],
)
def test_what_cannot_be_done_says_why(do, error, message):
    with pytest.raises(error, match=message):
        do(built("small"))


def test_a_folder_without_the_codec_says_so(tmp_path):
    small = {"type": "small_codec", "path": str(tmp_path)}
    with pytest.raises(CheckpointError, match="holds no codec; give a run that trained one"):
        _ = check(TOKENIZERS.get("small_codec"), small, "test").build().sizes
    built("single").save(tmp_path)
    with pytest.raises(CheckpointError, match="is of the type 'single_codec', but the recipe's tokenizer is 'small_codec'"):
        _ = check(TOKENIZERS.get("small_codec"), small, "test").build().sizes
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        _ = check(TOKENIZERS.get("small_codec"), small, "test").build().sizes
