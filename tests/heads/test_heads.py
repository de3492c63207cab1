"""Heads against full logits and by hand; sums and weights, so that micro-batches add up to the batch."""

from __future__ import annotations

import pytest
import torch

from mmlm.base.errors import DataError, RecipeError
from mmlm.heads.config import HEADS
from mmlm.stream import NO_LABEL, Segment, Stream, pack, pad

ATTENTION = {"type": "attention", "num_heads": 2}


def streams():
    g = torch.Generator().manual_seed(0)
    made = []
    for number, size in enumerate((7, 4, 6)):
        ids = torch.randint(0, 20, (size,), generator=g)
        weight = torch.randint(0, 4, (size,), generator=g) / 4
        answer = Segment("label", torch.tensor([4, 4]), labels=torch.tensor([NO_LABEL, number]), weight=1.5, num_options=3 + number % 2)
        answer.tags["target"] = torch.tensor([torch.nan, number - 0.7], dtype=torch.float64)
        free = Segment("label", torch.tensor([1]), labels=torch.tensor([3]), weight=0.5)
        made.append(Stream([Segment("text", ids, weight=weight), answer, free]))
    return made


def by_full_logits(scores_v, label, allowed, config):
    """Cross-entropy with a smoothed target, written as a sum over the allowed rows."""
    rows = list(allowed)
    if config.soft_cap:
        scores_v = config.soft_cap * torch.tanh(scores_v / config.soft_cap)
    partition = torch.log(sum(scores_v[row].exp() for row in rows))
    smoothing = config.label_smoothing
    loss = 0
    for row in rows:
        share = smoothing / len(rows) + (1 - smoothing) * (row == label)
        loss = loss - share * (scores_v[row] - partition)
    return loss + config.z_loss * partition**2


