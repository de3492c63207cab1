"""A codec for tests of tasks that need one: small, saved, with first weights."""

from __future__ import annotations

from pathlib import Path

import torch

from mmlm.tokenizers.config import SmallCodecConfig


def save_codec(folder: Path) -> None:
    """Two books of eight entries, 16 kHz, 50 tokens a second."""
    torch.manual_seed(0)
    config = SmallCodecConfig(
        num_books=2, book_size=8, width=16, encoder_blocks=1, decoder_blocks=1, fine_blocks=1, latent_size=8, mel_bands=20
    )
    codec = config.build()
    codec.begin().eval()
    codec.save(folder)
