"""Whole pictures as tokens: there and back, as many as the encoder's patches, and an encoder that wants others is told of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.encoders.config import PatchStemConfig, TimmConfig
from mmlm.tokenizers.config import WholeImagesConfig
from mmlm.tokenizers.image_patches import CLOSE, OPEN, PATCH, ROW, VISION


def picture(height: int = 30, width: int = 41) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("row_marks", [True, False])
def test_a_picture_is_a_segment_of_one_whole_thing(row_marks) -> None:
    tokens = WholeImagesConfig(size=[32, 48], grid=[2, 3], row_marks=row_marks).build()
    segment = tokens.encode(picture())
    row = [PATCH] * 3
    assert segment.ids.tolist() == [OPEN, *row, *([ROW] if row_marks else []), *row, CLOSE] and tokens.sizes == {VISION: 4}
    assert segment.whole and segment.features.shape == (1, 3, 32, 48) and segment.features.dtype == torch.float32
    assert segment.ids[segment.feature_at].tolist() == [PATCH] * 6
    shown = np.asarray(Image.fromarray(picture()).resize((48, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(tokens.decode(segment), shown)
    normed = (shown[5, 7] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(segment.features[0, :, 5, 7].numpy(), normed, atol=1e-5)


def test_what_is_no_picture_is_refused() -> None:
    tokens = WholeImagesConfig().build()
    for faulty in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match=r"a picture is uint8 \[y, x, 3\]"):
            tokens.encode(faulty)
    for faulty in ({"size": [0, 3]}, {"grid": [1, 0]}, {"deviation": [0, 1, 1]}):
        with pytest.raises(ValidationError, match="must be at least 1"):
            WholeImagesConfig(**faulty)


def test_a_saved_tokenizer_is_that_of_its_recipe(tmp_path) -> None:
    WholeImagesConfig(grid=[7, 7]).build().save(tmp_path)
    assert WholeImagesConfig(grid=[7, 7]).build().load(tmp_path).grid(3, 9) == (7, 7)
    with pytest.raises(CheckpointError, match="is of another config"):
        WholeImagesConfig(grid=[7, 8]).build().load(tmp_path)
    (tmp_path / "whole_images.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        WholeImagesConfig(grid=[7, 7]).build().load(tmp_path)


def test_an_encoder_that_wants_other_pictures_is_told_of_with_what_to_write() -> None:
    pytest.importorskip("timm")
    encoder = TimmConfig(model="test_vit", image_size=64).build(3)
    about = {"size": [64, 64], "grid": [4, 4], "mean": list(encoder.input.mean), "deviation": list(encoder.input.deviation)}
    WholeImagesConfig(**about).build().check(encoder, "vision")
    for key, value in (("size", [32, 64]), ("grid", [2, 8]), ("mean", [0.1, 0.2, 0.3]), ("deviation", [0.3, 0.3, 0.3])):
        said = ", ".join(map(str, about[key]))
        with pytest.raises(RecipeError, match=rf"whole_images has {key}: .*, but encoders.vision wants {key}: \[{said}\]\.$"):
            WholeImagesConfig(**{**about, key: value}).build().check(encoder, "vision")
    with pytest.raises(RecipeError, match="encoders.vision: reads no whole pictures"):
        WholeImagesConfig(**about).build().check(PatchStemConfig(places=0).build(3 * 256), "vision")
