"""What each objective hides, shifts and weighs, and that nothing it asks for is shown."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from mmlm.base.errors import DataError
from mmlm.objectives.config import OBJECTIVES
from mmlm.stream import NO_LABEL, Segment, Stream, pack
from mmlm.training.order import sample_rng
from mmlm.vocabulary import Vocabulary

VOCABULARY = Vocabulary({"text": 20, "label": 5, "codec.0": 6, "codec.1": 7, "mask": 1})
MASK = 38


def objective(name, **options):
    return OBJECTIVES.parse({"type": name, **options}).build()


def words(length, seed=0, **fields):
    return Segment("text", torch.randint(0, 20, (length,), generator=torch.Generator().manual_seed(seed)), **{"weight": 1.0, **fields})


def codes(length, seed=0, books=2, **fields):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, 6, (length,), generator=g) for _ in range(books)], dim=1)
    return Segment("codec", ids, **{"weight": 1.0, **fields})


OPTIONS = {
    "distillation": {"teacher": "t"},
    "masked_books": {"channel": "speaker", "share": "cosine", "first_book": 0},
    "permutation": {"targets": ["label"]},
}
NUMBER = Segment("label", torch.tensor([1, 4]), weight=1.0)  # what a permutation reads off the rest


def further(name, frames):
    """Segments that an objective needs beside words."""
    return [codes(frames)] if name == "masked_books" else [dataclasses.replace(NUMBER)] if name == "permutation" else []


def prepared(made, stream, seed=0):
    return made.prepare(stream, VOCABULARY, np.random.default_rng(seed))


def test_all_objectives_are_here():
    assert sorted(OBJECTIVES.entries) == ["causal", "distillation", "masked", "masked_books", "permutation", "prefix"]


@pytest.mark.parametrize("name", sorted(OBJECTIVES.entries))
def test_the_same_seed_epoch_and_sample_give_the_same_stream_and_the_given_one_is_not_changed(name):
    made = objective(name, **{"prefix": {"split": "random"}, **OPTIONS}.get(name, {}))
    stream = Stream([words(12), words(9, 1, weight=torch.ones(9)), *further(name, 9)])
    before = [dataclasses.replace(s, ids=s.ids.clone()) for s in stream.segments]
    keys = [(1, 0, 5), (1, 0, 5), (1, 1, 5), (2, 0, 5), (1, 0, 6)]
    batches = [made.collate([made.prepare(stream, VOCABULARY, sample_rng(*key))], VOCABULARY) for key in keys]
    batches = [getattr(batch, "views", {}).get("sequence", batch) for batch in batches]
    found = [batch.labels * batch.weight if batch.code_labels is None else batch.code_labels for batch in batches]
    assert torch.equal(batches[0].ids, batches[1].ids) and torch.equal(found[0], found[1])
    if name not in ("causal", "distillation"):
        assert sum(not torch.equal(other, found[0]) for other in found) >= 2
    for old, new in zip(before, stream.segments, strict=True):
        assert torch.equal(old.ids, new.ids) and new.labels is None and new.hidden is None


@pytest.mark.parametrize("name", sorted(OBJECTIVES.entries))
def test_a_sample_is_treated_alike_in_any_batch(tiny, name):
    heads = {"language_model": {"type": "language_model"}, "books": {"type": "codebooks", "ranges": ["codec.0", "codec.1"]}}
    made, model = objective(name, **OPTIONS.get(name, {})), tiny([{"type": "attention", "num_heads": 2}], heads)
    loss, books = "language_model", further(name, 5)
    if name == "permutation":
        loss = "sequence"
        model.eval()
    if name == "masked_books":
        loss = "codebooks"
    if name == "distillation":
        made.set_teacher(tiny([{"type": "attention", "num_heads": 1}]))
        loss = "kl"
    streams = [prepared(made, Stream([words(n, n), words(3, n + 9, weight=0.0), words(4, n + 20), *books]), n) for n in (6, 2, 9)]
    sums = [made.losses(model, made.collate(some, VOCABULARY))[loss] for some in ([s] for s in streams)]
    total, weight = made.losses(model, made.collate(streams, VOCABULARY))[loss]
    torch.testing.assert_close(total, sum(part for part, _ in sums), rtol=0, atol=1e-10)
    assert float(weight) == sum(float(part) for _, part in sums) > 0


def test_causal_predicts_each_token_with_weight_from_those_before_it(tiny):
    made, model = objective("causal"), tiny([{"type": "attention", "num_heads": 2}])
    answer = Segment("label", torch.tensor([3, 3]), labels=torch.tensor([NO_LABEL, 1]), weight=4.0)
    stream = Stream([words(5, weight=torch.tensor([1.0, 0, 2, 0, 1])), answer])
    batch = made.collate([prepared(made, stream)], VOCABULARY)
    ids = stream.segments[0].ids.tolist()
    assert batch.labels[0].tolist() == [NO_LABEL, ids[2], NO_LABEL, ids[4], NO_LABEL, NO_LABEL, 21]
    assert batch.weight[0].tolist() == [0, 2, 0, 1, 0, 0, 4]
    log = model.logits(batch.ids)[0].log_softmax(-1)
    wanted = -(2 * log[1, ids[2]] + log[3, ids[4]] + 4 * log[6, 21])
    total, weight = made.losses(model, batch)["language_model"]
    torch.testing.assert_close(total, wanted, rtol=0, atol=1e-10)
    assert weight == 7


@pytest.mark.parametrize("split", ["read_only", "random"])
def test_prefix_sees_itself_in_both_directions_and_nothing_behind_it(tiny, split):
    made, model = objective("prefix", split=split), tiny([{"type": "attention", "num_heads": 2}])
    picture = words(4, 3, mutual=1)
    stream = Stream([words(3, weight=0.0, mutual=1), words(3, 1, weight=torch.tensor([0.0, 1, 1])), picture, words(2, 2)])
    for seed in range(8):
        ready = prepared(made, stream, seed)
        batch = made.collate([ready], VOCABULARY)
        whole = pack([stream], VOCABULARY)
        assert torch.equal(batch.ids, whole.ids) and torch.equal(batch.layout.position, whole.layout.position)
        see, number = batch.layout.dense()[0], batch.layout.mutual[0, 0]
        end = int((batch.layout.mutual[0] == number).sum())
        assert end == 4 if split == "read_only" else 1 <= end < 12
        assert see[:end, :end].all() and not see[:end, end:].any()
        assert torch.equal(see[max(end, 10) :], torch.ones(12, 12, dtype=torch.bool).tril()[max(end, 10) :])
        assert bool(see[end:, :end].all())
        wanted = whole.labels[0].clone()
        wanted[: end - 1] = NO_LABEL
        assert torch.equal(batch.labels[0], wanted)
        x = model.hidden(batch)[0]
        batch.ids[0, end] = (batch.ids[0, end] + 1) % 20
        assert torch.equal(model.hidden(batch)[0][:, :end], x[:, :end]), "the first predicted token is seen where it is predicted"


def test_a_random_prefix_does_not_end_within_what_is_whole():
    made = objective("prefix", split="random")
    sweep = Segment("label", torch.zeros(6, dtype=torch.long), features=torch.randn(9, 3), encoder="sweep", whole=True)
    ends = set()
    for seed in range(40):
        batch = made.collate([prepared(made, Stream([words(2), sweep, words(3, 1)]), seed)], VOCABULARY)
        ends.add(int((batch.layout.mutual[0] == 1).sum()))
        assert batch.feature_at["sweep"].tolist() == list(range(2, 8)) and batch.whole_sizes["sweep"].tolist() == [9]
    assert ends == {1, 2, 8, 9, 10}


def test_prefix_cuts_everything_a_segment_carries():
    made = objective("prefix")
    segment = words(
        6, weight=torch.tensor([0.0, 0, 0, 1, 1, 1]), hidden=torch.tensor([False, False, True, False, True, False]),
        features=torch.arange(4.0)[:, None], feature_at=torch.tensor([5, 1, 3, 0]),
        position=torch.arange(6)[:, None] * 2,
        branch=torch.tensor([0, 0, 0, 0, 1, 1]), channels={"speaker": torch.arange(6) % 4},
        labels=torch.arange(6), num_options=6, tags={"target": torch.arange(6.0)},
    )  # fmt: skip
    whole, cut = pack([Stream([segment])], VOCABULARY), made.collate([prepared(made, Stream([segment]))], VOCABULARY)
    for name in ("ids", "labels", "options"):
        kept = slice(3, None) if name == "options" else slice(None)
        assert torch.equal(getattr(cut, name)[:, kept], getattr(whole, name)[:, kept]), name
    assert cut.weight[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(cut.layout.position, whole.layout.position) and torch.equal(cut.layout.branch, whole.layout.branch)
    assert torch.equal(cut.channels["speaker"], whole.channels["speaker"]) and torch.equal(cut.tags["target"], whole.tags["target"])
    found = {int(at): float(value) for at, value in zip(cut.feature_at["text"], cut.features["text"], strict=True)}
    assert found == {5: 0.0, 1: 1.0, 3: 2.0, 0: 3.0}


def test_a_prefix_has_a_number_of_its_own_beside_those_of_single_tokens():
    given = Stream([words(3, weight=0.0), words(3, mutual=torch.tensor([0, 4, 4]))])
    first, *_ = prepared(objective("prefix"), given).segments
    assert first.mutual == 5


def test_prefix_of_everything_and_of_nothing():
    made = objective("prefix")
    assert prepared(made, Stream([words(3, weight=0.0)])).segments[0].mutual == 1
    batch = made.collate([prepared(made, Stream([words(3)]))], VOCABULARY)
    assert batch.layout.mutual is None and batch.weight.sum() == 2
    one = objective("prefix", split="random").collate([prepared(objective("prefix", split="random"), Stream([words(1)]))], VOCABULARY)
    assert one.weight.sum() == 0


@pytest.mark.parametrize("policy", ["token", "span", "segment"])
@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
def test_masked_hides_as_many_tokens_as_it_says_and_labels_those_alone(policy, rate):
    made = objective("masked", policy=policy, rate=rate)
    sizes = [10, 3, 7, 5]
    segments = [words(size, at) for at, size in enumerate(sizes)]
    segments[1].weight = torch.tensor([0.0, 1, 1])
    segments.insert(2, words(4, 9, weight=0.0))
    segments.append(Segment("codec", torch.zeros(2, 2, dtype=torch.long), weight=1.0))
    segments.append(Segment("cell", features=torch.zeros(2, 3), weight=1.0))
    stream = Stream(segments)
    own = torch.cat([s.ids if s.ids is not None and s.ids.ndim == 1 else torch.zeros(len(s), dtype=torch.long) for s in segments])
    can = torch.tensor([1] * 10 + [0, 1, 1] + [0] * 4 + [1] * 12 + [0] * 4, dtype=torch.bool)
    counts = []
    for seed in range(20):
        batch = made.collate([prepared(made, stream, seed)], VOCABULARY)
        assert not batch.layout.causal
        labelled = batch.labels[0] != NO_LABEL
        assert torch.equal(batch.labels[0][labelled], own[labelled]) and not bool((labelled & ~can).any())
        assert torch.equal(batch.weight[0] > 0, labelled)
        unseen = batch.ids[0] == MASK
        assert not bool((unseen & ~labelled).any()) and torch.equal(batch.ids[0][~labelled & can], own[~labelled & can])
        counts.append(int(labelled.sum()))
        if policy == "segment":
            parts = labelled[can].split([10, 2, 7, 5])
            assert sum(bool(part.all()) for part in parts) == max(1, round(4 * rate)) == sum(bool(part.any()) for part in parts)
    if policy != "segment":
        assert set(counts) == {max(1, round(24 * rate))}
    if rate == 1:
        assert set(counts) == {24}


def test_spans_are_longer_than_chance_and_shares_are_kept():
    made, token = objective("masked", policy="span", rate=0.3, mean_span=5.0), objective("masked", rate=0.3)
    stream = Stream([words(400)])
    runs = []
    for one in (made, token):
        labelled = torch.stack([prepared(one, stream, seed).segments[0].labels != NO_LABEL for seed in range(20)])
        starts = labelled[:, 1:] & ~labelled[:, :-1]
        runs.append((labelled.sum() / starts.sum()).item())
    assert runs[0] > 3 and runs[1] < 1.6
    found = [prepared(token, stream, seed).segments[0] for seed in range(50)]
    labelled = torch.stack([s.labels != NO_LABEL for s in found])
    hidden, shown = torch.stack([s.hidden for s in found]), torch.stack([s.ids for s in found])
    same = (shown == stream.segments[0].ids) & labelled & ~hidden
    total = labelled.sum().item()
    assert abs(hidden.sum().item() / total - 0.8) < 0.02
    assert abs(same.sum().item() / total - (0.1 + 0.1 / 20)) < 0.02


@pytest.mark.parametrize("policy", ["token", "span", "segment"])
def test_what_a_hidden_token_was_changes_nothing_that_is_seen(tiny, policy):
    made = objective("masked", policy=policy, rate=0.4, random_share=0.3, keep_share=0.0)
    model = tiny([{"type": "attention", "num_heads": 2}])
    stream = Stream([words(8), words(5, 1)])
    batch = made.collate([prepared(made, stream, 3)], VOCABULARY)
    other = []
    at = 0
    for segment in stream.segments:
        labelled = batch.labels[0, at : at + len(segment)] != NO_LABEL
        other.append(dataclasses.replace(segment, ids=torch.where(labelled, (segment.ids + 7) % 20, segment.ids)))
        at += len(segment)
    changed = made.collate([prepared(made, Stream(other), 3)], VOCABULARY)
    labelled = batch.labels != NO_LABEL
    assert bool((changed.labels != batch.labels)[labelled].all()) and torch.equal(changed.labels != NO_LABEL, labelled)
    assert torch.equal(model.hidden(changed)[0], model.hidden(batch)[0])


@pytest.mark.parametrize("channel", [torch.arange(1.0, 31.0)[:, None], torch.arange(30)], ids=["values", "ids"])
def test_a_hidden_token_does_not_show_itself_by_its_channels(channel):
    made = objective("masked", rate=0.5, random_share=0.3, keep_share=0.3)
    given = words(30, channels={"value": channel})
    found = prepared(made, Stream([given])).segments[0]
    gone = found.hidden | (found.ids != given.ids)
    kept = ~gone
    assert gone.sum() >= 5 and bool((found.labels[kept] != NO_LABEL).any())
    assert bool((found.channels["value"][gone] == (0 if channel.is_floating_point() else -1)).all())
    assert torch.equal(found.channels["value"][kept], channel[kept]) and bool((given.channels["value"] == channel).all())


def test_masked_hides_at_least_one_token_and_all_of_one():
    made = objective("masked", rate=0.01, random_share=0.0, keep_share=0.0)
    assert (prepared(made, Stream([words(9)])).segments[0].labels != NO_LABEL).sum() == 1
    assert made.collate([prepared(made, Stream([words(1)]))], VOCABULARY).ids.tolist() == [[MASK]]
    with pytest.raises(DataError, match="data.jsonl, line 3: no token with weight, so nothing can be hidden"):
        prepared(made, Stream([words(4, weight=0.0)], source="data.jsonl, line 3"))


def test_tokens_that_show_features_are_not_hidden():
    made = objective("masked", rate=1.0, random_share=0.0, keep_share=0.0)
    cells = words(4, features=torch.zeros(2, 3), feature_at=torch.tensor([0, 2]), encoder="cell")
    batch = made.collate([prepared(made, Stream([cells]))], VOCABULARY)
    assert (batch.labels[0] != NO_LABEL).tolist() == [False, True, False, True] == (batch.ids[0] == MASK).tolist()


def test_a_vocabulary_without_a_mask_is_told():
    made = objective("masked", rate=1.0, keep_share=0.0, random_share=0.0)
    ready = made.prepare(Stream([words(3)], name="s"), Vocabulary({"text": 20}), np.random.default_rng(0))
    with pytest.raises(DataError, match="s: unknown vocabulary range 'mask'"):
        made.collate([ready], Vocabulary({"text": 20}))


@pytest.mark.parametrize("share", ["all", "cosine"])
def test_masked_books_predict_one_codebook_from_those_below(share):
    made = objective("masked_books", share=share)
    vocabulary = Vocabulary({"text": 20, **{f"codec.{book}": 6 for book in range(4)}, "mask": 1})
    target = codes(12, 1, 4, weight=torch.tensor([0.0] * 3 + [1.0] * 9))
    stream = Stream([words(5), codes(4, 2, 4, weight=0.0), target])
    seen, counts = set(), []
    for seed in range(60):
        ready = made.prepare(stream, vocabulary, np.random.default_rng(seed))
        book = int(ready.segments[0].channels["book"][0])
        assert all((segment.channels["book"] == book).all() and len(segment.channels["book"]) == len(segment) for segment in ready.segments)
        batch = made.collate([ready], vocabulary)
        assert not batch.layout.causal and (batch.labels == NO_LABEL).all()
        cells, labels = batch.codes[0, 9:], batch.code_labels[0]
        whole = target.ids + 20 + 6 * torch.arange(4)
        assert torch.equal(cells[:3], whole[:3]) and torch.equal(cells[3:, :book], whole[3:, :book])
        assert (cells[3:, book + 1 :] == -1).all() and (batch.codes[0, 5:9] >= 0).all()
        hidden = cells[:, book] == 44
        assert torch.equal(hidden, labels[9:, book] != NO_LABEL) and torch.equal(labels[9:, book][hidden], whole[hidden, book])
        assert torch.equal(cells[~hidden, book], whole[~hidden, book]) and int((labels != NO_LABEL).sum()) == int(hidden.sum())
        seen.add(book)
        counts.append(int(hidden.sum()))
    assert seen == {1, 2, 3}
    assert set(counts) == {9} if share == "all" else (min(counts), max(counts)) == (1, 9) and 4.5 < sum(counts) / 60 < 7.5
    assert torch.equal(target.ids, codes(12, 1, 4).ids)


def test_a_cosine_share_is_hidden_where_it_is_asked_for():
    made, fixed = objective("masked", rate="cosine"), objective("masked", rate=0.5)
    counts = [int((prepared(made, Stream([words(20)]), seed).segments[0].labels != NO_LABEL).sum()) for seed in range(900)]
    assert min(counts) <= 2 and max(counts) == 20 and abs(sum(counts) / 900 / 20 - 2 / math.pi) < 0.04
    assert (prepared(fixed, Stream([words(20)])).segments[0].labels != NO_LABEL).sum() == 10
    for rate in (0.0, 1.5, "sine"):
        with pytest.raises(ValueError, match="rate"):
            objective("masked", rate=rate)


def test_masked_books_without_a_target_are_told():
    made = objective("masked_books")
    for segments in ([words(3)], [codes(3, weight=0.0)], [codes(3, books=1)], [codes(3), codes(3, books=3)]):
        with pytest.raises(DataError, match="line 3: needs tokens with weight that have more than 1 codebooks"):
            prepared(made, Stream(segments, source="data.jsonl, line 3"))
