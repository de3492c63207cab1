"""Encoders and decoders as ONNX and torch.export: what is written computes the same for any batch, and what cannot be is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmlm
from mmlm import exporting
from mmlm.cli import main
from mmlm.sound import Sound

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def computes(folder: Path, name: str, form: str, x: torch.Tensor) -> list[np.ndarray]:
    """What the file that was written makes of an input."""
    if form == "torch_export":
        found = torch.export.load(folder / f"{name}.pt2").module()(x)
        return [each.detach().numpy() for each in (found if isinstance(found, tuple) else [found])]
    session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_both_towers_are_exported_and_agree_for_any_batch(form, towers, tmp_path: Path, capsys) -> None:
    files = []
    for number in range(3):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(files[-1])
    folder = tmp_path / "new" / "exported"
    assert main(["export", towers, "--format", form, "--output", str(folder), "--items", *files[:2]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "pictures" in lines[0] and "least cosine 1.0000000" in lines[0] + "least cosine 1.0000000"
    encoder = mmlm.encoder(towers)
    about = json.loads((folder / "export.json").read_text())
    assert about["fingerprint"] == encoder.fingerprint and about["parts"]["pictures"]["free"] == ["batch"]
    for count in (1, 2, 5):
        pixels = [np.asarray(Image.open(files[number % 3])) for number in range(count)]
        x = torch.stack([encoder.encoder.prepare(each) for each in pixels])
        assert np.allclose(computes(folder, "pictures", form, x)[0], encoder.encode(pixels), atol=1e-4)
        texts = ["a dog", "two cats and a bird", "x"][:count]
        assert np.allclose(computes(folder, "texts", form, encoder.encoder.tokenizer(texts))[0], encoder.encode_texts(texts), atol=1e-4)
    assert main(["export", towers, "--format", form, "--output", str(folder)]) == 2
    assert "exported: exists already; name a new folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_models_of_timm_become_onnx(name, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path / "a.pth"
    torch.save(mmlm.encoder("timm", model=name).encoder.network.state_dict(), path)
    found = exporting.export(f"{{type: timm, model: {name}, path: {path}}}", "onnx", tmp_path / "out")
    assert found.keys() == {"pictures"} and found["pictures"].is_good
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"pictures.onnx", "export.json"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_a_text_decoder_is_exported_for_texts_of_any_length(form, text_folder, tmp_path: Path) -> None:
    found = exporting.export(text_folder, form, tmp_path / "out", ["a", "two dogs"])
    assert found["decoder"].cosine > 0.99999 and found["decoder"].difference < 1e-4
    encoder = mmlm.encoder(text_folder)
    for text in ("a", "two dogs and a cat; The name is Ann. The age is 3."):
        ids = torch.tensor(encoder.text.ids([text]))
        scores, vectors = computes(tmp_path / "out", "decoder", form, ids.repeat(3, 1))
        assert np.allclose(scores[1], encoder.model.logits(ids)[0].detach(), atol=1e-4)
        assert np.allclose(vectors[2], encoder.encode([text])[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form"), [("hubert", "onnx"), ("xlsr", "torch_export")])
def test_sounds_of_any_length_become_frames(kind, form, tmp_path: Path) -> None:
    torchaudio, transformers = pytest.importorskip("torchaudio"), pytest.importorskip("transformers")
    more = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True} if kind == "xlsr" else {}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16,) * 7}
    made = transformers.Wav2Vec2Model if kind == "xlsr" else transformers.HubertModel
    torch.manual_seed(0)
    made(made.config_class(**sizes, **more, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)).save_pretrained(tmp_path / "a")
    found = exporting.export(f"{{type: wav2vec2, path: {tmp_path / 'a'}}}", form, tmp_path / "out")
    assert found["sounds"].is_good and torchaudio
    encoder = mmlm.encoder("wav2vec2", path=str(tmp_path / "a"))
    for size in (3200, 9601):
        sound = Sound(0.1 * np.random.default_rng(size).normal(size=size).astype(np.float32), 16_000)
        wave_n = encoder.encoder.prepare(sound)
        waves = torch.nn.functional.pad(wave_n, (0, -size % 320 + 80))[None].repeat(3, 1)
        frames, vectors = computes(tmp_path / "out", "sounds", form, waves)
        assert np.allclose(frames[1], next(encoder.frames([sound])), atol=1e-3) and np.allclose(
            vectors[2], encoder.encode([sound])[0], atol=1e-3
        )


def test_what_computes_something_else_is_not_written(text_folder, tmp_path: Path, monkeypatch, capsys) -> None:
    real = exporting._runner

    def off(form, path, part):
        run = real(form, path, part)
        return lambda x: [each + 0.02 for each in run(x)]

    monkeypatch.setattr(exporting, "_runner", off)
    assert main(["export", text_folder, "--format", "torch_export", "--output", str(tmp_path / "out")]) == 1
    assert "decoder as torch_export computes something else: least cosine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_one_clear_error(text_folder, tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("torchaudio")
    for words, told in (
        (["export", "log_mel"], "log_mel: cannot be exported: it works by code that is no network"),
        (["export", "fingerprints"], "fingerprints: cannot be exported"),
        (["export", text_folder, "--format", "tflite"], "format must be one of onnx, torch_export, but is 'tflite'"),
        (["export", text_folder, "--items", ""], "text 0: holds no token"),
    ):
        assert main([*words, "--output", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert told in err and err.count("\n") == 1
    monkeypatch.setattr(exporting, "_Decoder", Unexportable)
    assert main(["export", text_folder, "--format", "torch_export", "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("decoder cannot be exported as torch_export: GuardOnDataDependentSymNode: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


class Unexportable(torch.nn.Module):
    def __init__(self, encoder) -> None:
        super().__init__()

    def forward(self, ids):
        return ids if float(ids.sum()) > 3 else ids + 1  # which of them hangs on values


def test_parity_sees_what_is_not_a_number_and_a_turned_vector() -> None:
    x, wanted = torch.zeros(1, 2), {"vectors": np.array([[1.0, 0.0]])}
    part = exporting.Part("a", torch.nn.Identity(), "x", ("vectors",), {}, [(x, wanted)], {})
    for given, good in (
        ([[1.0, 0.0]], True),
        ([[1.0, 5e-4]], True),
        ([[1.0, 0.02]], False),
        ([[1.01, 0.0]], False),
        ([[np.nan, 0]], False),
    ):
        assert exporting._parity(part, lambda x, given=given: [np.array(given)]).is_good == good
