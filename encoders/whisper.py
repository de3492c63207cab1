"""The encoder of Whisper, cut to the length of the sound: it was trained on windows of 30 s, filled up with silence, and may be used so.

Frames are taken after any layer; after the last one its norm comes too. Source: arXiv:2212.04356; weights by transformers' names.

Axes: n samples   t frames   c channels   m mel bands   y frequencies
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.base.errors import RecipeError, require
from mmlm.encoders.config import WhisperConfig
from mmlm.encoders.speech import SAMPLE_RATE_HZ, SpeechEncoder
from mmlm.encoders.wav2vec2 import attended_by_parts
from mmlm.encoders.whisper_files import whisper_folder, whisper_tensors
from mmlm.parameters import linear
from mmlm.weights import copy_tensors

FFT_SIZE, MEL_HOP = 400, 160


class WhisperEncoder(SpeechEncoder):
    """Frames of one layer, 50 a second."""

    hop = 2 * MEL_HOP

    def __init__(self, config: WhisperConfig, inputs: int | None = None) -> None:
        super().__init__(config)
        folder = whisper_folder(config.path)
        sizes, tensors = whisper_tensors(folder)
        num_layers = sizes["encoder_layers"]
        self.layer = num_layers if config.layer is None else config.layer
        if self.layer > num_layers:
            raise RecipeError(f"layer: must be at most {num_layers}, the layers of {folder}, but is {self.layer}.")
        self.size, self.most = sizes["d_model"], sizes["max_source_positions"]
        if config.window_seconds * self.rate_hz > self.most:
            raise RecipeError(f"window_seconds: must be at most {float(self.most / self.rate_hz):g}, but is {config.window_seconds:g}.")
        prefix = "model.encoder."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self.model = _Stack(sizes, own["layers.0.fc1.weight"].shape[0])
        copy_tensors(self.model.state_dict(), own, str(folder))
        del self.model.layers[self.layer :]
        if self.layer < num_layers:
            self.model.layer_norm = nn.Identity()
        functional = require("torchaudio.functional", "speech")
        bands_ym = functional.melscale_fbanks(FFT_SIZE // 2 + 1, 0.0, 8000.0, sizes["num_mel_bins"], SAMPLE_RATE_HZ, "slaney", "slaney")
        self.register_buffer("bands_ym", bands_ym, persistent=False)
        self.register_buffer("window_n", torch.hann_window(FFT_SIZE), persistent=False)
        self.eval().requires_grad_(False)

    def read(self, waves: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Frames [t, size] of each piece."""
        model: Any = self.cast(self.model, dtype)
        counts = [-(-len(wave_n) // self.hop) for wave_n in waves]
        read = [self.most if self.config.fill else count for count in counts]
        mels = [self._mel(F.pad(wave_n, (0, count * self.hop - len(wave_n)))) for wave_n, count in zip(waves, read, strict=True)]
        frames = model([mel_mt.to(dtype) for mel_mt in mels]).split(read)
        return [frames_tc[:count] for frames_tc, count in zip(frames, counts, strict=True)]

    def _mel(self, wave_n: Tensor) -> Tensor:
        """Log-mel energies [m, t] as Whisper wants them: 80 dB below the loudest at most, about -1 to 1."""
        spectrum_yt = torch.stft(wave_n, FFT_SIZE, MEL_HOP, window=self.window_n, return_complex=True)[:, :-1]
        log_mt = torch.log10((self.bands_ym.T @ spectrum_yt.abs().square()).clamp(min=1e-10))
        return (torch.maximum(log_mt, log_mt.max() - 8) + 4) / 4


class _Stack(nn.Module):
    """Two convolutions, positions and layers; names of parameters as in transformers."""

    def __init__(self, sizes: dict[str, int], hidden: int) -> None:
        super().__init__()
        width = sizes["d_model"]
        self.conv1 = nn.Conv1d(sizes["num_mel_bins"], width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(sizes["max_source_positions"], width)
        self.layers = nn.ModuleList(_Layer(width, hidden, sizes["encoder_attention_heads"]) for _ in range(sizes["encoder_layers"]))
        self.layer_norm: nn.Module = nn.LayerNorm(width)

    def forward(self, mels: Sequence[Tensor]) -> Tensor:
        """Frames of pieces [m, 2 t], one after the other."""
        parts = []
        for mel_mt in mels:
            x_ct = F.gelu(self.conv2(F.gelu(self.conv1(mel_mt[None]))))[0]
            parts.append(x_ct.T + self.embed_positions(torch.arange(x_ct.shape[1], device=x_ct.device)))
        x_tc, lengths = torch.cat(parts), [len(part) for part in parts]
        for layer in self.layers:
            x_tc = layer(x_tc, lengths)
        return self.layer_norm(x_tc)


class _Layer(nn.Module):
    """Attention and a feed-forward, each after its norm."""

    def __init__(self, width: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = _Attention(width, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = linear(width, hidden, "speech", "speech_hidden", bias=True)
        self.fc2 = linear(hidden, width, "speech_hidden", "speech", bias=True)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x_tc: Tensor, lengths: list[int]) -> Tensor:
        x_tc = x_tc + self.self_attn(self.self_attn_layer_norm(x_tc), lengths)
        return x_tc + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x_tc))))


class _Attention(nn.Module):
    """Projections around attention within each piece; keys have no bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = linear(width, width, "speech", "speech", bias=True)
        self.k_proj = linear(width, width, "speech", "speech", bias=False)
        self.v_proj = linear(width, width, "speech", "speech", bias=True)
        self.out_proj = linear(width, width, "speech", "speech", bias=True)

    def forward(self, x_tc: Tensor, lengths: list[int]) -> Tensor:
        q, k, v = (layer(x_tc).unflatten(-1, (self.num_heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attended_by_parts(q, k, v, lengths))
