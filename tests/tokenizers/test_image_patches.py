"""Patches: every pixel there and back, sizes by their rule, marks between rows, and a stem that is the stem of the whole picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.encoders.config import PatchMatrixConfig, PatchStemConfig
from mmlm.tokenizers.config import ImagePatchesConfig
from mmlm.tokenizers.image_patches import CLOSE, OPEN, PATCH, ROW, fitted, patchify, places, row_ids, unpatchify


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("patch", "margin"), [(8, 0), (8, 4), (4, 1)])
def test_pixels_come_back_bit_for_bit(patch, margin) -> None:
    pixels = picture(3 * patch, 5 * patch)
    patches = patchify(pixels, patch, margin)
    assert patches.shape == (3, 5, 3 * (patch + 2 * margin) ** 2) and np.array_equal(unpatchify(patches, patch, margin), pixels)
    inner = patches[1, 2].reshape(3, patch + 2 * margin, -1)
    y, x = patch - margin, 2 * patch - margin
    assert np.array_equal(inner.transpose(1, 2, 0), pixels[y : y + patch + 2 * margin, x : x + patch + 2 * margin])


def test_a_matrix_over_patches_is_a_convolution() -> None:
    pixels = picture(24, 40).astype(np.float32)
    weight = torch.randn(7, 3, 8, 8)
    whole = F.conv2d(torch.from_numpy(pixels).permute(2, 0, 1)[None], weight, stride=8)[0]
    patches = torch.from_numpy(patchify(pixels, 8))
    assert torch.allclose(patches @ weight.view(7, -1).T, whole.permute(1, 2, 0), rtol=1e-4, atol=1e-2)


def test_sizes_follow_their_rule_and_the_number_of_tokens_its_formula() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(each) for each in rng.integers(1, 700, 2))
        patch, most = int(rng.choice([8, 14, 16, 32])), int(rng.integers(16, 400))
        max_side = patch * int(rng.integers(4, 30))
        rows, columns = fitted(height, width, patch, max_side, most)
        assert rows % patch == columns % patch == 0 and max(rows, columns) <= max_side
        assert rows * columns <= most * patch * patch or min(rows, columns) == patch
        assert max(rows, columns) < max(height, width) + patch  # never larger than needed
        down, across = rows // patch, columns // patch
        ids = row_ids(down, across, marks=True)
        assert len(ids) == down * across + down + 1 and (ids == ROW).sum() == down - 1 and (ids == PATCH).sum() == down * across
        assert ids[0] == OPEN and ids[-1] == CLOSE and ids[-2] == PATCH
        assert len(row_ids(down, across, marks=False)) == down * across + 2
    assert fitted(480, 640, 32, 1024, 1024) == (480, 640) and fitted(768, 2048, 32, 1024, 1024) == (384, 1024)
    assert fitted(100, 640, 32, 1024, 40) == (96, 416)  # 3 x 13 of 40; 3 x 14 were too many


def test_a_picture_is_a_segment_and_back() -> None:
    tokenizer = ImagePatchesConfig(patch=8, margin=4, places=True).build()
    pixels = picture(24, 40)
    segment = tokenizer.encode(pixels)
    assert len(segment) == 3 * 5 + 3 + 1 and segment.features.shape == (15, tokenizer.num_features) and segment.weight == 0
    assert (segment.ids[segment.feature_at] == PATCH).all() and np.array_equal(tokenizer.decode(segment), pixels)
    assert tokenizer.decode(tokenizer.encode(picture(21, 33))).shape == (32, 40, 3)  # 33 becomes 40, and so 21 becomes 25 and 32
    bare = ImagePatchesConfig(patch=8, row_marks=False).build()
    assert bare.grid(8, 24) == (1, 3) and np.array_equal(bare.decode(bare.encode(picture(8, 24))), picture(8, 24))
    for bad in (pixels.astype(np.float32), pixels[:, :, 0], pixels[:0], pixels[..., :2]):
        with pytest.raises(DataError, match="a picture is uint8"):
            tokenizer.encode(bad)


def test_places_tell_where_a_patch_lies_whatever_the_size() -> None:
    small, large = places(2, 4), places(6, 12)
    assert np.allclose(small[0, 0], large[1, 1]) and np.allclose(small[1, 3], large[4, 10])
    assert len(np.unique(np.round(large.reshape(-1, large.shape[-1]), 4), axis=0)) == 72


def test_a_stem_over_patches_is_the_stem_over_the_picture() -> None:
    tokenizer = ImagePatchesConfig(patch=8, margin=4).build()
    stem = PatchStemConfig(channels=[6, 7, 8], places=0).build(tokenizer.num_features).double()
    pixels = picture(24, 40)
    x = torch.from_numpy((pixels - tokenizer.mean) * tokenizer.scale).double().permute(2, 0, 1)[None]
    x = F.pad(x, (4, 4, 4, 4))
    for layer in stem.layers:
        x = F.gelu(layer(x), approximate="tanh")
    whole = x[0, :, :3, :5].permute(1, 2, 0).reshape(15, 8)
    whole = whole + F.gelu(stem.inner(whole), approximate="tanh")
    assert torch.allclose(stem(tokenizer.encode(pixels).features.double()), whole, atol=1e-6)


def test_a_stem_that_does_not_fit_its_patches_is_refused() -> None:
    with pytest.raises(RecipeError, match="leave 3 places"):
        PatchStemConfig(channels=[4, 4], places=0).build(3 * 16 * 16)
    with pytest.raises(RecipeError, match="not the pixels of a square"):
        PatchStemConfig(places=16).build(3 * 16 * 16)
    assert PatchMatrixConfig().build(192).size == 192


def test_a_saved_tokenizer_is_of_its_patches(tmp_path) -> None:
    ImagePatchesConfig(patch=8).build().save(tmp_path)
    ImagePatchesConfig(patch=8).build().load(tmp_path)
    with pytest.raises(CheckpointError, match="is of another config .*patch=8 .* than the recipe .*patch=16 "):
        ImagePatchesConfig(patch=16).build().load(tmp_path)
