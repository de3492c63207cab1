"""Freezing, rates per tower and adapters reach what they name, and nothing else."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from mmlm.adapt import (
    adapt,
    adapted_layers,
    adapter_tensors,
    attach_lora,
    freeze,
    load_adapters,
    merge_lora,
    save_adapters,
    scale_rates,
    towers,
)
from mmlm.backbone.config import FEED_FORWARDS, MIXERS, BackboneConfig
from mmlm.base.errors import CheckpointError, NumericsError, RecipeError
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.training.config import AdaptConfig, LoraConfig
from mmlm.training.optimizers import parameter_groups, trained_parameters
from mmlm.weights import read_tensors, safetensors_bytes


class Small(nn.Module):
    """An embedding, an encoder in a collection, a backbone, two heads."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(10, 8)
        self.encoders = nn.ModuleDict({"cell": nn.Linear(3, 8)})
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        self.heads = nn.ModuleDict({"words": nn.Linear(8, 10), "box": nn.Linear(8, 4)})
        self.config = object()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, ids: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        hidden = self.backbone(self.embedding(ids) + self.encoders["cell"](cells))
        return torch.cat([head(hidden) for head in self.heads.values()], dim=-1)


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.arange(10), torch.randn(10, 3, generator=generator)


def stir(model, seed=2):
    """Give every adapter weight a value that acts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_tensors(model).values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_towers_are_first_names_and_members_of_collections():
    assert towers(Small()) == ["embedding", "encoders.cell", "backbone", "heads.words", "heads.box"]


@pytest.mark.parametrize(
    ("pattern", "frozen"),
    [
        (
            "backbone",
            {"backbone.0.weight", "backbone.0.bias", "backbone.1.weight", "backbone.1.bias", "backbone.2.weight", "backbone.2.bias"},
        ),
        ("encoders.cell", {"encoders.cell.weight", "encoders.cell.bias"}),
        ("heads", {f"heads.{name}.{kind}" for name in ("words", "box") for kind in ("weight", "bias")}),
        ("*.0.weight", {"backbone.0.weight"}),
    ],
)
def test_freezing_changes_exactly_what_is_named(pattern, frozen):
    model = Small()
    before = trained(model)
    freeze(model, [pattern])
    assert before - trained(model) == frozen
    model(*inputs()).sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == frozen


def test_rates_reach_the_optimizer_by_tower_and_the_last_that_fits_counts():
    model = Small()
    scale_rates(model, {"backbone": 0.1, "backbone.2": 0.5, "heads.box": 3.0})
    scales = {id(p): group["lr_scale"] for group in parameter_groups(trained_parameters(model).values(), 0.1) for p in group["params"]}
    by_name = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    assert by_name["backbone.0.weight"] == by_name["backbone.1.bias"] == 0.1
    assert by_name["backbone.2.weight"] == 0.5 and by_name["heads.box.bias"] == 3.0 and by_name["embedding.weight"] == 1.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AdaptConfig(freeze=["bakbone"]), ["adapt.freeze", "bakbone", "Did you mean 'backbone'?", "encoders.cell"]),
        (AdaptConfig(lr_scale={"head.box": 2.0}), ["adapt.lr_scale", "Did you mean 'heads.box'?"]),
        (AdaptConfig(lr_scale={"backbone": 2.0}, freeze=["backbone"]), ["adapt.lr_scale.backbone", "frozen"]),
        (AdaptConfig(lora=LoraConfig(targets=["embedding"])), ["adapt.lora.targets", "embedding", "backbone"]),
        (AdaptConfig(lora=LoraConfig(), freeze=["backbone"]), ["adapt.lora", "no effect", "adapt.freeze"]),
    ],
)
def test_a_name_that_fits_nothing_is_told_with_the_nearest_tower(config, words):
    with pytest.raises(RecipeError) as error:
        adapt(Small(), config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_everything_frozen_is_an_error():
    model = Small()
    freeze(model, towers(model))
    with pytest.raises(RecipeError, match="nothing is left to train"):
        trained_parameters(model)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_adapters_start_without_effect_then_act_and_merge_to_the_same_output(dora):
    model = Small()
    plain, names = model(*inputs()), {name for name, _ in model.named_parameters()}
    assert attach_lora(model, LoraConfig(rank=2, dora=dora)) == ["backbone.0", "backbone.2"]
    torch.testing.assert_close(model(*inputs()), plain)
    stir(model)
    changed = model(*inputs())
    assert not torch.allclose(changed, plain, atol=1e-2)
    merge_lora(model)
    torch.testing.assert_close(model(*inputs()), changed, rtol=1e-5, atol=1e-5)
    assert {name for name, _ in model.named_parameters()} == names and type(model.backbone[0]) is nn.Linear


def test_adapters_leave_other_towers_trained_and_freeze_their_own():
    model = Small()
    attach_lora(model, LoraConfig(targets=["backbone.0"]))
    base = {name for name in trained(model) if "lora_" not in name}
    assert base == {"embedding.weight", "encoders.cell.weight", "encoders.cell.bias"} | {
        f"heads.{name}.{kind}" for name in ("words", "box") for kind in ("weight", "bias")
    }
    assert set(adapted_layers(model)) == {"backbone.0"}


def test_the_seed_decides_the_adapters_and_no_global_generator_moves():
    models = [Small() for _ in range(3)]
    before = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        attach_lora(model, LoraConfig(), seed=seed)
    first, second, third = (adapter_tensors(model)["backbone.0.lora_A.weight"] for model in models)
    assert torch.equal(first, second) and not torch.equal(first, third) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("attached", [False, True], ids=["plain model", "attached model"])
def test_saved_adapters_come_back_equal(tmp_path, attached):
    config = LoraConfig(rank=3, targets=["backbone", "heads.box"], dora=True)
    model = Small()
    attach_lora(model, config)
    stir(model)
    save_adapters(model, tmp_path, config)
    other = Small()
    if attached:
        attach_lora(other, config, seed=9)
    assert load_adapters(other, tmp_path) == ["backbone.0", "backbone.2", "heads.box"]
    assert torch.equal(model(*inputs()), other(*inputs()))
    assert (tmp_path / "adapter.safetensors").stat().st_size < 4000


def test_adapters_of_a_model_that_is_in_use_drop_nothing(tmp_path):
    config = LoraConfig(rank=2, dropout=0.5)
    model, other = Small(), Small().eval()
    attach_lora(model, config)
    stir(model)
    save_adapters(model, tmp_path, config)
    load_adapters(other, tmp_path)
    assert torch.equal(other(*inputs()), model.eval()(*inputs()))


def break_weights(change):
    def apply(folder):
        tensors = read_tensors(folder / "adapter.safetensors")
        change(tensors)
        (folder / "adapter.safetensors").write_bytes(b"".join(bytes(piece) for piece in safetensors_bytes(tensors)))

    return apply


def break_config(change):
    def apply(folder):
        content = json.loads((folder / "adapter.json").read_text())
        change(content)
        (folder / "adapter.json").write_text(json.dumps(content))

    return apply


def test_adapters_of_another_scale_are_not_put_into_those_that_a_model_has(tmp_path):
    model, other = Small(), Small()
    attach_lora(model, LoraConfig(rank=2, alpha=4))
    stir(model)
    save_adapters(model, tmp_path, LoraConfig(rank=2, alpha=4))
    attach_lora(other, LoraConfig(rank=2, alpha=16))
    before = other(*inputs())
    with pytest.raises(CheckpointError, match=r"adapter\.json: was trained with alpha 4 at rank 2"):
        load_adapters(other, tmp_path)
    assert torch.equal(other(*inputs()), before)


FAULTS = {
    "missing key": (break_weights(lambda t: t.pop("backbone.0.lora_A.weight")), ["1 tensors", "missing backbone.0.lora_A.weight"]),
    "extra key": (break_weights(lambda t: t.update(more=torch.zeros(1))), ["unknown more"]),
    "all keys": (
        break_weights(lambda t: [t.update({f"base.{k}": t.pop(k)}) for k in list(t)]),
        ["8 tensors", "missing backbone.0.lora_A.weight", "unknown base.backbone.0.lora_A.weight"],
    ),
    "many keys": (break_weights(lambda t: t.update({f"x{i:02}": torch.zeros(1) for i in range(30)})), ["30 tensors", "x09", "and 20 more"]),
    "misshapen": (
        break_weights(lambda t: t.update({"backbone.2.lora_B.weight": torch.zeros(8, 5)})),
        ["backbone.2.lora_B.weight is [8, 5], not [8, 2]"],
    ),
    "other rank": (break_config(lambda c: c["lora"].update(rank=4)), ["lora_A.weight is [2, 8], not [4, 8]"]),
    "other layer": (break_config(lambda c: c["layers"].append("backbone.7")), ["adapter.json", "backbone.7"]),
    "unknown option": (break_config(lambda c: c["lora"].update(rang=4)), ["adapter.json", "rang", "Did you mean 'rank'?"]),
    "no layers": (break_config(lambda c: c.update(layers=[])), ["adapter.json", "layers"]),
    "not JSON": (lambda folder: (folder / "adapter.json").write_text("{"), ["adapter.json", "not the description"]),
    "cut weights": (lambda folder: (folder / "adapter.safetensors").write_bytes(b"\x10"), ["adapter.safetensors", "broken"]),
    "no weights": (lambda folder: (folder / "adapter.safetensors").unlink(), ["adapter.safetensors", "no such file"]),
}


def test_twelve_ways_to_break_an_adapter_are_tried():
    assert len(FAULTS) == 12


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_does_not_fit_is_refused_and_the_model_stays_as_it_was(tmp_path, fault):
    config = LoraConfig(rank=2)
    source = Small()
    attach_lora(source, config)
    stir(source)
    save_adapters(source, tmp_path, config)
    damage, words = FAULTS[fault]
    damage(tmp_path)
    model = Small()
    before, was_trained = model(*inputs()), trained(model)
    with pytest.raises(CheckpointError) as error:
        load_adapters(model, tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert torch.equal(model(*inputs()), before) and trained(model) == was_trained


def test_an_adapter_that_is_not_finite_is_not_merged():
    model = Small()
    attach_lora(model, LoraConfig())
    with torch.no_grad():
        adapter_tensors(model)["backbone.0.lora_B.weight"].fill_(float("nan"))
    with pytest.raises(NumericsError, match="merged"):
        merge_lora(model)


def test_attached_twice_is_an_error():
    model = Small()
    attach_lora(model, LoraConfig())
    with pytest.raises(RecipeError, match="merge them first"):
        attach_lora(model, LoraConfig(targets=["heads.box"]))


PARTS = [("mixers", name) for name in sorted(MIXERS.entries)] + [("feed-forwards", name) for name in sorted(FEED_FORWARDS.entries)]


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=[name for _, name in PARTS])
def test_an_adapter_reaches_every_linear_layer_of_every_mixer_and_feed_forward(kind, name):
    layer = {"mixer": {"type": name}} if kind == "mixers" else {"feed_forward": {"type": name}}
    torch.manual_seed(0)
    model = build(layer)
    ids = torch.arange(12)[None] % 20
    plain = model.logits(ids)
    adapted = attach_lora(model, LoraConfig(rank=2))
    linear = [key for key, part in model.backbone.named_modules() if isinstance(part, nn.Linear) and "lora_" not in key]
    assert len(adapted) >= 2 and len(adapted) == len([key for key in linear if key.endswith("base_layer")])
    for key, layer in adapted_layers(model).items():
        weight = layer.lora_B["default"].weight
        with torch.no_grad():
            weight.normal_(generator=torch.Generator().manual_seed(3))
        changed = model.logits(ids)
        assert not torch.equal(changed, plain), f"{key}: an adapter has no effect; is its weight read without a call?"
        changed.square().sum().backward()
        assert weight.grad is not None and weight.grad.abs().max() > 0, key
        with torch.no_grad():
            weight.zero_()
    assert all(p.grad is None for key, p in model.backbone.named_parameters() if "lora_" not in key)


def build(layer):
    mixer = layer.get("mixer", {"type": "attention", "num_heads": 2})
    if mixer["type"] == "mamba2":
        mixer = {**mixer, "head_size": 16, "state_size": 8}
    if mixer["type"] == "attention":
        mixer = {**mixer, "num_heads": 2}
    options = {"width": 16, "num_layers": 2, "pattern": [mixer], **{k: v for k, v in layer.items() if k == "feed_forward"}}
    config = ModelConfig.model_validate({"schema": 1, "vocabulary": {"text": 20}, "backbone": BackboneConfig(**options)})
    return MultimodalLM(config).train()


def test_importing_adapt_loads_no_peft():
    code = "import sys, mmlm.adapt; print('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.strip() == "False"


def test_a_copied_model_keeps_its_adapters():
    model = Small()
    attach_lora(model, LoraConfig())
    stir(model)
    assert torch.equal(copy.deepcopy(model)(*inputs()), model(*inputs()))
