"""wav2vec 2.0, HuBERT, WavLM and XLS-R: torchaudio's models with weights of your own, computed in the form that a CPU does fast.

The convolutions are products of matrices over overlapping views of the samples, channels last; sounds that are read together stand one
after the other without padding, so that every linear layer is one product and only attention goes sound by sound. Layers beyond the
chosen one are left out. The frames are those of `extract_features` of torchaudio for the sound with zeros appended up to the end of
its last frame. Speed beside torchaudio: tests/bench/test_speech_encoders.py.

Sources: arXiv:2006.11477 (wav2vec 2.0), arXiv:2106.07447 (HuBERT), arXiv:2110.13900 (WavLM), arXiv:2111.09296 (XLS-R).

Axes: n samples   t frames   c channels   h heads   k channels of a head
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import CheckpointError, RecipeError, require
from mmlm.encoders.config import Wav2Vec2Config
from mmlm.encoders.speech import SpeechEncoder
from mmlm.sound import Sound
from mmlm.weights import read_foreign_tensors

RECEPTIVE = 400  # samples that the first frame sees
BLOCK = 4096  # frames whose norm is taken together, so that they stay in the cache


class Wav2Vec2Encoder(SpeechEncoder):
    """Frames of one layer, 50 a second."""

    hop = 320

    def __init__(self, config: Wav2Vec2Config, inputs: int | None = None) -> None:
        super().__init__(config)
        self.model, self.is_normalized = _load(config)
        layers = self.model.encoder.transformer.layers
        self.layer = len(layers) if config.layer is None else config.layer
        if self.layer > len(layers):
            raise RecipeError(f"layer: must be at most {len(layers)}, the layers of {config.model}, but is {self.layer}.")
        del layers[self.layer :]
        self.size = layers[0].attention.embed_dim
        self.eval().requires_grad_(False)

    def prepare(self, sound: Sound) -> Tensor:
        """Samples [n] at 16 kHz, of mean 0 and variance 1 for the models that were trained so."""
        wave_n = super().prepare(sound)
        return F.layer_norm(wave_n, wave_n.shape) if self.is_normalized else wave_n

    def read(self, waves: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Frames [t, size] of each piece."""
        model: Any = self.cast(self.model, dtype)
        parts = [convolved(model.feature_extractor, wave_n.to(dtype)) for wave_n in waves]
        return list(_transformed(model.encoder, torch.cat(parts), [len(part) for part in parts]).split([len(part) for part in parts]))


