"""Any decoder by its folder or hub id, and from one format to the other."""

from __future__ import annotations

import shutil
from pathlib import Path

from mmlm.base.errors import CheckpointError
from mmlm.base.files import read_json
from mmlm.interop.hugging_face import load_hugging_face, local_folder, save_hugging_face
from mmlm.model import CONFIG, MultimodalLM
from mmlm.tokenizers.config import TextConfig
from mmlm.tokenizers.text import TextTokenizer

TOKENIZER = "tokenizer.json"


def load(path: Path | str) -> MultimodalLM:
    """A model ready to use, with its text tokenizer, if it has one.

    path: a run folder, a model folder, ours or of transformers, or the hub id of one. Raises CheckpointError for what is none of these.
    """
    folder = local_folder(path)
    if _is_ours(folder):
        model, found = MultimodalLM.from_pretrained(folder), text_tokenizers(folder)
        if len(found) == 1 and "text" in model.vocabulary.ranges:
            model.text = TextTokenizer(TextConfig()).load(found[0].parent)
        return model
    model = load_hugging_face(folder)
    if (folder / TOKENIZER).is_file():
        model.text = TextTokenizer(TextConfig(path=str(folder / TOKENIZER)))
    model.stop = tuple(index for index in _end_ids(folder) if index in range(len(model.vocabulary)))
    return model


def text_tokenizers(folder: Path) -> list[Path]:
    """The files of tokenizers of texts in a folder of ours: those of a run, or the one beside the weights of a model that was passed on."""
    return sorted(folder.glob(f"tokenizers/*/{TOKENIZER}")) or sorted(folder.glob(TOKENIZER))


def _end_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end a text, as the folder of a Hugging Face model tells them; it may name some that the model does not have."""
    for name in ("generation_config.json", CONFIG):
        if (folder / name).is_file() and (ids := read_json(folder / name).get("eos_token_id")) is not None:
            return tuple(ids) if isinstance(ids, list) else (int(ids),)
    return ()


def convert(source: Path | str, destination: Path) -> str:
    """Write a model of ours in the format of transformers, and one of transformers in ours; returns the name of the format written.

    The text tokenizer goes along. Raises CheckpointError where the folder to write is not empty or the model has no counterpart.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination}: exists already; name a new folder.")
    folder = local_folder(source)
    model = load(folder)
    if _is_ours(folder):
        try:
            kind = save_hugging_face(model, destination)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        if found := text_tokenizers(folder):
            shutil.copyfile(found[0], destination / TOKENIZER)
        return kind
    model.save_pretrained(destination)
    if isinstance(model.text, TextTokenizer):
        model.text.save(destination)
    return "mmlm"


def _is_ours(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("model_type") == "mmlm"
