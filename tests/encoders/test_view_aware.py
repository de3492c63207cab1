"""Views of sweeps: nothing at first, then the cells of one sector and the queries alone; sweeps of a batch do not touch one another."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from mmlm.base.errors import DataError, RecipeError
from mmlm.encoders.config import QueryFormerConfig, ViewAwareConfig
from mmlm.encoders.query_former import QueryFormer
from mmlm.encoders.views import VIEWS, from_border, view_of

SMALL = {"low": [-12.8, -12.8, -3.0], "high": [12.8, 12.8, 3.0], "cell": 0.8, "channels": 8}
QUERIES = {"num_queries": 5, "num_layers": 2, "num_heads": 2, "width": 16}


def built(**options):
    torch.manual_seed(0)
    return ViewAwareConfig.model_validate({"pillars": SMALL, "queries": QUERIES, **options}).build(5).eval()


def sweep(seed: int, view: int, count: int = 300) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 4, generator=g) * 2 - 1) * torch.tensor([12.0, 12.0, 2.0, 1.0])
    return torch.cat([points, torch.full((count, 1), float(view))], 1)


def read(encoder, *sweeps):
    return encoder(torch.cat(sweeps), torch.tensor([len(each) for each in sweeps]))


def test_views_are_six_of_sixty_degrees_and_ahead_is_the_front() -> None:
    for number, name in enumerate(VIEWS):
        for off in (-29, 0, 29):
            angle = math.radians(60 * number + off)
            assert view_of(math.cos(angle), math.sin(angle)) == number
            assert from_border(math.cos(angle), math.sin(angle)) == pytest.approx(math.radians(30 - abs(off)))
        assert ("left" in name) == (number in (1, 2)) and ("front" in name) == (number in (0, 1, 5))


@torch.no_grad()
def test_at_first_views_change_nothing_and_later_they_do() -> None:
    with_views, without = built(), built(view_vectors=False)
    assert torch.equal(with_views.views_vd, torch.zeros(6, 16))
    assert with_views.state_dict().keys() - without.state_dict().keys() == {"views_vd"}
    for view in (-1, 0, 3):
        assert torch.equal(read(with_views, sweep(1, view)), read(without, sweep(1, view)))
    with_views.views_vd.normal_()
    found = [read(with_views, sweep(1, view)) for view in (-1, 0, 3)]
    assert all(float((one - other).abs().max()) > 1e-3 for one, other in ((found[0], found[1]), (found[1], found[2])))
    assert torch.equal(read(without, sweep(1, 0)), read(without, sweep(1, 3)))


@torch.no_grad()
def test_the_vector_of_a_view_goes_to_the_cells_of_its_sector_and_to_the_queries() -> None:
    encoder = built()
    encoder.views_vd.normal_()
    seen = {}
    encoder.norm.register_forward_pre_hook(lambda _, given: seen.update(cells=given[0]))
    encoder.former.register_forward_pre_hook(lambda _, given: seen.update(added=given[1]))
    views = encoder.views_vd.clone()
    encoder.views_vd.zero_()
    read(encoder, sweep(1, 2))
    plain = seen["cells"]
    encoder.views_vd.copy_(views)
    read(encoder, sweep(1, 2), sweep(1, -1))
    sectors = torch.tensor([view_of(x, y) for x, y in encoder.middles()])
    assert len(sectors) == plain.shape[1] == 256 and torch.bincount(sectors).min() > 30
    one, whole = (seen["cells"] - plain).unbind(0)
    torch.testing.assert_close(one, views[2] * (sectors == 2)[:, None], atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, views[sectors], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["added"], torch.stack([views[2], views.mean(0)]))


@torch.no_grad()
def test_sweeps_of_a_batch_are_those_alone_and_cells_lie_where_points_do() -> None:
    encoder = built()
    encoder.views_vd.normal_()
    some = [sweep(1, 2, 300), sweep(2, -1, 50), sweep(3, 5, 400)]
    torch.testing.assert_close(read(encoder, *some), torch.cat([read(encoder, each) for each in some]), atol=1e-5, rtol=1e-4)
    far = torch.full((20, 5), 500.0)
    far[:, 4] = 1
    assert bool(read(encoder, far).isfinite().all())
    middles = encoder.middles()
    point = torch.tensor([[9.0, -6.0, 0.0, 0.5]]).repeat(4, 1)
    canvas = encoder.pillars.canvas(point)[0].abs().sum(0)
    row, column = (canvas > 0).nonzero()[0].tolist()
    x, y = middles[(row // 2) * 16 + column // 2]
    assert abs(x - 9.0) <= 0.8 and abs(y + 6.0) <= 0.8


@torch.no_grad()
def test_queries_that_stand_somewhere_see_what_is_near_and_know_where_they_are() -> None:
    encoder = built(near=2.0, queries={**QUERIES, "num_queries": 16, "num_layers": 1})
    standing, middles = torch.tensor(encoder.standing()), torch.tensor(encoder.middles())
    assert standing[0].tolist() == pytest.approx([-9.6, -9.6]) and standing[1].tolist() == pytest.approx([-3.2, -9.6])
    seen = {}
    hook = encoder.former.register_forward_pre_hook(lambda _, given, named: seen.update(cells=given[0], **named), with_kwargs=True)
    read(encoder, sweep(1, 2))
    hook.remove()
    cells, begins_kd = seen.pop("cells"), seen["begins_bkd"][0]
    assert not torch.equal(begins_kd[0], begins_kd[1]) and float(seen["bias_kn"].min()) >= -20
    cell = int((middles - torch.tensor([8.0, 8.0])).norm(dim=1).argmin())
    moved = cells.clone()
    moved[0, cell] += torch.randn(16, generator=torch.Generator().manual_seed(0))
    change_k = (encoder.former(moved, **seen) - encoder.former(cells, **seen)).norm(dim=-1)[0]
    distance_k = (standing - middles[cell]).norm(dim=1)
    assert int(change_k.argmax()) == int(distance_k.argmin()) and float(change_k[distance_k > 14].max()) < 0.01 * float(change_k.max())
    with pytest.raises(ValidationError, match="near: a map of 16 x 16 cells cannot be cut into 3 x 3 equal parts"):
        ViewAwareConfig.model_validate({"pillars": SMALL, "near": 2.0, "queries": {**QUERIES, "num_queries": 9}})
    with pytest.raises(ValidationError, match="near: queries on a square grid are a square number"):
        ViewAwareConfig.model_validate({"near": 2.0, "queries": QUERIES})


@torch.no_grad()
def test_a_query_that_stands_somewhere_begins_with_the_cells_around_it() -> None:
    encoder = built(near=2.0, queries={**QUERIES, "num_queries": 16})
    cells = torch.arange(256.0).expand(1, 16, 256).transpose(1, 2)  # row after row along y
    middles, standing = torch.tensor(encoder.middles()), torch.tensor(encoder.standing())
    around = encoder._squares(cells)[0].unflatten(1, (16, 16))[..., 0].long()
    assert sorted(around.flatten().tolist()) == list(range(256))
    assert float((middles[around] - standing[:, None]).abs().max()) == pytest.approx(2.4)
    begun = []
    hook = encoder.former.register_forward_pre_hook(lambda _, given, named: begun.append(named["begins_bkd"][0]), with_kwargs=True)
    some = sweep(1, -1)
    read(encoder, some)
    some[0, :3] = torch.tensor([12.7, 12.7, 2.0])
    read(encoder, some)
    hook.remove()
    changed_k = (begun[0] - begun[1]).norm(dim=1)
    assert float(changed_k[15]) > 0 and changed_k.argmax() != 0 and built().around is None


def test_what_cannot_be_is_told() -> None:
    encoder = built()
    mixed = sweep(1, 2)
    mixed[7, 4] = 3
    for faulty in (mixed, sweep(1, 6), sweep(1, -2)):
        with pytest.raises(DataError, match="asked about one view"):
            read(encoder, faulty)
    with pytest.raises(RecipeError, match="points of 5 numbers"):
        ViewAwareConfig().build(4)
    with pytest.raises(ValidationError, match="multiple of num_heads"):
        QueryFormerConfig(width=30, num_heads=4)


def test_queries_see_the_vectors_that_are_there_and_gradients_reach_everything() -> None:
    torch.manual_seed(0)
    former = QueryFormer(QueryFormerConfig.model_validate(QUERIES))
    x, mask = torch.randn(2, 9, 16), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 4:] = False
    found = former(x, None, mask)
    assert found.shape == (2, 5, 16)
    torch.testing.assert_close(found[1:], former(x[1:, :4]))
    order = torch.randperm(9)
    torch.testing.assert_close(former(x[:, order]), former(x), atol=1e-5, rtol=1e-4)
    encoder = built().train()
    read(encoder, sweep(1, 2), sweep(2, -1)).square().sum().backward()
    assert [name for name, each in encoder.named_parameters() if each.grad is None] == []
