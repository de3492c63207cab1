"""Image encoders of the packages timm and open_clip, with weights from a file, a hub, or none.

Preprocessing and calls are the packages' own, so vectors equal theirs. Axes as in encoders/images.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.base.errors import CheckpointError, RecipeError, nearest, require
from mmlm.encoders.config import OpenClipConfig, TimmConfig, TowersConfig
from mmlm.encoders.images import ImageEncoder, Patches, PictureInput, load_in_order
from mmlm.weights import copy_tensors, read_foreign_tensors

TOKENS = 49408  # of the tokenizer of open_clip

POOLING = ("head", "fc_norm", "attn_pool")  # of a model of timm without classes


class TimmEncoder(ImageEncoder):
    """A model of timm without its classifier. Raises RecipeError for an unknown name and CheckpointError for weights that do not fit."""

    config: TimmConfig

    def __init__(self, config: TimmConfig, inputs: int | None = None) -> None:
        super().__init__(config, inputs)
        timm = require("timm", "vision")
        known = timm.list_models()
        if config.model.split(".")[0] not in known and "/" not in config.model:
            raise RecipeError(f"encoder timm: {config.model!r} is no model of timm {timm.__version__}.{nearest(config.model, known)}")
        is_free = "/" not in config.model and not timm.get_pretrained_cfg(config.model).fixed_input_size  # it reads any size as it is
        sizes = {"img_size": config.image_size} if config.image_size is not None and not is_free else {}
        try:
            with torch.device("cpu"):  # its rules of first weights want numbers
                self.model = timm.create_model(config.model, pretrained=config.pretrained, num_classes=0, **sizes)
        except TypeError as error:
            raise RecipeError(f"encoder timm: {config.model}: takes no image_size ({error}).") from None
        if config.path is not None:
            self._load(config)
        about = timm.data.resolve_model_data_config(self.model)
        if config.image_size is not None:
            about["input_size"] = (3, config.image_size, config.image_size)
        self.transform = timm.data.create_transform(**about, is_training=False)
        self.size = self.patch_size = int(self.model.num_features)
        self.size = int(getattr(self.model, "head_hidden_size", None) or self.size)
        self.needed = round(min(about["input_size"][1:]) / about["crop_pct"])
        self.input = PictureInput(tuple(about["input_size"][1:]), tuple(about["mean"]), tuple(about["std"]))
        if self.is_part:  # what pools patches is asked for nothing there
            for part in (getattr(self.model, name, None) for name in POOLING):
                if part is not None:
                    part.requires_grad_(False)
        self.eval()
        self.place = None if config.layer is None else self._place(config.layer)
        self.complete()

    def _load(self, config: TimmConfig) -> None:
        path = Path(str(config.path))
        found = read_foreign_tensors(path)
        own = self.model.state_dict()
        if config.in_order:
            named = list(found.items())
            load_in_order(own, dict(named[: len(own)]), str(path))  # a classifier may follow
            return
        kept = {name: tensor for name, tensor in found.items() if name in own}
        missing = [name for name in own if name not in kept]
        if missing:
            raise CheckpointError(
                f"{path}: lacks {len(missing)} of {len(own)} tensors, such as {missing[0]}; if it names them otherwise in the same order: "
                "in_order: true."
            )
        self.model.load_state_dict(kept)

    def pooled(self, network: nn.Module, x_bchw: Tensor) -> Tensor:
        """Vectors before the classifier."""
        model: Any = network
        return model.forward_head(model.forward_features(x_bchw), pre_logits=True)

    def patches(self, network: nn.Module, x_bchw: Tensor) -> Patches:
        """The last map, or the tokens behind class and register tokens; of `layer`, if one is chosen."""
        model: Any = network
        if self.place is not None:
            found = model.forward_intermediates(x_bchw, indices=[self.place], stop_early=True, output_fmt="NCHW", intermediates_only=True)
            return _of_map(found[0])
        found = model.forward_features(x_bchw)
        if found.ndim == 4:
            down, across = found.shape[2:] if found.shape[1] == self.patch_size else found.shape[1:3]
            tokens_bnd = found.flatten(2).transpose(1, 2) if found.shape[1] == self.patch_size else found.flatten(1, 2)
        else:
            tokens_bnd = found[:, getattr(model, "num_prefix_tokens", 0) :]
            down, across = model.patch_embed.dynamic_feat_size(x_bchw.shape[2:]) if hasattr(model, "patch_embed") else _square(tokens_bnd)
        pooled_bd = tokens_bnd.mean(1) if self.is_part else model.forward_head(found, pre_logits=True)
        return Patches(tokens_bnd, (int(down), int(across)), pooled_bd)

    @torch.no_grad()
    def _place(self, layer: int) -> int:
        """Number of a layer from 0. In a part of a model those behind it go, as nothing would reach them."""
        model: Any = self.model
        place = layer - 1 if layer > 0 else layer
        try:
            if self.is_part:
                place = model.prune_intermediate_layers(indices=[place], prune_norm=True)[0]
            else:
                model.forward_intermediates(self.blank(), indices=[place], stop_early=True, intermediates_only=True)
        except (AttributeError, AssertionError, IndexError) as error:
            raise RecipeError(f"encoder timm: {self.config.model} gives no layer {layer}: {str(error)[:200]}") from None
        return place

    def insert(self, block: nn.Module) -> None:
        """Before the norm of a vision transformer, class token included."""
        model: Any = self.model
        if not (hasattr(model, "num_prefix_tokens") and isinstance(getattr(model, "norm", None), nn.Module)):
            raise RecipeError(f"encoder timm: {self.config.model} has no tokens before a last norm, where frozen_lm would be put in.")
        model.norm = nn.Sequential(block, model.norm)


class OpenClipEncoder(ImageEncoder):
    """The towers of a model of open_clip: pictures by `encode`, texts by `encode_texts`."""

    config: OpenClipConfig

    def __init__(self, config: OpenClipConfig, inputs: int | None = None) -> None:
        super().__init__(config, inputs)
        self.model, self.transform = _of_sizes(config) if config.sizes is not None else _of_name(config)
        self.tokenizer = require("open_clip", "vision").get_tokenizer(
            config.model if config.sizes is None else "", context_length=self.context
        )
        self.size = int(
            self.model.text_projection.shape[1] if isinstance(self.model.text_projection, Tensor) else self.model.visual.output_dim
        )
        self.patch_size = int(getattr(self.model.visual, "ln_post", nn.LayerNorm(self.size)).normalized_shape[0])
        side = self.model.visual.image_size
        down, across = side if isinstance(side, tuple | list) else (side, side)
        self.needed = int(min(down, across))
        visual = self.model.visual
        self.input = PictureInput((int(down), int(across)), tuple(visual.image_mean), tuple(visual.image_std))
        if self.is_part:  # of both towers a model that reads pictures needs one
            self.model = visual
        self.eval()
        self.places = self._places(visual, -1 if config.layer is None else config.layer)
        self.complete()

    @property
    def context(self) -> int:
        """Most tokens of a text."""
        return int(self.model.context_length)

    def pooled(self, network: nn.Module, x_bchw: Tensor) -> Tensor:
        """Vectors in the space that both towers share."""
        model: Any = network
        return model.encode_image(x_bchw)

    def patches(self, network: nn.Module, x_bchw: Tensor) -> Patches:
        """The tokens of the last layer, or of `layer`, without the class token."""
        model: Any = network
        if self.is_part:
            found = model.forward_intermediates(x_bchw, indices=self.places, stop_early=True, intermediates_only=True)
            return _of_map(found["image_intermediates"][0])
        found = model.forward_intermediates(image=x_bchw, image_indices=self.places)
        return _of_map(found["image_intermediates"][0], found["image_features"])

    @torch.no_grad()
    def _places(self, visual: Any, layer: int) -> int | list[int]:
        """The layer as open_clip has it: a list of numbers from 0, or so many from the end, of which the first is meant. In a part of a
        model those behind it go."""
        places: int | list[int] = -layer if layer < 0 else [layer - 1]
        try:
            visual.forward_intermediates(self.blank(), indices=places)
            if self.is_part and hasattr(visual, "prune_intermediate_layers"):
                places = visual.prune_intermediate_layers(places)[:1]
                visual.prune_intermediate_layers(places, prune_norm=True)
        except (AttributeError, AssertionError, IndexError) as error:
            raise RecipeError(f"encoder open_clip: {self.config.model} gives no layer {layer}: {str(error)[:200]}") from None
        return places

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256, normalize: bool = False) -> np.ndarray:
        """Vectors float32 [texts, size] in the space that both towers share, in their order; of length 1 if normalize."""
        device = next(self.model.parameters()).device
        found = [
            self.model.encode_text(self.tokenizer(list(texts[at : at + batch_size])).to(device), normalize=normalize).float().cpu()
            for at in range(0, len(texts), batch_size)
        ]
        return (torch.cat(found) if found else torch.zeros(0, self.size)).numpy()


def _of_name(config: OpenClipConfig) -> tuple[Any, Any]:
    """(a model that open_clip knows by name, its preprocessing)."""
    package = require("open_clip", "vision")
    known = package.list_models()
    if config.model not in known:
        raise RecipeError(f"encoder open_clip: {config.model!r} is no model of open_clip.{nearest(config.model, known)}")
    weights = config.path if config.path is not None else config.pretrained
    if config.path is not None and not Path(config.path).is_file():
        raise CheckpointError(f"{config.path}: no such file.")
    try:
        with torch.device("cpu"):  # its rules of first weights want numbers
            model, _, transform = package.create_model_and_transforms(config.model, pretrained=weights)
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{weights}: does not fit {config.model}: {str(error)[:300]}") from None
    return model, transform


def _of_sizes(config: OpenClipConfig) -> tuple[Any, Any]:
    """(a model of own sizes, the preprocessing of its pictures)."""
    package = require("open_clip", "vision")
    assert config.sizes is not None
    raw = model_config(config.sizes)
    timm = require("timm", "vision")
    if (name := config.sizes.picture.timm) is not None and name.split(".")[0] not in timm.list_models():
        raise RecipeError(f"encoder open_clip: sizes.picture.timm: {name!r} is no model of timm.{nearest(name, timm.list_models())}")
    with torch.device("cpu"):
        model = package.CLIP(embed_dim=raw["embed_dim"], vision_cfg=raw["vision_cfg"], text_cfg=raw["text_cfg"])
    if config.path is not None:
        copy_tensors(model.state_dict(), read_foreign_tensors(Path(config.path)), config.path)
    transforms = require("open_clip.transform", "vision")
    shown = transforms.PreprocessCfg(size=config.sizes.picture.image_size)
    model.visual.image_mean, model.visual.image_std = shown.mean, shown.std  # as open_clip leaves it at models that it makes by name
    return model, transforms.image_transform_v2(shown, is_train=False)


def model_config(sizes: TowersConfig) -> dict[str, Any]:
    """The sizes as open_clip writes them."""
    picture, text = sizes.picture, sizes.text
    vision: dict[str, Any] = {"image_size": picture.image_size}
    if picture.timm is not None:
        vision |= {"timm_model_name": picture.timm, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear"}
    else:
        shape = {"patch_size": picture.patch_size, "width": picture.width, "layers": picture.layers}
        vision |= {**shape, "head_width": picture.width // picture.heads}
    words = {"context_length": text.context, "width": text.width, "heads": text.heads, "layers": text.layers, "vocab_size": TOKENS}
    return {"embed_dim": sizes.size, "vision_cfg": vision, "text_cfg": words}


def _of_map(map_bdhw: Tensor, pooled_bd: Tensor | None = None) -> Patches:
    tokens_bnd = map_bdhw.flatten(2).transpose(1, 2)
    return Patches(tokens_bnd, (map_bdhw.shape[2], map_bdhw.shape[3]), tokens_bnd.mean(1) if pooled_bd is None else pooled_bd)


def _square(tokens_bnd: Tensor) -> tuple[int, int]:
    side = round(tokens_bnd.shape[1] ** 0.5)
    if side * side != tokens_bnd.shape[1]:
        raise RecipeError(f"encoder timm: {tokens_bnd.shape[1]} tokens are no square, so where they lie is not known.")
    return side, side