def convolved(extractor: Any, wave_n: Tensor) -> Tensor:
    """The convolutional front of a model: samples -> [ceil(n / 320), c]."""
    hop = Wav2Vec2Encoder.hop
    end = -(-len(wave_n) // hop) * hop + RECEPTIVE - hop
    x_tc = F.pad(wave_n, (0, end - len(wave_n)))[:, None]
    for layer in extractor.conv_layers:
        x_tc = _strided(layer.conv, x_tc)
        if isinstance(layer.layer_norm, nn.GroupNorm):
            x_tc = _normed_over_time(layer.layer_norm, x_tc)
        elif layer.layer_norm is not None:
            norm = layer.layer_norm
            x_tc = F.layer_norm(x_tc, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        x_tc = F.gelu(x_tc)
    return x_tc


def _strided(conv: nn.Conv1d, x_tc: Tensor) -> Tensor:
    """A convolution without padding as one product: row t of the left matrix is the window of output t, seen without a copy."""
    size, stride, channels = conv.kernel_size[0], conv.stride[0], x_tc.shape[1]
    count = (len(x_tc) - size) // stride + 1
    windows = x_tc.contiguous().as_strided((count, size * channels), (stride * channels, 1))
    weight = conv.weight.permute(2, 1, 0).reshape(size * channels, -1)
    return windows @ weight if conv.bias is None else torch.addmm(conv.bias, windows, weight)


def _normed_over_time(norm: nn.GroupNorm, x_tc: Tensor) -> Tensor:
    """Each channel with the mean and variance of its own, taken in float32; in place."""
    blocks = x_tc.split(BLOCK)
    mean_c = sum(block.sum(0, dtype=torch.float32) for block in blocks) / len(x_tc)
    variance_c = sum((block.float() - mean_c).square().sum(0) for block in blocks) / len(x_tc)
    scale_c = norm.weight.float() * (variance_c + norm.eps).rsqrt()
    shift_c = norm.bias.float() - mean_c * scale_c
    for block in blocks:
        block.copy_(block.float() * scale_c + shift_c)
    return x_tc


def _transformed(encoder: Any, features_tc: Tensor, lengths: list[int]) -> Tensor:
    """The last of the layers, for sounds that stand one after the other."""
    transformer = encoder.transformer
    x_tc = encoder.feature_projection(features_tc)
    x_tc = x_tc + torch.cat([transformer.pos_conv_embed(part[None])[0] for part in x_tc.split(lengths)])
    if transformer.layer_norm_first:  # of the whole: the opposite of that of its layers
        x_tc = transformer.layer_norm(x_tc)
    biases: list[Tensor | None] = [None] * len(lengths)
    for layer in transformer.layers:
        x_tc = x_tc + _attended(layer.attention, layer.layer_norm(x_tc) if layer.layer_norm_first else x_tc, lengths, biases)
        if layer.layer_norm_first:
            x_tc = x_tc + layer.feed_forward(layer.final_layer_norm(x_tc))
        else:
            x_tc = layer.layer_norm(x_tc)
            x_tc = layer.final_layer_norm(x_tc + layer.feed_forward(x_tc))
    return x_tc


def _attended(attention: Any, x_tc: Tensor, lengths: list[int], biases: list[Tensor | None]) -> Tensor:
    """Attention within each sound. biases: WavLM's, of its first layer, which makes them."""
    if not hasattr(attention, "q_proj"):
        parts = []
        for number, part_tc in enumerate(x_tc.split(lengths)):
            found_1tc, biases[number] = attention(part_tc[None], position_bias=biases[number])
            parts.append(found_1tc[0])
        return torch.cat(parts)
    q, k, v = (layer(x_tc).unflatten(-1, (attention.num_heads, -1)) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    return attention.out_proj(attended_by_parts(q, k, v, lengths))


def attended_by_parts(q_thk: Tensor, k_thk: Tensor, v_thk: Tensor, lengths: list[int]) -> Tensor:
    """Attention [t, h * k] of parts that stand one after the other and do not see one another."""
    parts = []
    for part in zip(q_thk.split(lengths), k_thk.split(lengths), v_thk.split(lengths), strict=True):
        q_1htk, k_1htk, v_1htk = (each.transpose(0, 1)[None] for each in part)
        parts.append(F.scaled_dot_product_attention(q_1htk, k_1htk, v_1htk)[0].transpose(0, 1).flatten(1))
    return torch.cat(parts)


def _load(config: Wav2Vec2Config) -> tuple[Any, bool]:
    """The model in torchaudio's form, and whether it wants normalized samples."""
    models = require("torchaudio.models", "speech")
    path = Path(config.path)
    if path.is_dir() and (path / "config.json").is_file():
        model, is_normalized = _of_transformers(path)
    else:
        model = getattr(models, config.model)()
        found = read_foreign_tensors(path)
        own = model.state_dict()
        extra = {name for name in found if name.startswith("aux.")}  # the letters of a recognizer
        found = {_renamed(name): tensor for name, tensor in found.items() if name not in extra}
        if faults := sorted([f"missing {name}" for name in own.keys() - found] + [f"unknown {name}" for name in found.keys() - own]):
            raise CheckpointError(f"{path}: is no {config.model} of torchaudio: {'; '.join(faults[:6])}.")
        try:
            model.load_state_dict(found)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: is no {config.model} of torchaudio: {str(error)[:300]}") from None
        is_normalized = not config.model.endswith("_base") and config.model != "wav2vec2_large"
    nn.utils.parametrize.remove_parametrizations(model.encoder.transformer.pos_conv_embed.conv, "weight")
    return model.eval(), is_normalized


def _renamed(name: str) -> str:
    """Weight norm of older files under its present name."""
    for old, new in (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1")):
        if name.endswith(f".conv.{old}"):
            return name.removesuffix(old) + new
    return name


def _of_transformers(folder: Path) -> tuple[Any, bool]:
    transformers = require("transformers", "hf")
    convert = require("torchaudio.models.wav2vec2.utils", "speech").import_huggingface_model
    try:
        theirs = transformers.AutoModel.from_pretrained(str(folder), local_files_only=True)
        kind = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        return convert(theirs), kind.feat_extract_norm == "layer"
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: is no wav2vec 2.0, HuBERT or WavLM of transformers: {str(error)[:300]}") from None
