"""A stream becomes a batch, and the batch what it was: packed, padded or one by one, with everything a segment can carry."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmlm.base.errors import DataError, RecipeError
from mmlm.stream import NO_LABEL, Segment, Stream, cut, pack, pad, unpack
from mmlm.vocabulary import Vocabulary

VOCABULARY = Vocabulary({"text": 20, "label": 5, "codec.0": 6, "codec.1": 7, "mask": 1})
ATTENTION = {"type": "attention", "num_heads": 2}
MAMBA = {"type": "mamba2", "state_size": 4, "head_size": 8, "chunk_size": 3}
MOE = {"type": "moe", "num_experts": 3, "hidden": 8, "balance_weight": 0}
PATTERNS = {
    "attention": [ATTENTION],
    "window": [{**ATTENTION, "window": 3, "num_kv_heads": 1, "qk_norm": True}],
    "bidirectional": [{**ATTENTION, "causal": False}],
    "mamba2": [MAMBA],
    "hybrid": [MAMBA, {"mixer": ATTENTION, "feed_forward": MOE}],
    "hybrid, attention first": [{"mixer": ATTENTION, "parallel": True}, MAMBA],
}


def numbers(generator, high, *shape):
    return torch.randint(0, high, shape, generator=generator)


def rich(seed, axes=1):
    """A stream with text, a codec with channels, features, options, and positions that jump, repeat and restart."""
    g = torch.Generator().manual_seed(seed)
    size = 3 + seed % 4
    words = Segment("text", numbers(g, 20, size), weight=numbers(g, 5, size) / 4)
    codec = Segment(
        "codec",
        torch.stack([numbers(g, 6, 3), numbers(g, 7, 3)], dim=1).masked_fill(torch.tensor([[0, 0], [seed % 2, 0], [0, 1]]) > 0, -1),
        weight=0.5,
        channels={"speed": torch.randn(3, 2, generator=g, dtype=torch.float64), "speaker": numbers(g, 4, 3)},
    )
    features = torch.randn(2, 3, generator=g, dtype=torch.float64)
    cells = Segment("label", numbers(g, 5, 4), features=features, encoder="cell", feature_at=torch.tensor([2, 0]))
    alone = Segment("cell", features=torch.randn(2, 3, generator=g, dtype=torch.float64), position=numbers(g, 50, 2, axes))
    answer = Segment(
        "label", torch.tensor([4, 4]), labels=torch.tensor([NO_LABEL, seed % 3]), weight=2.0, num_options=3, position=numbers(g, 9, 2, axes)
    )
    answer.tags["target"] = torch.tensor([torch.nan, seed / 7], dtype=torch.float64)
    segments = [words, codec, cells, alone, answer]
    return Stream(segments[seed % 2 :], name=f"sample {seed}", axes=("time", "row", "column")[:axes])


HEADS = {
    "language_model": {"type": "language_model", "z_loss": 0.1},
    "books": {"type": "codebooks", "ranges": ["codec.0", "codec.1"], "label_smoothing": 0.1},
    "regression": {"type": "regression"},
}


def gradients(model, batches):
    model.zero_grad()
    sums = {}
    for batch in batches:
        found = model.losses(batch)
        sum(total for total, _ in found.values()).backward()
        for name, (total, weight) in found.items():
            assert float(weight.detach()) == pytest.approx(model.loss_weights(batch)[name], rel=1e-6)
            sums[name] = sums.get(name, 0) + torch.stack([total.detach().double(), weight.detach().double()])
    return sums | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found, wanted, atol=1e-10):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) < atol, name


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_packed_padded_and_one_by_one_give_the_same_losses_and_gradients_in_any_order(tiny, pattern, axes):
    model = tiny(PATTERNS[pattern], HEADS).train()
    if axes == 3 and pattern == "attention":
        model = tiny([{**ATTENTION, "rope": {"sections": [2, 1, 1]}}], HEADS).train()
    plain = Stream([Segment("text", torch.arange(6), weight=1.0)], axes=rich(0, axes).axes)
    streams = [rich(0, axes), plain, *(rich(seed, axes) for seed in range(1, 4))]
    alone = gradients(model, [pack([stream], VOCABULARY) for stream in streams])
    assert alone["language_model"][1] > 5 and alone["regression"][1] == 4 and alone["codebooks"][1] == 0.5 * (4 + 3 + 4 + 3)
    used = [name for name, p in model.named_parameters() if name in alone]
    assert len(used) == len(list(model.parameters())), "a parameter has no gradient"
    assert_equal(gradients(model, [pack(streams, VOCABULARY)]), alone)
    assert_equal(gradients(model, [pad(streams, VOCABULARY)]), alone)
    assert_equal(gradients(model, [pack(streams[:2], VOCABULARY), pad(streams[2:], VOCABULARY)]), alone)
    assert_equal(gradients(model, [pack([streams[i] for i in (3, 0, 4, 2, 1)], VOCABULARY)]), alone)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hidden_states_come_back_by_stream(tiny, pattern):
    model, streams = tiny(PATTERNS[pattern]), [rich(seed) for seed in range(4)]
    alone = [model.hidden(pack([stream], VOCABULARY))[0][0] for stream in streams]
    for make in (pack, pad):
        batch = make(streams, VOCABULARY)
        parts = unpack(model.hidden(batch)[0], batch.layout)
        assert [len(part) for part in parts] == [len(stream) for stream in streams]
        for part, one in zip(parts, alone, strict=True):
            torch.testing.assert_close(part, one, rtol=0, atol=1e-10)


def test_every_field_of_a_batch_says_what_the_segments_say():
    batch = pack([rich(2), rich(4)], VOCABULARY)
    first = rich(2)
    words, codec, cells, alone, answer = first.segments
    n = len(words)
    assert batch.ids[0, :n].tolist() == words.ids.tolist()
    assert batch.ids[0, n : n + 3].tolist() == (codec.ids[:, 0] + 25).tolist()
    codes = torch.where(codec.ids < 0, -1, codec.ids + torch.tensor([25, 31]))
    assert batch.codes[0, n : n + 3].tolist() == codes.tolist() and codes[2, 1] == -1
    assert (batch.codes[0, :n] == -1).all() and (batch.codes[0, n + 3 : len(first)] == -1).all()
    assert batch.feature_at["cell"].tolist()[:4] == [n + 5, n + 3, n + 7, n + 8]
    assert torch.equal(batch.features["cell"][:4], torch.cat([cells.features, alone.features]))
    assert torch.equal(batch.channels["speaker"][0, n : n + 3], codec.channels["speaker"])
    assert not batch.channels["speed"][0, :n].any()
    position = batch.layout.position[0, : len(first), 0].tolist()
    after = max(alone.position.flatten().tolist()) + 1
    assert position == [*range(n + 7), *alone.position.flatten().tolist(), *answer.position.flatten().tolist()] and after > 0
    wanted = [int(words.ids[i]) if words.weight[i] > 0 else NO_LABEL for i in range(1, n)]
    assert batch.labels[0, : n - 1].tolist() == wanted
    assert batch.labels[0, n - 1 : len(first)].tolist() == [NO_LABEL] * 11 + [20 + 2]
    assert batch.code_labels[0, n - 1 : n + 2].tolist() == torch.where(codes < 0, NO_LABEL, codes).tolist()
    assert (batch.code_labels[0, : n - 1] == NO_LABEL).all() and (batch.code_labels[0, n + 2 : len(first)] == NO_LABEL).all()
    assert batch.weight[0, n - 1 : n + 2].tolist() == [0.5] * 3 and batch.weight[0, len(first) - 1] == 2
    assert batch.options[0, len(first) - 1].tolist() == [20, 3] and not batch.options[0, : len(first) - 1].any()
    assert batch.tags["target"].isfinite().sum() == 2 and batch.names == ["sample 2", "sample 4"]
    assert batch.num_tokens == len(first) + len(rich(4)) == batch.ids.shape[1]
    unshifted = pack([Stream([Segment("text", torch.tensor([3, 4]), weight=1.0)])], VOCABULARY, shift=False)
    assert unshifted.labels.tolist() == [[3, 4]]


def test_positions_go_on_after_those_given_and_may_have_gaps():
    given = Segment("text", torch.tensor([1, 2]), position=torch.tensor([[7, 0], [3, 4]]))
    batch = pack([Stream([given, Segment("text", torch.tensor([3, 4]))], axes=("row", "column"))], VOCABULARY)
    assert batch.layout.position[0].tolist() == [[7, 0], [3, 4], [8, 8], [9, 9]]


def test_options_stand_where_the_label_is_predicted():
    words, answer = Segment("text", torch.tensor([1, 2])), Segment("label", torch.tensor([2, 0]), weight=1.0, num_options=3)
    after = Segment("text", torch.tensor([5]), weight=1.0)
    batch = pack([Stream([words, answer, after])], VOCABULARY)
    assert batch.labels[0].tolist() == [NO_LABEL, 22, 20, 5, NO_LABEL]
    assert batch.options[0].tolist() == [[0, 0], [20, 3], [20, 3], [0, 0], [0, 0]]


def test_hidden_tokens_show_the_mask_id_in_all_codebooks_and_keep_their_label():
    hidden = torch.tensor([True, False, True])
    codes = Segment("codec", torch.tensor([[1, 2], [3, 4], [5, 6]]), weight=1.0, hidden=hidden)
    words = Segment("text", torch.tensor([7, 8, 9]), weight=1.0, hidden=hidden)
    batch = pack([Stream([codes, words])], VOCABULARY, shift=False)
    assert batch.ids[0].tolist() == [38, 28, 38, 38, 8, 38]
    assert batch.codes[0].tolist() == [[38, -1], [28, 35], [38, -1], [-1, -1], [-1, -1], [-1, -1]]
    assert batch.labels[0].tolist() == [NO_LABEL] * 3 + [7, 8, 9]
    assert batch.code_labels[0].tolist() == [[26, 33], [28, 35], [30, 37], *[[NO_LABEL] * 2] * 3]
    cells = dataclasses.replace(codes, hidden=torch.tensor([[False, True], [True, True], [False, False]]))
    batch = pack([Stream([cells])], VOCABULARY, shift=False)
    assert batch.codes[0].tolist() == [[26, 38], [38, 38], [30, 37]] and batch.ids[0].tolist() == [26, 38, 30]


def test_cells_that_are_not_filled_add_nothing_and_are_not_predicted(tiny):
    model = tiny([ATTENTION], HEADS)
    codes = Segment("codec", torch.tensor([[1, -1], [-1, 3], [-1, -1], [2, 4]]), weight=1.0)
    batch = pack([Stream([Segment("text", torch.tensor([7])), codes])], VOCABULARY)
    none = [NO_LABEL, NO_LABEL]
    assert batch.code_labels[0].tolist() == [[26, NO_LABEL], [NO_LABEL, 34], none, [27, 35], none]
    assert batch.weight[0].tolist() == [1, 1, 0, 1, 0]
    table = model.embedding.weight
    wanted = torch.stack([table[7], table[26], table[34], 0 * table[0], table[27] + table[35]])
    torch.testing.assert_close(model.embed(batch)[0], wanted, rtol=0, atol=1e-12)
    own = dataclasses.replace(codes, labels=torch.tensor([none, [NO_LABEL, 6], none, [5, NO_LABEL]]))
    batch = pack([Stream([own])], VOCABULARY)
    assert batch.code_labels[0].tolist() == [none, [NO_LABEL, 37], none, [30, NO_LABEL]] and batch.weight[0].tolist() == [0, 1, 0, 1]


def test_segments_may_have_different_numbers_of_codebooks():
    vocabulary = Vocabulary({"a.0": 3, "a.1": 3, "b.0": 2, "b.1": 2, "b.2": 2})
    streams = [Stream([Segment("a", torch.tensor([[1, 2]])), Segment("b", torch.tensor([[0, 1, 1]]))])]
    assert pack(streams, vocabulary).codes.tolist() == [[[1, 5, -1], [6, 9, 11]]]


def test_codes_add_up_and_features_take_the_place_of_ids(tiny):
    model = tiny([ATTENTION])
    batch = pack([rich(2)], VOCABULARY)
    n, table = len(rich(2).segments[0]), model.embedding.weight
    codec = rich(2).segments[1]
    x = model.embed(batch)[0]
    wanted = table[25 + codec.ids[:, 0]] + torch.where(codec.ids[:, 1:] < 0, 0, table[31 + codec.ids[:, 1]])
    wanted = wanted + model.channels["speed"](codec.channels["speed"]) + model.channels["speaker"](codec.channels["speaker"])
    torch.testing.assert_close(x[n : n + 3], wanted, rtol=0, atol=1e-12)
    vectors = model.projectors["cell"](model.encoders["cell"](rich(2).segments[2].features))
    torch.testing.assert_close(x[[n + 5, n + 3]], vectors, rtol=0, atol=1e-12)
    torch.testing.assert_close(x[:n], table[rich(2).segments[0].ids], rtol=0, atol=0)


def changed(**fields):
    return dataclasses.replace(Segment("text", torch.tensor([1, 2, 3]), weight=1.0), **fields)


FEATURES = torch.zeros(2, 3)
FAULTS = {
    "ids of a range": (changed(ids=torch.tensor([1, 20])), "range 'text' holds ids 0 to 19, but found 1 to 20"),
    "negative ids": (changed(ids=torch.tensor([-1, 2])), "found -1 to 2"),
    "unknown range": (changed(modality="txt"), "unknown vocabulary range 'txt'. Did you mean 'text'"),
    "nothing": (changed(ids=None, features=None), "holds no tokens"),
    "length of weight": (changed(weight=torch.ones(2)), r"weight of 'text' has shape \(2,\), but the segment has 3 tokens"),
    "negative weight": (changed(weight=torch.tensor([1.0, -2, 0])), "weight of 'text' must be at least 0, but is -2.0 at a token"),
    "weight that is no number": (changed(weight=float("nan")), "weight of 'text' must be at least 0, but is nan"),
    "length of labels": (changed(labels=torch.zeros(4, dtype=torch.long)), "labels of 'text' has shape"),
    "length of hidden": (changed(hidden=torch.zeros(1, dtype=torch.bool)), "hidden of 'text' has shape"),
    "length of branch": (changed(branch=torch.ones(2, dtype=torch.long)), "branch of 'text' has shape"),
    "length of a channel": (changed(channels={"speed": torch.zeros(2, 2)}), "speed of 'text' has shape"),
    "length of a tag": (changed(tags={"target": torch.zeros(4)}), "target of 'text' has shape"),
    "labels of a range": (changed(labels=torch.tensor([1, 25, NO_LABEL])), "range 'text' holds ids 0 to 19, but found 1 to 25"),
    "positions": (changed(position=torch.zeros(3, 2, dtype=torch.long)), r"shape \(3, 2\), not \(3, 1\)"),
    "number of features": (changed(features=FEATURES, feature_at=torch.tensor([1])), "2 features for 1 tokens of 'text'"),
    "place of features": (changed(features=FEATURES, feature_at=torch.tensor([1, 3])), "must lie within 0 and 2, but goes from 1 to 3"),
    "features twice": (changed(features=FEATURES, feature_at=torch.tensor([1, 1])), "names a token twice"),
    "features of hidden tokens": (
        changed(features=FEATURES, feature_at=torch.tensor([0, 1]), hidden=torch.tensor([False, True, False])),
        "hidden token of 'text' would show its features",
    ),
    "features to predict": (Segment("cell", features=FEATURES, weight=1.0), "has weight, but neither ids nor labels"),
    "more options than ids": (changed(num_options=21), "num_options of 'text' is 21, but the range holds 20"),
    "label beyond the options": (changed(num_options=3), "is to be 3 at a token, but has num_options 3"),
    "shape of reach": (changed(reach=torch.zeros(3, dtype=torch.long)), r"reach of 'text' has shape \(3,\), but must be \(3, 2\)"),
    "shape of labels": (
        Segment("codec", torch.zeros(3, 2, dtype=torch.long), labels=torch.zeros(3, dtype=torch.long)),
        r"labels of 'codec' has shape \(3,\), but must be \(3, 2\)",
    ),
    "hidden cells of no codebooks": (changed(hidden=torch.zeros(3, 2, dtype=torch.bool)), r"shape \(3, 2\), but must be \(3,\)"),
    "options of codebooks": (Segment("codec", torch.zeros(3, 2, dtype=torch.long), num_options=2), "'codec' has several codebooks"),
    "no mask id": (changed(modality="only", ids=torch.tensor([0]), hidden=torch.tensor([True])), "unknown vocabulary range"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_stream(fault):
    segment, message = FAULTS[fault]
    good, vocabulary = Stream([Segment("text", torch.tensor([1]))]), Vocabulary({"only": 1}) if fault == "no mask id" else VOCABULARY
    streams = [Stream([segment], name="bad", source="data.jsonl, line 7")]
    with pytest.raises(DataError, match=r"data.jsonl, line 7: .*" + message):
        pack(streams if fault == "no mask id" else [good, *streams], vocabulary)


def test_faults_between_segments_name_the_stream():
    words = Segment("text", torch.tensor([1, 2]), labels=torch.tensor([0, 1]), weight=1.0)
    with pytest.raises(DataError, match="s1: the token before 'label' has a label of its own"):
        pack([Stream([words, Segment("label", torch.tensor([1]), weight=1.0)], name="s1")], VOCABULARY)
    with pytest.raises(DataError, match=r"s2: channel 'speed' has \[3\] of float32 a token, but the batch began with \[2\] of float32"):
        pack([Stream([changed(channels={"speed": torch.zeros(3, size)})], name=f"s{size - 1}") for size in (2, 3)], VOCABULARY)
    with pytest.raises(DataError, match=r"s2: features of 'cell' has \[2\]"):
        pack([Stream([Segment("cell", features=torch.zeros(3, 5 - size))], name=f"s{size - 1}") for size in (2, 3)], VOCABULARY)
    with pytest.raises(DataError, match=r"s2: position axes \('row',\), but the batch began with \('time',\)"):
        pack([Stream([changed()]), Stream([changed()], name="s2", axes=("row",))], VOCABULARY)
    with pytest.raises(DataError, match="nothing to pack"):
        pack([], VOCABULARY)
    with pytest.raises(DataError, match="s2: a segment of 'text' has neither ids nor features"):
        pack([Stream([changed(), Segment("text")], name="s2")], VOCABULARY)


def test_a_batch_moves_with_all_its_parts():
    moved = pack([rich(2), rich(5)], VOCABULARY).to("meta")
    tensors = [getattr(moved, f.name) for f in dataclasses.fields(moved)]
    tensors += [x for value in tensors if isinstance(value, dict) for x in value.values()]
    tensors += [getattr(moved.layout, name) for name in ("document", "position")]
    found = [value.device.type for value in tensors if isinstance(value, torch.Tensor)]
    assert found == ["meta"] * 13


def test_pieces_of_several_ranges_in_one_segment_are_those_of_several_segments():
    vocabulary = Vocabulary({"text": 10, "loc": 4, "obj": 2})
    names, ids = [("text", 3), ("obj", 1), ("loc", 2), ("text", 1)], torch.tensor([1, 9, 3, 1, 0, 3, 7])
    whole = Segment("answer", ids, weight=1.0, pieces=names)
    apart = [Segment(name, part, weight=1.0) for (name, _), part in zip(names, ids.split([3, 1, 2, 1]), strict=True)]
    one, other = (pack([Stream([Segment("text", torch.tensor([5])), *some])], vocabulary) for some in ([whole], apart))
    assert torch.equal(one.ids, other.ids) and torch.equal(one.labels, other.labels) and torch.equal(one.weight, other.weight)
    part = cut(whole, 2, 5)
    told = pack([Stream([Segment("answer", ids, pieces=names, labels=ids.masked_fill(ids == 3, -100), weight=1.0)])], vocabulary)
    assert torch.equal(told.labels[0], one.ids[0, 1:].masked_fill(ids == 3, -100))
    assert part.pieces == [("text", 1), ("obj", 1), ("loc", 1)] and part.ids.tolist() == [3, 1, 0]
    for faulty, message in (
        (Segment("answer", ids, pieces=names[:-1]), "hold 6 tokens, but it has ids"),
        (Segment("answer", torch.tensor([1, 9, 3, 2, 0, 3, 7]), pieces=names), "id 2 at token 3 lies outside its range"),
        (Segment("answer", ids, pieces=names, num_options=2), "with which num_options does not go"),
        (Segment("answer", ids[:, None], pieces=names), "has pieces of several ranges, but also several codebooks"),
        (Segment("answer", ids, pieces=names, labels=torch.where(ids == 3, 99, ids)), "id 99 at token 2 lies outside its range"),
    ):
        with pytest.raises(DataError, match=message):
            pack([Stream([faulty])], vocabulary)


class Means(torch.nn.Module):
    """Of each thing its mean row, then that row doubled, tripled, ...: as many vectors as are asked for."""

    size = 3

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, features_nf, sizes_s):
        means = [rows.mean(0) for rows in features_nf.split(sizes_s.tolist())]
        return torch.stack([mean * (at + 1) for mean in means for at in range(self.count)])


def thing(rows, count=2, **fields):
    g = torch.Generator().manual_seed(rows)
    features = torch.randn(rows, 3, generator=g, dtype=torch.float64)
    return Segment("label", torch.zeros(count, dtype=torch.long), features=features, encoder="cell", whole=True, **fields)


def test_a_whole_thing_fills_the_tokens_of_its_segment(tiny):
    model = tiny([ATTENTION])
    model.encoders["cell"] = Means(2)
    model.projectors["cell"] = torch.nn.Linear(3, model.config.backbone.width, dtype=torch.float64)
    words = Segment("text", torch.tensor([1, 2, 3]))
    streams = [Stream([words, thing(4)]), Stream([thing(7, 3, feature_at=torch.tensor([2, 0])), words, thing(1)]), Stream([words])]
    packed, padded = pack(streams, VOCABULARY), pad(streams, VOCABULARY)
    assert packed.whole_sizes["cell"].tolist() == [4, 7, 1]
    apart = torch.cat(unpack(model.embed(padded), padded.layout))
    torch.testing.assert_close(model.embed(packed)[0], apart, rtol=0, atol=1e-12)
    mean = thing(7).features.mean(0)
    wanted = model.projectors["cell"](torch.stack([2 * mean, mean]))
    torch.testing.assert_close(model.embed(packed)[0][[5, 7]], wanted, rtol=0, atol=1e-12)
    with pytest.raises(RecipeError, match="encoder 'cell' made 2 vectors, but 3 tokens wait for one"):
        model.embed(pack([Stream([thing(4, 3)])], VOCABULARY))


def test_faults_of_whole_things_are_told():
    faulty = {
        "it needs ids, which say how many tokens": Segment("cell", features=FEATURES, whole=True),
        "at least one row of features": thing(0),
        "is said to be one thing, but has no features": Segment("label", torch.tensor([1]), whole=True),
    }
    for message, segment in faulty.items():
        with pytest.raises(DataError, match=message):
            pack([Stream([segment])], VOCABULARY)
    with pytest.raises(DataError, match="s2: features of 'cell' are those of one thing in some segments and of tokens in others"):
        pack([Stream([thing(4)]), Stream([dataclasses.replace(thing(2), whole=False)], name="s2")], VOCABULARY)
    placed = thing(5, 4, feature_at=torch.tensor([1, 2]))
    part = cut(placed, 1, 4)
    assert part.whole and part.feature_at.tolist() == [0, 1] and len(part.features) == 5
    assert cut(placed, 3, 4).features is None and not cut(placed, 3, 4).whole
    with pytest.raises(DataError, match="'label' cannot be cut at tokens 2 and 4"):
        cut(placed, 2, 4)
