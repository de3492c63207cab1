"""Decoders of transformers in and out: their tensors are loaded into our modules, not wrapped.

Read are config.json and safetensors files (one, or shards with an index); transformers itself is not needed. Nothing is fetched unless a
hub id is named.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmlm.base.errors import CheckpointError, unknown_name
from mmlm.base.files import is_hub_id, read_json
from mmlm.interop import bamba, gemma, gpt2, jamba, llama, mamba, nemotron_h, qwen3_next
from mmlm.interop.name_map import Family, check_keys, differences, written_out
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.weights import check_digest, copy_tensors, write_tensors

MODULES = (llama, gpt2, gemma, mamba, jamba, bamba, nemotron_h, qwen3_next)
FAMILIES: dict[str, Family] = {family.model_type: family for module in MODULES for family in module.FAMILIES}
OPTIONAL = re.compile(r"rotary_emb\.inv_freq|\.attn\.(masked_)?bias$|^mtp\.")  # the last: further heads that only guess ahead


def load_hugging_face(name: Path | str) -> MultimodalLM:
    """A decoder from a local folder or a hub id.

    Raises CheckpointError where the family is not known, its config has unknown keys, or a tensor is missing, left over or misshapen.
    """
    folder = local_folder(name)
    where = str(folder / "config.json")
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise CheckpointError(f"{where}: {unknown_name('model type', kind, FAMILIES)}")
    family = FAMILIES[kind]
    check_keys(config, family, where)
    try:
        ours = family.to_ours(config)
    except KeyError as error:
        raise CheckpointError(f"{where}: key {error} is missing.") from None
    except ValidationError as error:
        raise CheckpointError(f"{where}: {'; '.join(fault['msg'] for fault in error.errors())}.") from None
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    model = MultimodalLM(ours)
    rules = family.rules(ours)
    used = {name for rule in rules.values() for name in rule.theirs}
    tensors = _Tensors(folder, rules["embedding.weight"].theirs[0].partition(".")[0])
    left = sorted(name for name in tensors.names - used if not OPTIONAL.search(name))
    if "language_model" in ours.heads and getattr(ours.heads["language_model"], "tied", False):
        left = [name for name in left if name != "lm_head.weight"]
    missing = sorted(used - tensors.names)
    if missing or left:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing ({', '.join(missing[:10])}) and "
            f"{len(left)} are not known ({', '.join(left[:10])})."
        )
    copy_tensors(model.state_dict(), {name: rule.read(tensors.get) for name, rule in rules.items()}, str(folder))
    return model.eval()


def save_hugging_face(model: MultimodalLM, folder: Path | str, dtype: torch.dtype | None = None) -> str:
    """Write config.json and model.safetensors that transformers reads; returns the model type.

    Raises CheckpointError where no family has this architecture, with what the nearest one would change, and RecipeError while adapters are
    attached.
    """
    folder = Path(folder)
    model.refuse_adapters()
    if model.encoders or model.channels or list(model.heads) != ["language_model"]:
        raise CheckpointError("only a plain decoder with one language-model head has a counterpart in transformers.")
    family, config, theirs = _counterpart(model.config)
    own = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for name, rule in family.rules(config).items():
        rule.write(own[name], tensors)
    if dtype is not None:  # only now: norms that store their distance from one keep more of it
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    kept = next(iter(tensors.values())).dtype
    about = {"architectures": [family.architecture], "model_type": family.model_type, "dtype": str(kept).removeprefix("torch."), **theirs}
    about["eos_token_id"] = model.stop[0] if len(model.stop) == 1 else list(model.stop) or None  # else that of the family would end texts
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    write_tensors(folder / "model.safetensors", tensors)
    return family.model_type


def _counterpart(config: ModelConfig) -> tuple[Family, ModelConfig, dict[str, Any]]:
    """The family that has an architecture, the config written out, and the family's own."""
    config, nearest = written_out(config), None
    for family in FAMILIES.values():
        try:
            theirs = family.to_theirs(config)
            changed = [] if theirs is None else differences(family.to_ours(theirs), config)
        except CheckpointError as error:
            theirs, changed = {}, [str(error)]
        if theirs is not None and not changed:
            return family, config, theirs
        if changed and (nearest is None or len(changed) < len(nearest[1])):
            nearest = family.model_type, changed
    told = f"no family of transformers that is known here has this architecture; known: {', '.join(FAMILIES)}"
    near = "" if nearest is None else f" Nearest is {nearest[0]}, but {', '.join(nearest[1][:3])}."
    raise CheckpointError(f"{told}.{near}")


def local_folder(name: Path | str, revision: str | None = None) -> Path:
    """The folder of a local name or hub id, fetched if need be. revision: branch, tag or commit on the hub; default its newest state.

    Raises CheckpointError where there is none.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or not is_hub_id(str(name)):
        raise CheckpointError(f"{name}: no such folder (a run must be trained first), and no hub id of the form owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(f"{name}: no such folder, and no model of the hub that can be read: {type(error).__name__}.") from None


def _shards(index: Path) -> list[str]:
    """The files that an index names. Raises CheckpointError for a name that is not that of a file beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(each, str) for each in names.values()):
        raise CheckpointError(f"{index}: must hold weight_map, the file of each tensor.")
    for each in names.values():
        if Path(each).name != each or not each.endswith(".safetensors"):
            raise CheckpointError(f"{index}: shard {each[:80]!r} is not in the folder.")
    return sorted(set(names.values()))


class _Tensors:
    """Tensors of a folder by name, read when they are asked for.

    stem: what names of the decoder begin with; a file that was written without the head, as GPT-2's own was, has none that does.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        index = folder / "model.safetensors.index.json"
        names = _shards(index) if index.is_file() else ["model.safetensors"]
        held: dict[str, Path] = {}
        for file in names:
            path = (folder / file).resolve()  # the hub's cache links to files elsewhere
            if not path.is_file():
                raise CheckpointError(f"{path}: no such file.")
            try:
                with safe_open(str(path), "pt") as opened:
                    held |= dict.fromkeys(opened.keys(), path)
                check_digest(path)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: broken weight file: {error}.") from None
        self._skip = 0 if any(name.startswith(f"{stem}.") for name in held) else len(stem) + 1  # letters that names lack
        self._files = {f"{stem}.{name}" if self._skip else name: path for name, path in held.items()}
        self.names = set(self._files)

    def get(self, name: str) -> Tensor:
        with safe_open(str(self._files[name]), "pt") as opened:
            return opened.get_tensor(name[self._skip :]).float()
