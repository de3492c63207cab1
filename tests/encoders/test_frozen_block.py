"""A decoder's block as a layer of an encoder: it is that block, without order among tokens, stays as it is, and lets gradients through."""

from __future__ import annotations

import shutil

import pytest
import torch
from pydantic import ValidationError

from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.encoders.config import FrozenBlockConfig, TimmConfig
from mmlm.encoders.frozen_block import FrozenBlock
from mmlm.interop.load import load
from mmlm.layout import Layout
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.stream import Segment, Stream, pack
from mmlm.tokenizers.config import WholeImagesConfig
from mmlm.training.config import TrainConfig
from mmlm.training.optimizers import build_optimizers, set_rate

pytest.importorskip("timm")
SIZE = 24
ATTENTION = {"type": "attention", "num_heads": 4, "window": 3, "sinks": 1}


def decoder(folder, pattern=(ATTENTION,), num_layers: int = 2) -> str:
    """A saved text model whose order of tokens matters: rotary positions, a window, a causal mask."""
    torch.manual_seed(3)
    backbone = {"width": 32, "num_layers": num_layers, "pattern": list(pattern), "dropout": 0.3}
    model = MultimodalLM(ModelConfig.model_validate({"schema": 1, "vocabulary": {"text": 40}, "backbone": backbone}))
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "norm" in name:  # of ones they would be equal to any other
                each.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def path(tmp_path) -> str:
    return decoder(tmp_path / "lm")


def tokens(seed: int = 0, count: int = 9) -> torch.Tensor:
    return torch.randn(2, count, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, -1])
def test_it_is_the_block_of_the_decoder_and_its_final_norm_between_two_matrices(path, layer) -> None:
    found, whole = FrozenBlockConfig(path=path, layer=layer).build(SIZE), load(path).backbone
    whole.layers[layer].mixer.config = whole.layers[layer].mixer.config.model_copy(update={"window": None, "sinks": 0})
    layout = Layout.plain(2, 9, causal=False)
    layout.position.zero_()  # rotates nothing
    wanted, *_ = whole.layers[layer](found.inner(tokens()), layout)
    torch.testing.assert_close(found(tokens()), found.outer(whole.norm(wanted)))
    assert found.inner.bias is None and found.outer.bias is None


