"""Queries see what they may and nothing else; views alternate; self-consistency reads what was written."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmlm.backbone.config import BackboneConfig
from mmlm.base.errors import DataError, RecipeError
from mmlm.evaluation.validation import Validation
from mmlm.model import MultimodalLM
from mmlm.model_config import ChannelConfig, ModelConfig
from mmlm.objectives.config import PermutationConfig
from mmlm.objectives.permutation import arranged, spans
from mmlm.stream import NO_LABEL, Segment, Stream, pack
from mmlm.training.config import TrainConfig
from mmlm.training.learner import Learner

VOCABULARY = {"property": 2, "number": 10, "molecule": 12, "mask": 1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MultimodalLM(
        ModelConfig(
            schema=1,
            vocabulary=VOCABULARY,
            backbone=BackboneConfig(width=32, num_layers=2, pattern=[{"type": "attention", "num_heads": 2}]),
            channels={"number": ChannelConfig(kind="number", size=1)},
        )
    ).double()


def stream(numbers=(3, 1, 4), molecule=(0, 5, 2, 7, 7, 1, 9, 3)) -> Stream:
    values = torch.tensor(numbers, dtype=torch.float32)[:, None]
    return Stream(
        [
            Segment("property", torch.tensor([0])),
            Segment("number", torch.tensor(numbers), weight=1.0, channels={"number": values}),
            Segment("property", torch.tensor([1])),
            Segment("molecule", torch.tensor(molecule), weight=1.0),
        ]
    )


def scores(model, view: Stream) -> torch.Tensor:
    batch = pack([view], model.vocabulary, shift=False)
    batch.channels = {name: value.double() for name, value in batch.channels.items()}
    return model.heads["language_model"].predict(model.hidden(batch)[0])[0].detach()


def masks(source: Stream, hidden: set[int]) -> list[np.ndarray]:
    sizes = [len(each) for each in source.segments]
    flat = np.isin(np.arange(sum(sizes)), list(hidden))
    return np.split(flat, np.cumsum(sizes)[:-1])


def test_a_token_never_changes_the_scores_at_its_own_query_nor_at_earlier_ones(model):
    hidden = {1, 2, 3, 6, 7, 10}
    first = arranged(stream(), masks(stream(), hidden), np.random.default_rng(3), multiple=8)
    view, query_of, _ = first
    before = scores(model, view)
    order = sorted(hidden, key=lambda place: int(query_of[place]))
    assert order != sorted(hidden)
    for number, place in enumerate(order):
        changed = (3, 1, 4), (0, 5, 2, 7, 7, 1, 9, 3)
        numbers, molecule = (list(each) for each in changed)
        if place < 5:
            numbers[place - 1] += 1
        else:
            molecule[place - 5] += 1
        other, again_at, _ = arranged(stream(numbers, molecule), masks(stream(), hidden), np.random.default_rng(3), multiple=8)
        assert torch.equal(again_at, query_of)
        after = scores(model, other)
        for earlier in order[: number + 1]:
            at = int(query_of[earlier])
            assert torch.equal(before[at], after[at]), f"token {place} leaks into the query of {earlier}"
        for later in order[number + 1 :]:
            at = int(query_of[later])
            assert not torch.equal(before[at], after[at]), f"token {place} does not reach the query of {later}"


def test_what_is_shown_reaches_every_query_and_no_hidden_token_reaches_it(model):
    hidden = {6, 7, 10}
    view, query_of, token_of = arranged(stream(), masks(stream(), hidden), np.random.default_rng(0))
    other, _, _ = arranged(stream(numbers=(3, 1, 5)), masks(stream(), hidden), np.random.default_rng(0))
    hiding, _, _ = arranged(stream(molecule=(0, 8, 2, 7, 7, 1, 9, 3)), masks(stream(), hidden), np.random.default_rng(0))
    before, after, unseen = (scores(model, each) for each in (view, other, hiding))
    for place in hidden:
        assert not torch.equal(before[int(query_of[place])], after[int(query_of[place])])
    shown = [int(token_of[place]) for place in range(13) if place not in hidden]
    assert torch.equal(before[shown], unseen[shown])


def test_a_query_shows_the_mask_at_its_place_with_its_label_and_without_its_number():
    view, query_of, _ = arranged(stream(), masks(stream(), {1, 2, 3}), None, multiple=4)
    (segment,) = view.segments
    at = query_of[torch.tensor([1, 2, 3])]
    assert len(view) % 4 == 0 and bool(segment.hidden[at].all())
    assert segment.labels[at].tolist() == [3, 1, 4] and segment.position[at, 0].tolist() == [1, 2, 3]
    assert not bool(segment.channels["number"][at].any()) and int((segment.labels != NO_LABEL).sum()) == 3
    assert segment.channels["number"][at[:-1] + 1, 0].tolist() == [3.0, 1.0]


def learner(model, **options) -> Learner:
    found = Learner(model, PermutationConfig(**options).build())
    found.train()
    return found


def test_steps_alternate_and_name_their_losses(model):
    one = learner(model, alternate_every=3, plain_share=0.2)
    batch = one.objective.collate(
        [one.objective.prepare(stream(), model.vocabulary, np.random.default_rng(n)) for n in range(4)], model.vocabulary
    )
    batch.views = {name: cast(view) for name, view in batch.views.items()}
    seen = []
    for step in range(20):
        one.begin_step(step, 20)
        losses = one(batch)
        assert {name: float(weight) for name, (_, weight) in losses.items()} == pytest.approx(one.loss_weights(batch))
        assert losses.keys() == {"plain", "property", "sequence", "self_consistency"}
        seen.append("/".join(sorted(name for name, (_, weight) in losses.items() if weight)))
    consistent = "self_consistency/sequence"
    assert seen[:4] == ["plain"] * 4 and seen[4:10] == ["property"] * 3 + [consistent] * 3 and seen[10:16] == seen[4:10]
    one.eval()
    assert one(batch).keys() == {"property", "sequence"} == one.loss_weights(batch).keys()


def test_what_the_backbone_adds_has_its_own_name_and_does_not_thin_the_losses_of_tokens():
    torch.manual_seed(0)
    moe = {"type": "moe", "num_experts": 2, "top_k": 1, "balance_weight": 0.5}
    pattern = [{"mixer": {"type": "attention", "num_heads": 2}, "feed_forward": moe}]
    channels = {"number": ChannelConfig(kind="number", size=1)}
    backbone = BackboneConfig(width=32, num_layers=1, pattern=pattern)
    model = MultimodalLM(ModelConfig(schema=1, vocabulary=VOCABULARY, backbone=backbone, channels=channels)).double()
    one = learner(model, alternate_every=1)
    batch = one.objective.collate([one.objective.prepare(stream(), model.vocabulary, np.random.default_rng(0))], model.vocabulary)
    batch.views = {name: cast(view) for name, view in batch.views.items()}
    aux = model.aux_names
    for step, views in enumerate((["property"], ["sequence", "property"])):
        one.begin_step(step, 10)
        losses = one(batch)
        assert aux and aux < losses.keys()
        assert {name: float(weight) for name, (_, weight) in losses.items()} == pytest.approx(one.loss_weights(batch))
        torch.testing.assert_close(losses[views[0]][0], model.losses(batch.views[views[0]])["language_model"][0])
        assert all(float(losses[name][1]) == sum(batch.views[view].num_tokens for view in views) for name in aux)


class Given:
    """Samples that are at hand."""

    fingerprint = ""

    def __init__(self, objective, vocabulary):
        self.objective, self.vocabulary = objective, vocabulary

    def draw(self, rng):
        return None, self.objective.prepare(stream(), self.vocabulary, rng)

    def collate(self, items):
        return self.objective.collate(items, self.vocabulary)


@pytest.mark.parametrize("name", ["property", "sequence", "self_consistency", "plain"])
def test_the_best_checkpoint_can_be_that_of_any_loss_that_validation_gives_and_of_no_other(model, name):
    one = learner(model, plain_share=0.2)
    config = TrainConfig(steps=2, batch_size=2, validate_every=1, keep_best={"metric": f"loss.{name}"})
    validation = Validation(Given(one.objective, model.vocabulary), SimpleNamespace(metrics=()), config, count=2, seed=0)
    if name in ("property", "sequence"):
        validation.check(one)
    else:
        with pytest.raises(RecipeError, match=rf"keep_best\.metric: unknown validation metric 'loss\.{name}'"):
            validation.check(one)


def cast(batch):
    batch.channels = {name: value.double() for name, value in batch.channels.items()}
    return batch


def test_self_consistency_reads_the_property_off_the_tokens_that_are_drawn(model):
    one = learner(model, alternate_every=1, self_consistency=1.0)
    one.begin_step(1, 10)
    views = one.objective.prepare(stream(), model.vocabulary, np.random.default_rng(0))
    batch = one.objective.collate([views], model.vocabulary)
    batch.views = {name: cast(view) for name, view in batch.views.items()}
    at = batch.filled[:, 0]
    span = model.vocabulary.span("molecule")
    torch.manual_seed(3)
    drawn = scores(model, views.views["sequence"])[at][:, span.start : span.stop].float().softmax(-1).multinomial(1)[:, 0]
    written = list(stream().segments[3].ids)
    places = batch.views["sequence"].layout.position[0, at, 0] - 5
    for place, index in zip(places.tolist(), drawn.tolist(), strict=True):
        written[place] = index
    assert written != list(stream().segments[3].ids)
    again = one.objective.prepare(stream(molecule=[int(x) for x in written]), model.vocabulary, np.random.default_rng(0))
    expected = model.losses(cast(pack([again.views["property"]], model.vocabulary, shift=False)))["language_model"]
    torch.manual_seed(3)
    found = one(batch)["self_consistency"]
    torch.testing.assert_close(found[0], expected[0])


def test_what_is_drawn_is_as_common_as_the_model_finds_it(model):
    """The likeliest token would be the same at every query of one state."""
    one = learner(model, alternate_every=1)
    batch = one.objective.collate([one.objective.prepare(stream(), model.vocabulary, np.random.default_rng(0))] * 50, model.vocabulary)
    batch.views = {name: cast(view) for name, view in batch.views.items()}
    h_btd = torch.zeros(*batch.views["sequence"].ids.shape, model.embedding.weight.shape[1]).double()
    span = model.vocabulary.span("molecule")
    shares = torch.bincount(one.objective._drawn(model, h_btd, batch) - span.start, minlength=len(span)) / len(batch.filled)
    wanted = model.heads["language_model"].predict(h_btd[0, :1], span)[0].softmax(-1)
    torch.testing.assert_close(shares.double(), wanted.double(), atol=0.08, rtol=0)


def test_spans_hide_the_share_that_was_asked_for():
    may = np.arange(40) % 5 != 0
    for seed in range(20):
        hidden = spans(may, 0.4, 12, np.random.default_rng(seed))
        assert hidden.sum() == round(0.4 * may.sum()) and not (hidden & ~may).any()


def test_a_sample_without_a_number_is_refused(model):
    with pytest.raises(DataError, match=r"line 3: needs tokens with weight of number and of something else"):
        bare = Stream([Segment("molecule", torch.tensor([1, 2]), weight=1.0)], source="line 3")
        PermutationConfig().build().prepare(bare, model.vocabulary, np.random.default_rng(0))
