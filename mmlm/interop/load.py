"""Any decoder by its folder or hub id."""

from __future__ import annotations

from pathlib import Path

from mmlm.interop.hugging_face import load_hugging_face
from mmlm.model import CONFIG, MultimodalLM, read_json


def load(path: Path | str) -> MultimodalLM:
    """A model ready to use: a run folder, a model folder, or a Hugging Face folder or hub id."""
    folder = Path(path)
    if (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") == "mmlm":
        return MultimodalLM.from_pretrained(folder)
    return load_hugging_face(path)
