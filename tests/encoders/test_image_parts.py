"""Image encoders as parts of a model: the patches of a layer are the packages' own, nothing is carried along that nobody reads, frozen ones
stay as they are, and a saved model needs no file of theirs."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from mmlm.base.errors import RecipeError
from mmlm.encoders.config import OpenClipConfig, TimmConfig
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.parameters import initialize
from mmlm.stream import Segment, Stream, pack
from mmlm.tokenizers.config import WholeImagesConfig

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")
SMALL = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
ONE = torch.ones(2, dtype=torch.long)


@pytest.fixture
def tiny_clip(tmp_path) -> str:
    (tmp_path / "tiny-part.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": SMALL, "text_cfg": TEXT}))
    open_clip.add_model_config(tmp_path)
    return "tiny-part"


def pictures(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layer", "index"), [("test_vit", -2, 4), ("test_vit", 5, 4), ("test_convnext", 2, 1), ("test_resnet", 3, 2)]
)
def test_patches_of_a_layer_are_those_of_timm(name, layer, index, tmp_path) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 64} if "vit" in name else {}
    theirs = timm.create_model(name, num_classes=0, **sizes).eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    config = TimmConfig(model=name, path=str(tmp_path / "a.pth"), layer=layer, image_size=64)
    (wanted_bchw,) = theirs.forward_intermediates(pictures(64), indices=[index], intermediates_only=True)
    wanted_nd = wanted_bchw.permute(0, 2, 3, 1).flatten(0, 2)
    part, alone = config.build(3), config.build()
    initialize(part, 2)  # as a model begins
    assert torch.equal(part(pictures(64), ONE), wanted_nd) and part.size == wanted_nd.shape[1] and part.input.size == (64, 64)
    assert part.grid_and_size() == (tuple(wanted_bchw.shape[2:]), part.size)
    assert torch.equal(alone(pictures(64)).tokens_bnd.flatten(0, 1), wanted_nd) and alone.patch_size == part.size
    assert sum(each.numel() for each in part.parameters()) < sum(each.numel() for each in theirs.parameters())


@torch.no_grad()
def test_patches_of_a_part_are_those_of_open_clip(tiny_clip, tmp_path) -> None:
    torch.manual_seed(0)
    theirs, *_ = open_clip.create_model_and_transforms(tiny_clip)
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    found = theirs.visual.forward_intermediates(pictures(32), indices=3, output_fmt="NLC")["image_intermediates"]
    for layer, index in ((None, 2), (-2, 1), (2, 1), (1, 0)):
        config = OpenClipConfig(model=tiny_clip, path=str(tmp_path / "a.pt"), layer=layer)
        part, alone = config.build(3), config.build()
        assert torch.equal(part(pictures(32), ONE), found[index].flatten(0, 1)) and part.size == 32
        assert torch.equal(alone(pictures(32)).tokens_bnd, found[index])
        assert not any("text" in name or "token_embedding" in name for name, _ in part.named_parameters())


@pytest.mark.parametrize("layer", [None, -2])
@pytest.mark.parametrize("kind", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet", "clip"])
def test_every_parameter_of_a_part_gets_a_gradient(kind, layer, tiny_clip) -> None:
    config = OpenClipConfig(model=tiny_clip, layer=layer) if kind == "clip" else TimmConfig(model=kind, layer=layer, image_size=64)
    part = config.build(3)
    part.train()
    (part(pictures(part.input.size[0]), ONE) * torch.randn(part.size)).square().sum().backward()
    assert [name for name, each in part.named_parameters() if each.requires_grad and each.grad is None] == []
    assert sum(each.requires_grad for each in part.parameters()) > 20


def test_a_frozen_encoder_keeps_its_running_means(tmp_path) -> None:
    part = TimmConfig(model="test_resnet", image_size=64).build(3)
    holder = torch.nn.ModuleDict({"vision": part})
    means = {name: each.clone() for name, each in part.named_buffers()}
    part.requires_grad_(False)
    holder.train()
    part(pictures(64), ONE)
    assert all(torch.equal(each, means[name]) for name, each in part.named_buffers())
    part.requires_grad_(True)
    holder.train()
    part(pictures(64), ONE)
    assert not all(torch.equal(each, means[name]) for name, each in part.named_buffers())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["test_vit", "test_resnet", "clip"])
def test_a_saved_model_needs_no_file_of_weights(kind, tiny_clip, tmp_path) -> None:
    theirs = open_clip.create_model(tiny_clip) if kind == "clip" else timm.create_model(kind, num_classes=0)
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    encoder = {
        "type": "open_clip" if kind == "clip" else "timm",
        "model": tiny_clip if kind == "clip" else kind,
        "path": str(tmp_path / "a.pt"),
    }
    raw = {
        "schema": 1, "vocabulary": {"vision": 4}, "features": {"vision": 3}, "encoders": {"vision": encoder},
        "projectors": {"vision": "mlp"}, "backbone": {"width": 16, "num_layers": 1},
    }  # fmt: skip
    model = MultimodalLM(ModelConfig.model_validate(raw)).eval()
    part = model.encoders["vision"]
    source = (theirs.visual if kind == "clip" else theirs).state_dict()
    assert all(torch.equal(each, source[name]) for name, each in part.network.state_dict().items())  # first weights did not reach it
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "a.pt").unlink()
    again = MultimodalLM.from_pretrained(tmp_path / "saved")
    grid, _ = part.grid_and_size()
    tokenizer = WholeImagesConfig(
        size=list(part.input.size), grid=list(grid), mean=list(part.input.mean), deviation=list(part.input.deviation)
    )
    pixels = torch.randint(0, 256, (50, 40, 3), dtype=torch.uint8).numpy()
    batch = pack([Stream([tokenizer.build().encode(pixels)])] * 2, model.vocabulary)
    assert torch.equal(again.hidden(batch)[0], model.hidden(batch)[0])
    low = MultimodalLM.from_pretrained(tmp_path / "saved").bfloat16()
    torch.testing.assert_close(low.hidden(batch)[0].float(), model.hidden(batch)[0], atol=0.1, rtol=0.1)


def test_layers_that_are_none_are_refused(tiny_clip) -> None:
    with pytest.raises(ValidationError, match="layers are counted from 1, or back from -1"):
        TimmConfig(layer=0)
    for inputs in (None, 3):
        for layer in (7, -7):
            with pytest.raises(RecipeError, match=f"test_vit gives no layer {layer}"):
                TimmConfig(model="test_vit", layer=layer).build(inputs)
        for layer in (4, -4):
            with pytest.raises(RecipeError, match=f"tiny-part gives no layer {layer}"):
                OpenClipConfig(model=tiny_clip, layer=layer).build(inputs)


def test_the_whole_picture_is_one_of_a_batch() -> None:
    tokenizer = WholeImagesConfig(size=[32, 32], grid=[2, 2]).build()
    rng = torch.Generator().manual_seed(0)
    some = [torch.randint(0, 256, (20 + 9 * each, 31, 3), dtype=torch.uint8, generator=rng).numpy() for each in range(3)]
    raw = {
        "schema": 1, "vocabulary": {"vision": 4, "answer": 3}, "features": {"vision": 3}, "backbone": {"width": 16, "num_layers": 2},
        "encoders": {"vision": {"type": "timm", "model": "test_vit", "image_size": 32}},
    }  # fmt: skip
    model = MultimodalLM(ModelConfig.model_validate(raw)).eval()
    streams = [Stream([tokenizer.encode(each), Segment("answer", torch.tensor([at]), weight=1.0)]) for at, each in enumerate(some)]
    with torch.no_grad():
        together = model.hidden(pack(streams, model.vocabulary))[0][0]
        alone = torch.cat([model.hidden(pack([each], model.vocabulary))[0][0] for each in streams])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
