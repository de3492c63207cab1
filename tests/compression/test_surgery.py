"""Layers are replaced, left out and added; what is left is an ordinary model."""

import pytest
import torch

from mmlm.backbone.config import AttentionConfig, Mamba2Config
from mmlm.base.errors import RecipeError
from mmlm.base.schema import check
from mmlm.compression.surgery import GATE, even_layers, grow_layers, keep_layers, replace_mixers
from mmlm.layout import Layout
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig

IDS = torch.randint(0, 40, (2, 13), generator=torch.Generator().manual_seed(0))


def made(num_layers=4, backbone=None, **mixer):
    torch.manual_seed(0)
    pattern = [{"type": "attention", "num_heads": 4, "num_kv_heads": 2, **mixer}]
    given = {"width": 32, "num_layers": num_layers, "pattern": pattern, **(backbone or {})}
    raw = {"schema": 1, "vocabulary": {"text": 40}, "backbone": given}
    return MultimodalLM(check(ModelConfig, raw, "test")).double().eval()


def test_the_carried_weights_compute_linear_attention_where_nothing_decays():
    old = made(1, qkv_bias=False, rope=None)
    new = replace_mixers(old, [0])
    attention, mamba = old.backbone.layers[0].mixer, new.backbone.layers[0].mixer
    x = 30 * torch.randn(2, 9, 32, dtype=torch.float64)
    with torch.no_grad():
        mamba.decay_log.fill_(-60.0)  # a decay of 1
        mamba.step_bias.fill_(torch.log(torch.expm1(torch.tensor(1.0))))  # a step of 1
        mamba.input.weight[-mamba.num_heads :] = 0
        mamba.input.bias[-mamba.num_heads :] = 0
        q, k, v = (part.transpose(1, 2) for part in attention._project(x, None, None))
        silu = torch.nn.functional.silu
        q, k, v = (silu(part.repeat_interleave(4 // part.shape[1], dim=1)) for part in (q, k, v))  # Mamba-2's convolution ends in SiLU
        want = ((q @ k.transpose(-1, -2)).tril() @ v).transpose(1, 2).flatten(2)
        seen = []
        whole = mamba(x, Layout.plain(2, 9))[0]
        size = want.unflatten(-1, (4, 8)).square().mean(-1, keepdim=True).sqrt()
        values = attention.qkv.weight[-16:].square().sum(1).view(2, 8).mean(1).sqrt().repeat_interleave(2)  # of unit inputs, a head
        half = (want.unflatten(-1, (4, 8)) / size * values[:, None] / 2).flatten(2)
        torch.testing.assert_close(whole, attention.out(half), rtol=1e-4, atol=1e-6)  # the norm has an epsilon
        mamba._norm = lambda y: y
        mamba.out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        mamba(x, Layout.plain(2, 9))
        torch.testing.assert_close(seen[0], want * silu(torch.tensor(GATE)), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(mamba.out.weight, attention.out.weight)


def test_what_is_not_replaced_is_kept_and_the_model_saves_loads_and_decodes(tmp_path):
    old = made()
    new = replace_mixers(old, [0, 2])
    assert [layer.mixer.type for layer in new.config.backbone.layers] == ["mamba2", "attention"] * 2
    for index in (1, 3):
        for a, b in zip(old.backbone.layers[index].parameters(), new.backbone.layers[index].parameters(), strict=True):
            assert torch.equal(a, b)
    for name in ("feed_forward", "mixer_norm", "feed_forward_norm"):
        for a, b in zip(*(getattr(model.backbone.layers[0], name).parameters() for model in (old, new)), strict=True):
            assert torch.equal(a, b)
    new = new.float()
    new.save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again.logits(IDS), new.logits(IDS), rtol=0, atol=0)
    cache = again.backbone.init_cache(2)
    steps = torch.cat([again.logits(part, cache) for part in IDS.split(1, dim=1)], dim=1)
    torch.testing.assert_close(steps, again.logits(IDS), rtol=0, atol=1e-4)
    assert len(again.generate(IDS, max_new_tokens=5)[0].ids) == 5
    fresh = replace_mixers(old, [0], carry=False)
    assert (fresh.backbone.layers[0].mixer.out.weight - old.backbone.layers[0].mixer.out.weight).abs().max() > 1e-3


def test_another_mixer_can_come_in():
    new = replace_mixers(made(), [1], AttentionConfig(num_heads=2, window=4))
    assert new.backbone.layers[1].mixer.config.window == 4 and new.logits(IDS).isfinite().all()


def test_layers_are_kept_in_any_order_and_grown_without_a_change():
    old = made()
    torch.testing.assert_close(keep_layers(old, [0, 1, 2, 3]).logits(IDS), old.logits(IDS), rtol=0, atol=0)
    two = keep_layers(old, [3, 0])
    x, layout = old.embedding(IDS), Layout.plain(*IDS.shape)
    for index in (3, 0):
        x = old.backbone.layers[index](x, layout)[0]
    torch.testing.assert_close(two.backbone(two.embedding(IDS), layout)[0], old.backbone.norm(x))
    grown = grow_layers(old, [0, 3])
    assert len(grown.backbone.layers) == 6
    torch.testing.assert_close(grown.logits(IDS), old.logits(IDS), rtol=0, atol=1e-12)
    grown.logits(IDS).square().sum().backward()
    assert grown.backbone.layers[1].mixer.out.weight.grad.abs().max() > 0, "a grown layer must be able to learn"


def test_grown_layers_with_norms_around_that_have_biases_write_nothing():
    old = made(2, {"norm": "layer", "norm_place": "around"})
    with torch.no_grad():
        for layer in old.backbone.layers:
            for norm in (layer.mixed_norm, layer.fed_norm):
                norm.bias.copy_(torch.linspace(-1, 1, 32))
    torch.testing.assert_close(grow_layers(old, [0, 1]).logits(IDS), old.logits(IDS), rtol=0, atol=1e-12)


def test_a_share_of_layers_is_spread_evenly():
    assert even_layers(32, 0.25) == list(range(0, 32, 4)) and even_layers(32, 0.125) == [0, 8, 16, 24] and even_layers(6, 0.5) == [0, 2, 4]
    assert even_layers(3, 0.01) == [0]


def test_a_head_with_an_adapter_is_not_exchanged_for_a_new_one():
    old = made()
    old.heads["language_model"].lora_A = torch.nn.Linear(32, 2)
    with pytest.raises(RecipeError, match="while the model has heads.language_model.lora_A.weight and the like; merge adapters"):
        keep_layers(old, [0])


def test_what_cannot_be_done_is_told():
    old = made()
    for call, told in (
        (lambda: replace_mixers(old, [4]), "within 0 and 3"),
        (lambda: replace_mixers(old, []), "within 0 and 3"),
        (lambda: keep_layers(old, [0, 9]), "within 0 and 3"),
        (lambda: grow_layers(old, [7]), "7 is among them"),
        (lambda: replace_mixers(old, [0], Mamba2Config(head_size=16, state_size=8)), "head_size and state_size 8"),
        (lambda: replace_mixers(replace_mixers(old, [0]), [0]), "layer 0 is mamba2; give the mixer"),
    ):
        with pytest.raises(RecipeError, match=told):
            call()