@torch.no_grad()
def test_it_is_the_block_of_transformers(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2)).eval()
    for each in theirs.parameters():
        each.add_(0.1 * torch.randn_like(each))
    theirs.save_pretrained(tmp_path / "llama")
    found = FrozenBlockConfig(path=str(tmp_path / "llama"), layer=1).build(SIZE)
    turn = torch.ones(2, 9, 8), torch.zeros(2, 9, 8)  # cosine and sine of no rotation
    wanted = theirs.model.layers[1](found.inner(tokens()), attention_mask=torch.zeros(2, 1, 9, 9), position_embeddings=turn)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    torch.testing.assert_close(found(tokens()), found.outer(theirs.model.norm(wanted)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_order_of_tokens_does_not_matter_and_would_with_a_causal_mask(path) -> None:
    found, order = FrozenBlockConfig(path=path).build(SIZE), torch.randperm(9, generator=torch.Generator().manual_seed(1))
    plain = found(tokens())
    torch.testing.assert_close(found(tokens()[:, order]), plain[:, order])
    changed = tokens()
    changed[:, -1] += 1
    assert (found(changed) - plain)[:, 0].abs().max() > 1e-4  # the first token sees the last
    found.is_causal = True
    assert (found(tokens()) - plain).abs().max() > 1e-3
    assert (found(tokens()[:, order]) - found(tokens())[:, order]).abs().max() > 1e-3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_stays_byte_for_byte_while_everything_around_it_learns(path, optimizer) -> None:
    torch.manual_seed(0)
    encoder = TimmConfig(model="test_vit", image_size=32, frozen_lm={"path": path}).build(3)
    (block,) = (part for part in encoder.modules() if isinstance(part, FrozenBlock))
    encoder.train()
    assert block.inner.training and not any(part.training for part in block.block.modules())
    before = {name: each.clone() for name, each in encoder.named_parameters()}
    seen = dict.fromkeys(before, 0.0)
    optimizers = build_optimizers(TrainConfig(optimizer={"type": optimizer}, weight_decay=0.1), encoder)
    set_rate(optimizers, 1e-3)
    x_bchw, target = torch.randn(4, 3, 32, 32), torch.randn(16, 64)
    sizes = torch.ones(4, dtype=torch.long)
    losses = []
    for _ in range(100):
        loss = (encoder(x_bchw, sizes) - target).square().mean()
        loss.backward()
        for name, each in encoder.named_parameters():
            if each.grad is not None:
                seen[name] = max(seen[name], float(each.grad.abs().max()))
        for each in optimizers:
            each.step()
            each.zero_grad()
        losses.append(float(loss.detach()))
    frozen = {name for name in before if ".block." in name}
    assert len(frozen) == 7 and any(name.endswith("block.norm.weight") for name in frozen)
    for name, each in encoder.named_parameters():
        if name in frozen:
            assert each.detach().numpy().tobytes() == before[name].numpy().tobytes() and not each.requires_grad and seen[name] == 0
    for name in (
        "model.norm.0.inner.weight",
        "model.norm.0.outer.weight",
        "model.patch_embed.proj.weight",
        "model.blocks.0.attn.qkv.weight",
    ):
        assert seen[name] > 0 and not torch.equal(encoder.get_parameter(name), before[name]), name
    assert losses[-1] < losses[0]


def test_a_block_of_first_weights_is_of_the_same_shape_and_another(path) -> None:
    trained, random = (FrozenBlockConfig(path=path, random=each).build(SIZE).block.state_dict() for each in (False, True))
    assert {name: each.shape for name, each in trained.items()} == {name: each.shape for name, each in random.items()}
    assert all(not torch.equal(each, random[name]) for name, each in trained.items())


def test_attention_and_feed_forward_that_are_layers_of_their_own_are_one_block(tmp_path) -> None:
    split = [{"mixer": ATTENTION, "feed_forward": None}, {"feed_forward": "default"}]
    path = decoder(tmp_path / "split", split, 4)
    for layer, first in ((-1, 2), (2, 2), (0, 0), (1, 0)):
        block = FrozenBlockConfig(path=path, layer=layer).build(SIZE).block
        whole = load(path).backbone
        assert len(block.layers) == 2
        for place, each in enumerate(block.layers):
            theirs = whole.layers[first + place].state_dict()
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in each.state_dict().items())


def picture(seed: int) -> Segment:
    pixels = torch.randint(0, 256, (40, 30, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8).numpy()
    return WholeImagesConfig(size=[32, 32], grid=[2, 2]).build().encode(pixels)


def test_a_saved_model_needs_neither_the_decoder_nor_its_folder(path, tmp_path) -> None:
    raw = {
        "schema": 1, "vocabulary": {"vision": 4, "answer": 3}, "features": {"vision": 3}, "backbone": {"width": 16, "num_layers": 1},
        "encoders": {"vision": {"type": "timm", "model": "test_vit", "image_size": 32, "frozen_lm": {"path": path, "layer": 0}}},
    }  # fmt: skip
    model = MultimodalLM(ModelConfig.model_validate(raw)).eval()
    block, theirs = model.encoders["vision"].model.norm[0].block, load(path).backbone.layers[0].state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in block.layers[0].state_dict().items())  # first weights did not reach it
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(path)
    again = MultimodalLM.from_pretrained(tmp_path / "saved")
    assert str(path) not in (tmp_path / "saved" / "config.json").read_text()
    batch = pack([Stream([picture(0), Segment("answer", torch.tensor([1]), weight=1.0)])], model.vocabulary)
    with torch.no_grad():
        assert torch.equal(again.hidden(batch)[0], model.hidden(batch)[0])
    trained = {name for name, each in again.named_parameters() if each.requires_grad}
    assert (
        trained == {name for name, each in model.named_parameters() if each.requires_grad}
        and "encoders.vision.model.norm.0.inner.weight" in trained
    )
    assert not any(".norm.0.block." in name for name in trained)
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_what_cannot_be_such_a_block_is_refused(path, tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"frozen_lm.layer: .* has the layers 0 to 1 \(or -2 to -1\), but not 2"):
        FrozenBlockConfig(path=path, layer=2).build(SIZE)
    mamba = decoder(tmp_path / "mamba", [{"type": "mamba2", "state_size": 4, "head_size": 8}])
    with pytest.raises(RecipeError, match="layer -1 of .*mamba has no attention over all tokens"):
        FrozenBlockConfig(path=mamba).build(SIZE)
    with pytest.raises(ValidationError, match="give path, the decoder whose block it is"):
        FrozenBlockConfig()
    with pytest.raises((CheckpointError, RecipeError)):
        FrozenBlockConfig(path=str(tmp_path / "nothing")).build(SIZE)
    with pytest.raises(RecipeError, match="test_resnet has no tokens before a last norm"):
        TimmConfig(model="test_resnet", frozen_lm={"path": path}).build()
    with pytest.raises(ValidationError, match="takes patches from before frozen_lm"):
        TimmConfig(model="test_vit", layer=-2, frozen_lm={"path": path})
