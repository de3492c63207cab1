"""The cache of a whole model: what it refuses, how it grows, and how its rows stay apart."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmlm.backbone.cache import Cache
from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.layout import EVERYTHING, Layout

HYBRID = [
    {"mixer": {"type": "attention", "num_heads": 2, "num_kv_heads": 1}, "feed_forward": {"type": "moe", "num_experts": 3, "hidden": 8}},
    {"type": "mamba2", "state_size": 4, "head_size": 8},
    {"feed_forward": {"type": "gelu", "hidden": 12}},
]


@pytest.fixture
def backbone(tiny):
    return tiny(HYBRID, num_layers=4).backbone.requires_grad_(False)


def vectors(batch, length, seed=0):
    return torch.randn(batch, length, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def read(backbone, x, cuts=None, room=0):
    cache, start, parts = backbone.init_cache(len(x), room), 0, []
    for part in x.split(cuts or [x.shape[1]], dim=1):
        parts.append(backbone(part, Layout.plain(len(x), part.shape[1], start=start), cache)[0])
        start += part.shape[1]
    return torch.cat(parts, dim=1), cache


def test_all_layers_of_a_hybrid_go_on_in_steps_and_chunks(backbone):
    x = vectors(2, 11)
    whole = backbone(x, Layout.plain(2, 11))[0]
    for cuts, room in (([1] * 11, 0), ([4, 7], 11), ([3, 1, 1, 6], 2)):
        y, cache = read(backbone, x, cuts, room)
        torch.testing.assert_close(y, whole, rtol=0, atol=1e-10)
        assert cache.length.tolist() == [11, 11] and cache.batch_size == 2 and cache.layers[2] is None


def test_room_is_used_first_and_then_doubled(backbone):
    cache = backbone.init_cache(1, 4)
    sizes = []
    for step in range(10):
        backbone(vectors(1, 1, step), Layout.plain(1, 1, start=step), cache)
        sizes.append(cache.layers[0].tensors["key"].shape[2])
    assert sizes == [4] * 4 + [8] * 4 + [16] * 2


def test_a_snapshot_is_not_changed_by_what_follows(backbone):
    x = vectors(2, 8)
    whole = backbone(x, Layout.plain(2, 8))[0][:, 5:]
    kept = read(backbone, x[:, :5], room=20)[1].snapshot()
    before = [tensor.clone() for state in kept.layers if state for tensor in state.tensors.values()]
    for _ in range(2):
        cache = kept.snapshot()
        backbone(vectors(2, 6, 3), Layout.plain(2, 6, start=5), cache)
        y = backbone(x[:, 5:], Layout.plain(2, 3, start=5), kept.snapshot())[0]
        torch.testing.assert_close(y, whole, rtol=0, atol=1e-10)
        after = [tensor for state in kept.layers if state for tensor in state.tensors.values()]
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_cache_of_another_kind_of_number(backbone):
    cache = backbone.init_cache(1, 4, dtype=torch.bfloat16)
    assert cache.layers[0].tensors["key"].dtype == torch.bfloat16 and cache.layers[1].tensors["state"].dtype == torch.float32
    y = backbone(vectors(1, 4), Layout.plain(1, 4), cache)[0]
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, backbone(vectors(1, 4), Layout.plain(1, 4))[0], rtol=0, atol=0.1)
    assert cache.to("meta").layers[0].tensors["key"].device.type == "meta"


def test_faults_are_told(backbone, tmp_path):
    cache = read(backbone, vectors(3, 2))[1]
    with pytest.raises(CheckpointError, match=r"a cache of 3 rows cannot be split into \[1, 1\]"):
        cache.split([1, 1])
    with pytest.raises(CheckpointError, match="recurrent state cannot be cropped"):
        cache.crop(torch.tensor([1, 1, 1]))
    with pytest.raises(CheckpointError, match="only a cache of one row without a trunk can fan out; this one has 3"):
        cache.fan_out(2)
    path = tmp_path / "cache.safetensors"
    with pytest.raises(CheckpointError, match="cache.safetensors: not a saved cache"):
        Cache.load(path)
    cache.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(CheckpointError, match="cache.safetensors: not a saved cache"):
        Cache.load(path)
    from safetensors.torch import save_file

    save_file({"length": torch.zeros(2)}, str(path))
    with pytest.raises(CheckpointError, match="cache.safetensors: not a saved cache"):
        Cache.load(path)


def marked(length, batch=2):
    """A layout whose first five tokens have marks that the later ones see through windows."""
    layout = Layout.plain(batch, length)
    layout.mark = torch.full((batch, length), -1)
    layout.mark[:, :4] = torch.arange(4)
    layout.mark[1:, 2] = -1
    first = torch.arange(length).clamp_min(4) // 3 - 1
    layout.reach = torch.stack([first, first + torch.arange(length) % 2], dim=-1).expand(batch, length, 2).clone()
    layout.reach[:, :5] = torch.tensor(EVERYTHING)
    return layout


def part(layout, start, stop):
    names = ("document", "position", "mark", "reach")
    return dataclasses.replace(layout, **{name: getattr(layout, name)[:, start:stop] for name in names})


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"soft_cap": 1.0, "alibi": True, "rope": None}], ids=str)
@pytest.mark.parametrize("cuts", [[1] * 11, [4, 7], [5, 1, 2, 3]], ids=str)
def test_a_window_that_follows_an_alignment_is_the_same_row_by_row(tiny, options, cuts, tmp_path):
    backbone = tiny([{"type": "attention", "num_heads": 2, **options}], num_layers=3).backbone.requires_grad_(False)
    x, layout = vectors(2, 11), marked(11)
    whole = backbone(x, layout)[0]
    assert (backbone(x, dataclasses.replace(layout, reach=None))[0] - whole)[:, 6:].abs().amax((1, 2)).min() > 1e-3
    cache, start, parts = backbone.init_cache(2), 0, []
    for size in cuts:
        one = part(layout, start, start + size)
        if start >= 4:
            one.mark = None
        parts.append(backbone(x[:, start : start + size], one, cache)[0])
        start += size
        cache = cache.select(torch.tensor([1, 0])).select(torch.tensor([1, 0])).snapshot()
        cache.save(tmp_path / "kept")
        cache = Cache.load(tmp_path / "kept")
        cache = cache.split([1, 1])[0].merge(cache.split([1, 1])[1]).crop(cache.length)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-10)
    assert cache.marks[:, :11].tolist() == layout.mark.tolist()
    assert (cache.reset(torch.tensor([True, False])).marks[0] == -1).all()


def test_marks_of_one_row_do_not_reach_another(tiny):
    backbone = tiny([{"type": "attention", "num_heads": 2}]).backbone.requires_grad_(False)
    plain = read(backbone, vectors(1, 4))[1]
    cache = backbone.init_cache(1)
    backbone(vectors(1, 4, 1), part(marked(4, 1), 0, 4), cache)
    both = plain.merge(cache)
    assert both.marks.tolist() == [[-1] * 4, [0, 1, 2, 3]] and cache.merge(plain).marks.tolist() == [[0, 1, 2, 3], [-1] * 4]
    assert plain.merge(plain).marks is None


def test_recurrent_mixers_refuse_a_window_that_follows_an_alignment(backbone):
    for cache in (None, backbone.init_cache(2)):
        with pytest.raises(RecipeError, match="mamba2 reads from left to right: .*windows by alignment"):
            backbone(vectors(2, 11), marked(11), cache)


def test_windows_that_follow_an_alignment_reach_into_a_shared_prefix(tiny):
    backbone = tiny([{"type": "attention", "num_heads": 2}]).backbone.requires_grad_(False)
    x, layout = vectors(1, 9), marked(9, 1)
    whole = backbone(x, layout)[0]
    cache = backbone.init_cache(1)
    backbone(x[:, :5], part(layout, 0, 5), cache)
    cache = cache.fan_out(2)
    more = dataclasses.replace(part(layout, 5, 9), mark=None)
    both = dataclasses.replace(more, **{name: getattr(more, name).expand(2, *[-1] * (getattr(more, name).ndim - 1)) for name in
                                        ("document", "position", "reach")})  # fmt: skip
    y = backbone(x[:, 5:].expand(2, -1, -1), both, cache)[0]
    torch.testing.assert_close(y, whole[:, 5:].expand(2, -1, -1), rtol=0, atol=1e-10)