OPTIONS = [
    {}, {"tied": False}, {"z_loss": 0.3}, {"label_smoothing": 0.2}, {"ranges": ["text", "label"], "z_loss": 0.1, "label_smoothing": 0.1},
    {"ranges": ["mask", "label", "text"]}, {"soft_cap": 0.5, "z_loss": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("make", [pack, pad])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_language_model_loss_is_that_of_full_logits_with_gradients(tiny, options, make):
    model = tiny([ATTENTION], {"language_model": {"type": "language_model", **options}})
    head, batch = model.heads["language_model"], make(streams(), model.vocabulary)
    h = model.hidden(batch)[0].detach().requires_grad_()
    spans = [model.vocabulary.span(name) for name in options.get("ranges", model.vocabulary.ranges)]
    wanted, weights = 0, 0.0
    for h_d, label, weight, (first, number) in zip(
        h.flatten(0, 1), batch.labels.flatten().tolist(), batch.weight.flatten().tolist(), batch.options.flatten(0, 1).tolist(), strict=True
    ):
        if label != NO_LABEL and weight:
            allowed = range(first, first + number) if number else sorted(row for span in spans for row in span)
            wanted = wanted + weight * by_full_logits(head.matrix @ h_d, label, allowed, head.config)
            weights += weight
    total, weight = head.loss(h, batch)["language_model"]
    assert float(weight) == weights == head.loss_weights(batch)["language_model"] > 0
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-10)
    for got, want in zip(*(torch.autograd.grad(loss, [h, head.matrix]) for loss in (total, wanted)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_rows_that_cannot_be_predicted_have_no_chance_and_cannot_be_labels(tiny):
    model = tiny([ATTENTION], {"language_model": {"type": "language_model", "ranges": ["label", "mask"]}})
    ids = torch.tensor([[1, 2, 3]])
    scores = model.logits(ids)
    assert (scores[..., :20] == -torch.inf).all() and (scores[..., 25:38] == -torch.inf).all()
    free = tiny([ATTENTION]).logits(ids)
    assert torch.equal(scores[..., 20:25], free[..., 20:25]) and torch.equal(scores[..., 38], free[..., 38])
    head = model.heads["language_model"]
    assert torch.equal(head.predict(torch.ones(2, 16).double(), range(18, 22)), torch.ones(2, 16).double() @ head.matrix[18:22].T)
    with pytest.raises(DataError, match="allowed rows"):
        model.losses(pack([Stream([Segment("text", torch.tensor([1, 2]), weight=1.0)])], model.vocabulary))


def test_scores_of_some_rows_are_those_of_all(tiny):
    head = tiny([ATTENTION], {"language_model": {"type": "language_model", "tied": False}}).heads["language_model"]
    h = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = head.predict(h)
    assert whole.shape == (2, 3, 39) and whole.dtype == torch.float64 and head.predict(h.float()).dtype == torch.float32
    torch.testing.assert_close(head.predict(h, range(20, 25)), whole[..., 20:25], rtol=0, atol=1e-12)
    torch.testing.assert_close(head.predict(h, torch.tensor([30, 1])), whole[..., [30, 1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["squared", "absolute", "huber"])
def test_regression_by_hand_with_gradients(tiny, loss):
    heads = {"number": {"type": "regression", "loss": loss}}
    model = tiny([ATTENTION], heads)
    head, batch = model.heads["number"], pack(streams(), model.vocabulary)
    assert set(HEADS.entries) == {"codebooks", "language_model", "regression"}
    h = model.hidden(batch)[0].detach().requires_grad_()
    wanted = 0
    for place in batch.tags["target"][0].isfinite().nonzero()[:, 0].tolist():
        error = h[0, place] @ head.out.weight[0] + head.out.bias[0] - batch.tags["target"][0, place]
        small = abs(float(error.detach())) < 1
        one = {"squared": error**2, "absolute": error.abs(), "huber": error**2 / 2 if small else error.abs() - 0.5}[loss]
        wanted = wanted + one
    total, weight = head.loss(h, batch)["regression"]
    assert float(weight) == 3 == head.loss_weights(batch)["regression"]
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-10)
    tensors = [h, *head.parameters()]
    for got, want in zip(*(torch.autograd.grad(value, tensors) for value in (total, wanted)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    bare = pack([Stream([Segment("text", torch.tensor([1, 2]))])], model.vocabulary)
    total, weight = head.loss(model.hidden(bare)[0], bare)["regression"]
    assert float(total.detach()) == float(weight) == head.loss_weights(bare)["regression"] == 0


def books(seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(0, size, (5,), generator=g) for size in (6, 7)], dim=1)
    codes[1, 0] = codes[4, 1] = -1
    words = Segment("text", torch.randint(0, 20, (3,), generator=g), weight=1.0)
    return Stream(
        [words, Segment("codec", codes, weight=torch.tensor([1.0, 0.5, 0, 2, 1])), Segment("label", torch.tensor([1]), weight=1.0)]
    )


BOOKS = ["codec.0", "codec.1"]


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"tied": False, "z_loss": 0.2, "label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("make", [pack, pad])
def test_codebooks_are_softmaxes_of_their_own_ranges_with_gradients(tiny, options, make):
    model = tiny([ATTENTION], {"language_model": {"type": "language_model"}, "books": {"type": "codebooks", "ranges": BOOKS, **options}})
    head, batch = model.heads["books"], make([books(), books(1)], model.vocabulary)
    head.config.__dict__["soft_cap"] = None
    h = model.hidden(batch)[0].detach().requires_grad_()
    wanted, cells = 0, 0.0
    for h_d, labels, weight in zip(h.flatten(0, 1), batch.code_labels.flatten(0, 1), batch.weight.flatten().tolist(), strict=True):
        for book, label in enumerate(labels.tolist()):
            if label != NO_LABEL:
                first, size = (25, 6) if book == 0 else (31, 7)
                scores = head.matrix[first - 25 : first - 25 + size] @ h_d
                torch.testing.assert_close(head.predict(h_d, BOOKS[book]), scores, rtol=0, atol=1e-12)
                wanted = wanted + weight * by_full_logits(scores, label - first, range(size), head.config)
                cells += weight
    total, weight = head.loss(h, batch)["codebooks"]
    assert float(weight) == cells == head.loss_weights(batch)["codebooks"] == 2 * 7.5
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-10)
    table = model.embedding.weight if head.weight is None else head.weight
    for got, want in zip(*(torch.autograd.grad(loss, [h, table]) for loss in (total, wanted)), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    losses = model.losses(batch)
    assert float(losses["codebooks"][1]) == 15 and float(losses["language_model"][1]) == 6


def test_codebooks_without_a_head_or_a_range_are_told(tiny):
    batch = pack([books()], tiny([ATTENTION]).vocabulary)
    with pytest.raises(RecipeError, match="several codebooks at a token, but the model has no head of the type codebooks"):
        tiny([ATTENTION]).losses(batch)
    model = tiny([ATTENTION], {"books": {"type": "codebooks", "ranges": ["codec.1"]}})
    with pytest.raises(DataError, match=r"the head of codebooks predicts codec.1, but the batch asks for codec.0"):
        model.losses(batch)
    none = pack([Stream([Segment("text", torch.tensor([1, 2]))])], model.vocabulary)
    assert float(model.losses(none)["codebooks"][1]) == 0 == model.loss_weights(none)["codebooks"]


def test_micro_batches_add_up_to_the_batch(tiny):
    heads = {"language_model": {"type": "language_model", "z_loss": 0.1, "label_smoothing": 0.1}, "number": {"type": "regression"}}
    model, all_streams = tiny([ATTENTION], heads), streams()
    found = []
    for parts in ([all_streams], [all_streams[:1], all_streams[1:]]):
        sums, weights = {}, {}
        for part in parts:
            for name, (total, weight) in model.losses(pack(part, model.vocabulary)).items():
                sums[name], weights[name] = sums.get(name, 0) + total, weights.get(name, 0) + weight
        loss = sum(sums[name] / weights[name] for name in sums)
        found.append([loss, *torch.autograd.grad(loss, list(model.backbone.parameters()))])
        assert set(sums) == {"language_model", "regression"}
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_nothing_to_predict_is_a_loss_of_zero_with_gradients(tiny):
    model = tiny([ATTENTION])
    total, weight = model.losses(pack([Stream([Segment("text", torch.tensor([1, 2]))])], model.vocabulary))["language_model"]
    assert float(total) == float(weight) == 0


def test_a_loaded_head_knows_its_ranges(tiny, tmp_path):
    from mmlm.model import MultimodalLM

    model = tiny([ATTENTION], {"language_model": {"type": "language_model", "ranges": ["label", "text"]}}).float()
    model.save_pretrained(tmp_path)
    again, batch = MultimodalLM.from_pretrained(tmp_path), pack(streams(), model.vocabulary)
    assert torch.equal(again.losses(batch)["language_model"][0], model.losses(batch)["language_model"][0])
    assert torch.equal(again.logits(batch.ids), model.logits(batch.ids))
