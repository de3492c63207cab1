"""One id space: ranges follow one another, ids go there and back, and what exists stays."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import DataError, RecipeError
from mmlm.stream import Segment, Stream, pack
from mmlm.vocabulary import Vocabulary

SIZES = {"text": 5, "special": 1, "codec.0": 4}


def test_every_id_lies_in_one_range_and_goes_there_and_back():
    vocabulary = Vocabulary(SIZES)
    assert len(vocabulary) == 10 and vocabulary.sizes == SIZES and len(Vocabulary({})) == 0
    for index in range(10):
        name = vocabulary.name_of(index)
        local = vocabulary.to_local(name, torch.tensor([index]))
        assert 0 <= int(local) < SIZES[name] and vocabulary.to_global(name, local).tolist() == [index]
    assert vocabulary.to_global("codec.0", torch.tensor([[3, 0]])).tolist() == [[9, 6]]
    assert vocabulary.to_global("text", torch.tensor([], dtype=torch.long)).tolist() == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: v.to_global("special", torch.tensor([0, 1])), DataError, "range 'special' holds ids 0 to 0, but found 0 to 1"),
        (lambda v: v.to_global("text", torch.tensor([-1])), DataError, "found -1 to -1"),
        (lambda v: v.to_local("special", torch.tensor([5, 6])), DataError, "lie within 5 and 5, but found 5 to 6"),
        (lambda v: v.to_local("special", torch.tensor([4])), DataError, "found 4 to 4"),
        (lambda v: v.name_of(10), DataError, "id 10 lies in no range; the vocabulary holds 0 to 9"),
        (lambda v: v.name_of(-1), DataError, "id -1"),
        (lambda v: v.span("txt"), RecipeError, "unknown vocabulary range 'txt'. Did you mean 'text'"),
        (lambda v: v.extended({"text": 6}), RecipeError, "range 'text' has 5 ids and cannot become 6"),
        (lambda v: v.extended({"codec.0": 3}), RecipeError, "range 'codec.0' has 4 ids and cannot become 3"),
        (lambda v: v.extended({"unit": 0}), RecipeError, "range 'unit' must hold at least 1 id, but holds 0"),
    ],
)
def test_faults_say_what_is_there(call, error, message):
    with pytest.raises(error, match=message):
        call(Vocabulary(SIZES))


def test_new_ranges_come_after_the_old_ones_and_the_last_may_grow():
    wider = Vocabulary(SIZES).extended({"codec.0": 6, "unit": 2, "text": 5})
    assert wider.sizes == {"text": 5, "special": 1, "codec.0": 6, "unit": 2}
    assert wider.span("text") == range(5) and wider.span("unit") == range(12, 14)


def test_vocabularies_are_equal_when_every_range_has_the_same_ids():
    assert Vocabulary(SIZES) == Vocabulary(dict(SIZES))
    assert Vocabulary(SIZES) != Vocabulary(dict(reversed(SIZES.items())))
    assert Vocabulary(SIZES) != SIZES


def test_a_head_of_some_ranges_predicts_the_new_ids_of_one_that_grew(tiny):
    model = tiny(["attention"], {"language_model": {"type": "language_model", "ranges": ["text", "mark"]}}, {"text": 20, "mark": 3})
    model.extend_vocabulary({"mark": 5})
    assert torch.equal(model.heads["language_model"].rows, torch.arange(25))
    batch = pack([Stream([Segment("text", torch.tensor([1, 2])), Segment("mark", torch.tensor([4]), weight=1.0)])], model.vocabulary)
    assert model.losses(batch)["language_model"][0].isfinite() and model.logits(batch.ids).isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("grown", "spans"), [({"codec.1": 9}, {"codec.1": 9}), ({"unit": 2, "codec.2": 5}, {"codec.1": 7, "codec.2": 5})])
def test_a_head_of_codebooks_predicts_new_ids_and_new_codebooks(tiny, tmp_path, tied, grown, spans):
    from mmlm.model import MultimodalLM

    heads = {"codes": {"type": "codebooks", "tied": tied}}
    model = tiny(["attention"], heads, {"text": 20, "codec.0": 6, "codec.1": 7}).float()
    h_d = torch.randn(16, generator=torch.Generator().manual_seed(0))
    before = model.heads["codes"].predict(h_d, "codec.1")
    model.extend_vocabulary(grown)
    head = model.heads["codes"]
    torch.testing.assert_close(head.predict(h_d, "codec.1")[:7], before)
    assert {name: len(head.predict(h_d, name)) for name in spans} == spans
    model.save_pretrained(tmp_path)
    again = MultimodalLM.from_pretrained(tmp_path).heads["codes"]
    assert all(torch.equal(again.predict(h_d, name), head.predict(h_d, name)) for name in head.spans)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["mean", "random"])
def test_wider_models_keep_old_scores_bit_equal_and_save_and_load(tiny, tmp_path, tied, init):
    from mmlm.model import MultimodalLM

    model = tiny(["attention"], {"language_model": {"type": "language_model", "tied": tied}}).float()
    ids = torch.randint(0, 39, (2, 7), generator=torch.Generator().manual_seed(0))
    before, hidden = model.logits(ids), model.backbone(model.embedding(ids), *layout(ids))[0]
    model.extend_vocabulary({"unit": 4}, init)
    after = model.logits(ids)
    assert after.shape[-1] == 43 and torch.equal(after[..., :39], before)
    matrix = model.heads["language_model"].matrix
    assert matrix.axes == ("vocab", "residual") and matrix.shape == (43, 16)
    if init == "mean":
        torch.testing.assert_close(after[..., 39:], (hidden @ matrix[:39].mean(0))[..., None].expand(-1, -1, 4), rtol=0, atol=1e-5)
    model.extend_vocabulary({})
    model.save_pretrained(tmp_path)
    assert torch.equal(MultimodalLM.from_pretrained(tmp_path).logits(ids), after)


def layout(ids):
    from mmlm.layout import Layout

    return (Layout.plain(*ids.shape),)
