"""Stages against full forward passes: lengths, positions, codebooks, guidance with caches of its own, windows by alignment, chunks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmlm.alignment import entry_of_frame, window_by_alignment
from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import check
from mmlm.decoding import Decoding, OneCallDecoding, guided
from mmlm.generation import Sampling
from mmlm.kernels.dispatch import forced
from mmlm.layout import EVERYTHING
from mmlm.reader import Reader
from mmlm.staged import generate_staged
from mmlm.stages import Branch, Length, Stage, copied_positions, hidden_in
from mmlm.stream import Segment, Stream, pack, positions
from mmlm.tokenizers.config import CodebookOrder
from mmlm.tokenizers.patterns import CodebookPattern

SIZES = {"text": 20, "unit": 9, "prosody.0": 6, "prosody.1": 5, "codec.0": 8, "codec.1": 6, "codec.2": 6, "end": 2, "mask": 1}
BOOKS = [name for name in SIZES if "." in name]
FIRST = {name: sum(list(SIZES.values())[:place]) for place, name in enumerate(SIZES)}
END = FIRST["codec.0"] + 7
ATTENTION = {"type": "attention", "num_heads": 2, "num_kv_heads": 1}
MAMBA = {"type": "mamba2", "state_size": 4, "head_size": 8, "chunk_size": 3}
DELTA = {"type": "deltanet", "num_heads": 2, "key_size": 6, "chunk_size": 4}
PATTERNS = {
    "attention": [ATTENTION],
    "window": [{**ATTENTION, "window": 3}],
    "mamba2": [MAMBA],
    "deltanet": [DELTA],
    "hybrid": [MAMBA, ATTENTION],
}


def made(tiny, pattern, **backbone):
    """A model whose scores lie far apart."""
    heads = {"language_model": {"type": "language_model", "tied": False}, "books": {"type": "codebooks", "ranges": BOOKS, "tied": False}}
    model = tiny(pattern, heads, SIZES, **backbone)
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.mul_(8)
    return model.requires_grad_(False)


@pytest.fixture(params=PATTERNS)
def model(request, tiny):
    return made(tiny, PATTERNS[request.param])


@pytest.fixture
def plain(tiny):
    return made(tiny, [ATTENTION])


def part_of(order, books=3, place=0):
    return CodebookPattern(check(CodebookOrder, {"order": order}, "test"), books).parts[place]


def words(length, seed=0):
    return Segment("text", torch.randint(0, 20, (length,), generator=torch.Generator().manual_seed(100 * seed + length)))


def prompts(*lengths):
    return [Stream([words(length)]) for length in lengths or (3, 7, 1)]


UNITS = Stage("units", "unit", Length(6), stop=(FIRST["end"],))


def full_scores(model, stream, segment, at_once=False):
    """Scores of one full pass at the tokens that predict those of a segment: for 1-D ids [n, vocabulary], else {range: [n, ids]}."""
    batch = pack([stream], model.vocabulary)
    batch.layout.causal = not at_once
    h = model.hidden(batch)[0][0]
    place = next(at for at, each in enumerate(stream.segments) if each is segment)
    start = sum(len(each) for each in stream.segments[:place]) - (not at_once)
    h = h[start : start + len(segment)]
    if segment.ids.ndim == 1:
        return model.heads["language_model"].predict(h)
    return {
        f"{segment.modality}.{book}": model.heads["books"].predict(h, f"{segment.modality}.{book}") for book in range(segment.ids.shape[1])
    }


def assert_greedy(model, stream, segment, stop=None):
    """Every id is the best of its range, or of its range and a stop id, given all before it: cached steps are the full pass."""
    scores = full_scores(model, stream, segment)
    if segment.ids.ndim == 1:
        first = FIRST[segment.modality]
        rows = [*range(first, first + SIZES[segment.modality]), *([stop] if stop is not None else [])]
        assert scores[:, rows].argmax(-1).tolist() == segment.ids.tolist()
        return
    for name, column in zip(scores, segment.ids.unbind(1), strict=True):
        assert scores[name].argmax(-1)[column >= 0].tolist() == column[column >= 0].tolist()


# lengths, stops, batches


def test_ranges_are_locked_and_cached_greedy_steps_are_full_passes(model):
    stages = [dataclasses.replace(UNITS, length=Length.exactly(5)), Stage("codec", "codec", Length.exactly(4), part_of("delay"))]
    for so_far, prompt in zip(generate_staged(model, given := prompts(), stages), given, strict=True):
        first, units, codec = so_far.stream.segments
        assert first is prompt.segments[0] and so_far.finished == {"units": True, "codec": True}
        assert units.ids.tolist() == so_far.written["units"].tolist() and len(units) == 5
        assert so_far.codes["codec"].shape == (4, 3) and (so_far.codes["codec"] >= 0).all()
        assert torch.equal(part_of("delay").forward(so_far.codes["codec"]), codec.ids)
        assert_greedy(model, so_far.stream, units)
        assert_greedy(model, so_far.stream, codec)


@pytest.mark.parametrize("order", ["flatten", "parallel", "delay"])
def test_the_first_codebook_ends_the_others_and_says_so_in_its_cell(model, order):
    stage = Stage("codec", "codec", Length(6, 1), part_of(order), stop=(END,), sampling=Sampling(temperature=2.5))
    found = [so_far for seed in range(2) for so_far in generate_staged(model, prompts(), [stage], seed=seed)]
    lengths = [len(so_far.codes["codec"]) for so_far in found]
    assert min(lengths) < 6 and min(lengths) >= 1
    for so_far, length in zip(found, lengths, strict=True):
        codes, segment = so_far.codes["codec"], so_far.stream.segments[-1]
        assert so_far.finished["codec"] == (length < 6) or length == 6
        assert (codes >= 0).all() and (codes[:, 0] < 7).all() and (codes[:, 1:] < 6).all()
        assert torch.equal(segment.ids, stage.part.forward(codes, end=7))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.3, top_p=0.9, repetition_penalty=1.2)], ids=["greedy", "drawn"])
def test_a_sequence_does_not_depend_on_the_rest_of_its_batch(model, sampling):
    delayed = Stage("codec", "codec", Length(5, lambda so_far: so_far.number), part_of("delay"), stop=(END,), sampling=sampling)
    stages = [dataclasses.replace(UNITS, sampling=sampling), delayed]
    given = prompts(3, 7, 1)
    together = generate_staged(model, given, stages, seed=3)
    others = generate_staged(model, [*prompts(9, 2), given[2]], stages, seed=3)
    alone = generate_staged(model, given[:1], stages, seed=3)
    for one, other in ((together[0], alone[0]), (together[2], others[2])):
        assert all(torch.equal(one.written[name], other.written[name]) for name in ("units", "codec"))
        assert all(one.scores[name] == pytest.approx(other.scores[name], abs=1e-9) for name in one.scores)
        assert one.finished == other.finished
    if sampling.temperature:
        assert len({tuple(so_far.written["units"].tolist()) for so_far in together}) > 1


def test_stop_ids_end_a_stage_between_its_least_and_most_tokens(plain):
    stop = (FIRST["end"], FIRST["end"] + 1)
    rules = {
        "free": Length(12),
        "least": Length(12, 8),
        "exact": Length.exactly(7),
        "rule": Length.exactly(lambda so_far: len(so_far.stream)),
    }
    seen = {}
    for name, length in rules.items():
        stage = dataclasses.replace(UNITS, length=length, stop=stop, sampling=Sampling(temperature=2.0))
        found = [so_far for seed in range(4) for so_far in generate_staged(plain, prompts(), [stage], seed=seed)]
        seen[name] = [len(so_far.written["units"]) for so_far in found]
        assert all((so_far.written["units"] < 9).all() for so_far in found)
        assert [so_far.finished["units"] for so_far in found] == [name in ("exact", "rule") or size < 12 for size in seen[name]]
    assert min(seen["free"]) < 8 <= min(seen["least"]) and max(seen["free"]) <= 12
    assert set(seen["exact"]) == {7} and seen["rule"] == [3, 7, 1] * 4
    none = generate_staged(plain, prompts(2), [dataclasses.replace(UNITS, length=Length.exactly(0)), UNITS_BEHIND])[0]
    assert len(none.written["units"]) == 0 and len(none.written["behind"]) == 3
    assert_greedy(plain, none.stream, none.stream.segments[-1])


UNITS_BEHIND = Stage("behind", "unit", Length.exactly(3))


def test_allowed_ids_alone_are_written_and_scored_among_themselves(plain):
    stage = Stage(
        "codec", "codec", Length.exactly(6), part_of("parallel"), allowed=[[2, 3], [5], [0, 1, 4]], sampling=Sampling(temperature=9.0)
    )
    so_far = generate_staged(plain, prompts(4), [stage])[0]
    assert [set(column.tolist()) for column in so_far.codes["codec"].unbind(1)] == [{2, 3}, {5}, {0, 1, 4}]
    scores, wanted = full_scores(plain, so_far.stream, so_far.stream.segments[-1]), 0.0
    for (name, some), column in zip(zip(scores, stage.allowed, strict=True), so_far.codes["codec"].unbind(1), strict=True):
        log = torch.full_like(scores[name], -torch.inf).index_copy(1, torch.tensor(some), scores[name][:, some]).log_softmax(-1)
        wanted += float(log.gather(1, column[:, None]).sum())
    assert so_far.scores["codec"] == pytest.approx(wanted, abs=1e-9)


def test_coarse_codebooks_come_before_the_fine_ones(model):
    stages = [Stage(f"part {place}", "codec", Length.exactly(3), part_of("coarse_fine", 3, place)) for place in range(2)]
    for so_far in generate_staged(model, prompts(), stages):
        _, coarse, fine = so_far.stream.segments
        assert (coarse.ids[:, 1:] == -1).all() and (fine.ids[:, 0] == -1).all() and len(coarse) == 3 and len(fine) == 6
        assert torch.equal(so_far.codes["codec"][:, 0], so_far.written["part 0"][:, 0]) and (so_far.codes["codec"] >= 0).all()
        assert_greedy(model, so_far.stream, coarse)
        assert_greedy(model, so_far.stream, fine)


def test_delayed_scores_do_not_see_their_own_step_or_later_ones(model):
    codes = torch.stack([torch.randint(0, 6, (5,), generator=torch.Generator().manual_seed(book)) for book in range(3)], dim=1)
    steps = part_of("delay").forward(codes, end=7)
    stream = Stream([words(3), Segment("codec", steps, weight=1.0)])
    batch = pack([stream], model.vocabulary)
    x = model.embed(batch).requires_grad_()
    h = model.backbone(x, batch.layout)[0]
    for step in range(len(steps)):
        for book in range(3):
            score = model.heads["books"].predict(h[0, 2 + step], f"codec.{book}").sum()
            (grad,) = torch.autograd.grad(score, x, retain_graph=True)
            assert not grad[0, 3 + step :].any() and grad[0, 2 + step].any()
    assert batch.code_labels[0, 2:-1].tolist() == [
        [-100 if index < 0 else index + FIRST[f"codec.{book}"] for book, index in enumerate(row)] for row in steps.tolist()
    ]


@pytest.mark.parametrize("ruled", [False, True])
@pytest.mark.parametrize("order", ["flatten", "parallel", "delay"])
def test_known_codes_are_gone_on_from_as_if_they_had_been_written(model, order, ruled):
    part, told = part_of(order), []
    channel = {"speaker": (lambda so_far, tokens: torch.arange(tokens) % 2) if ruled else 1}
    position = (lambda so_far, tokens: 3 + 2 * torch.arange(tokens)) if ruled else 3
    stage = Stage("codec", "codec", Length.exactly(7), part, channels=channel, position=position)
    whole = generate_staged(model, given := prompts(), [stage])
    sizes = (2, 0, 5)
    voice = dataclasses.replace(
        stage, known=lambda so_far: whole[so_far.number].codes["codec"][: sizes[so_far.number]],
        length=Length.exactly(lambda so_far: 7 - sizes[so_far.number]), chunk=2,
    )  # fmt: skip
    found = generate_staged(model, given, [voice, UNITS_BEHIND], listen=told.append)
    for one, so_far, size in zip(whole, found, sizes, strict=True):
        assert so_far.codes["codec"].tolist() == one.codes["codec"][size:].tolist()
        mine = [each for each in told if each.number == so_far.number and each.stage == "codec"]
        assert torch.cat([each.ids for each in mine]).tolist() == so_far.codes["codec"].tolist() and mine[0].start == 0
        codec = [segment for segment in so_far.stream.segments if segment.modality == "codec"]
        assert torch.equal(torch.cat([segment.ids for segment in codec]), one.stream.segments[-1].ids)
        assert torch.equal(torch.cat([segment.position for segment in codec]), one.stream.segments[-1].position)
        assert_greedy(model, so_far.stream, so_far.stream.segments[-1])
    ends = dataclasses.replace(voice, length=Length(2), stop=(END,), sampling=Sampling(temperature=3.0))
    for so_far, one, size in zip(generate_staged(model, given, [ends], seed=1), whole, sizes, strict=True):
        codes = torch.cat([one.codes["codec"][:size], so_far.codes["codec"]])
        codec = [segment.ids for segment in so_far.stream.segments if segment.modality == "codec"]
        assert torch.equal(torch.cat(codec), part.forward(codes, end=7)) and len(so_far.codes["codec"]) <= 2


# what a stage begins behind, and where its tokens stand


def test_what_was_read_is_not_read_again(plain, monkeypatch):
    read = []
    monkeypatch.setattr(Decoding, "read", lambda self, batch, of=Decoding.read: (read.append(batch.num_tokens), of(self, batch))[1])
    opened = []
    monkeypatch.setattr(Reader, "close", lambda self, of=Reader.close: (opened.append(len(self.streams)), of(self))[1])
    separator = Segment("end", torch.tensor([1]))
    behind = Stage("codec", "codec", Length.exactly(2), part_of("delay"), prompt=lambda s: Stream([*s.stream.segments, separator]))
    found = generate_staged(plain, prompts(3, 5), [dataclasses.replace(UNITS, length=Length.exactly(4)), behind])
    assert read == [2, 2, 2, 4, 2, 2, 2] and len(opened) == 2
    for so_far in found:
        assert [segment.modality for segment in so_far.stream.segments] == ["text", "unit", "end", "codec"]
        assert_greedy(plain, so_far.stream, so_far.stream.segments[-1])
    fresh = Stage(
        "codec", "codec", Length.exactly(2), part_of("delay"), prompt=lambda s: Stream([words(6), s.stream.segments[1], separator])
    )
    for so_far in generate_staged(plain, prompts(3, 5), [dataclasses.replace(UNITS, length=Length.exactly(4)), fresh]):
        assert torch.equal(so_far.stream.segments[0].ids, words(6).ids) and torch.equal(
            so_far.stream.segments[1].ids, so_far.written["units"]
        )
        assert_greedy(plain, so_far.stream, so_far.stream.segments[-1])


def test_stages_may_be_written_by_different_models(tiny, plain):
    other = made(tiny, [MAMBA])
    stages = [
        dataclasses.replace(UNITS, length=Length.exactly(4)),
        Stage("codec", "codec", Length.exactly(3), part_of("delay"), model=other),
    ]
    for so_far in generate_staged(plain, prompts(), stages):
        assert_greedy(plain, so_far.stream, so_far.stream.segments[1])
        assert_greedy(other, so_far.stream, so_far.stream.segments[2])


POLICIES = {
    "go on": (None, lambda stream: range(len(stream.segments[0]), len(stream.segments[0]) + 4)),
    "restart": (0, lambda stream: range(4)),
    "a fixed number": (1000, lambda stream: range(1000, 1004)),
    "copied": (copied_positions(0), lambda stream: [3, 9, 4, 7]),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_positions_follow_their_policy_and_the_cache_knows_them(tiny, policy):
    model = made(tiny, [ATTENTION, {**ATTENTION, "window": 3}])
    position, wanted = POLICIES[policy]
    noisy = Segment("unit", torch.tensor([1, 5, 2, 8]), position=torch.tensor([3, 9, 4, 7])[:, None] if policy == "copied" else None)
    given = [Stream([noisy, words(2), Segment("unit", torch.tensor([seed, 1]))]) for seed in range(3)]
    given[1].segments.pop()
    stages = [
        Stage(
            "clean",
            "unit",
            Length.exactly(lambda so_far: len(so_far.stream.segments[0])),
            position=position,
            sampling=Sampling(temperature=2.0),
        ),
        Stage("codec", "codec", Length.exactly(2), part_of("delay")),
    ]
    for so_far, prompt in zip(generate_staged(model, given, stages, seed=2), given, strict=True):
        assert len(so_far.written["clean"]) == 4
        places = [place[:, 0].tolist() for place in positions(so_far.stream)]
        start = len(prompt) if policy != "copied" else max(max(place) for place in places[: len(prompt.segments)]) + 1
        assert places[-2] == (list(wanted(so_far.stream)) if policy != "go on" else list(range(start, start + 4)))
        scores = full_scores(model, so_far.stream, so_far.stream.segments[-2])[:, FIRST["unit"] : FIRST["unit"] + 9]
        log = scores.log_softmax(-1).gather(1, so_far.written["clean"][:, None]).sum()
        assert so_far.scores["clean"] == pytest.approx(float(log), abs=1e-9)
        assert_greedy(model, so_far.stream, so_far.stream.segments[-1])


def test_channels_are_added_to_what_is_written(plain):
    def speed(so_far, tokens):
        return torch.arange(2.0 * tokens, dtype=torch.float64).view(tokens, 2) / 7

    stage = dataclasses.replace(UNITS, length=Length.exactly(5), channels={"speaker": 2, "speed": speed})
    for so_far in generate_staged(plain, prompts(), [stage, dataclasses.replace(UNITS_BEHIND, channels={"speaker": 3})]):
        units, behind = so_far.stream.segments[1:]
        assert units.channels["speaker"].tolist() == [2] * 5 and units.channels["speed"].shape == (5, 2)
        assert_greedy(plain, so_far.stream, units)
        assert_greedy(plain, so_far.stream, behind)


# guidance


def without_text(stream):
    return dataclasses.replace(stream, segments=[Segment("text", torch.tensor([0])), *stream.segments[1:]])


def test_weights_of_one_change_nothing(model):
    stage = dataclasses.replace(UNITS, sampling=Sampling(temperature=1.5))
    guided_stage = dataclasses.replace(stage, branches=[Branch(without_text, 1.0), Branch(lambda s: hidden_in(s, "text"), 1.0)])
    free, held = (generate_staged(model, prompts(), [one], seed=5) for one in (stage, guided_stage))
    assert [(a.written["units"].tolist(), a.scores) for a in free] == [(b.written["units"].tolist(), b.scores) for b in held]


def test_branches_with_caches_of_their_own_are_full_passes_without_any(model):
    separator = Segment("end", torch.tensor([0]))
    first = dataclasses.replace(UNITS, length=Length.exactly(4), branches=[Branch(without_text, 1.5)])
    hidden = Branch(lambda stream: hidden_in(stream, "unit"), 1.4)
    second = Stage(
        "codec", "codec", Length.exactly(3), part_of("delay"), branches=[Branch(without_text, 2.5), hidden],
        prompt=lambda so_far: Stream([*so_far.stream.segments, separator]),
    )  # fmt: skip
    found, moved = generate_staged(model, prompts(), [first, second]), 0
    for so_far in found:
        stream = so_far.stream
        _, units, _, codec = stream.segments
        span = slice(FIRST["unit"], FIRST["unit"] + 9)
        with_text, free = (full_scores(model, each, each.segments[1])[:, span] for each in (stream, without_text(stream)))
        assert guided(with_text, [(free, 1.5)]).argmax(-1).tolist() == units.ids.tolist()
        moved += with_text.argmax(-1).tolist() != units.ids.tolist()
        changed = [stream, without_text(stream), hidden_in(stream, "unit")]
        assert len(changed[2]) == len(stream)
        c, u, v = (full_scores(model, each, each.segments[-1]) for each in changed)
        for name, column in zip(c, codec.ids.unbind(1), strict=True):
            scores = v[name] + 1.4 * (u[name] + 2.5 * (c[name] - u[name]) - v[name])
            assert scores.argmax(-1)[column >= 0].tolist() == column[column >= 0].tolist()
            moved += c[name].argmax(-1)[column >= 0].tolist() != column[column >= 0].tolist()
    assert moved


# windows by alignment


def aligned_stages(reach, scale=1.0):
    """Durations first, then frames that look at the entries around their own."""

    def durations(so_far):
        return ((so_far.written["prosody"][:, 1] + 1) * scale).round().long()

    def begin(so_far):
        rows = window_by_alignment(durations(so_far), reach)
        separator = Segment("end", torch.tensor([1]), reach=rows[:1])
        return Stream([*so_far.stream.segments, separator])

    entries = Length.exactly(lambda so_far: len(so_far.stream.segments[0]))
    prosody = Stage("prosody", "prosody", entries, part_of("parallel", 2), position=0, mark=lambda so_far, n: torch.arange(n),
                    sampling=Sampling(temperature=1.0))  # fmt: skip
    frames = Length.exactly(lambda so_far: int(durations(so_far).sum()))
    speech = Stage("speech", "unit", frames, prompt=begin, position=0, stop=(FIRST["end"],),
                   reach=lambda so_far, n: window_by_alignment(durations(so_far), reach)[1:])  # fmt: skip
    return [prosody, speech]


def phones(length, seed=0):
    segment = words(length, seed)
    return Stream([dataclasses.replace(segment, mark=torch.arange(length)), Segment("end", torch.tensor([0]))])


def test_rows_of_a_window_belong_to_the_frame_that_is_predicted():
    assert entry_of_frame(torch.tensor([2, 0, 3])).tolist() == [0, 0, 2, 2, 2]
    assert window_by_alignment(torch.tensor([2, 1]), 1).tolist() == [[-1, 1], [-1, 1], [0, 2], [0, 2]]
    assert window_by_alignment(torch.tensor([1]), None).tolist() == [list(EVERYTHING)] * 2
    assert len(window_by_alignment(torch.tensor([], dtype=torch.long))) == 1
    with pytest.raises(DataError, match="at least 0 frames, but one is -1"):
        entry_of_frame(torch.tensor([1, -1]))


@pytest.mark.parametrize("reach", [0, 1, 2, None])
@pytest.mark.parametrize("options", [{}, {"window": 6}, {"rope": None, "alibi": True}], ids=str)
def test_windows_by_alignment_are_the_same_row_by_row_packed_and_padded(tiny, reach, options):
    model = made(tiny, [{**ATTENTION, **options}])
    found = generate_staged(model, [phones(length) for length in (4, 6, 2)], aligned_stages(reach), seed=1)
    streams = [so_far.stream for so_far in found]
    packed = pack(streams, model.vocabulary)
    whole, start = model.hidden(packed)[0][0], 0
    for so_far in found:
        speech, durations = so_far.stream.segments[-1], so_far.written["prosody"][:, 1] + 1
        assert len(speech) == int(durations.sum()) and len(so_far.written["prosody"]) == len(so_far.stream.segments[0])
        assert_greedy(model, so_far.stream, speech, stop=None)
        alone = model.hidden(pack([so_far.stream], model.vocabulary))[0][0]
        torch.testing.assert_close(whole[start : start + len(alone)], alone, rtol=0, atol=1e-10)
        start += len(alone)
        if reach is not None:
            free = dataclasses.replace(so_far.stream, segments=[dataclasses.replace(each, reach=None) for each in so_far.stream.segments])
            other = model.hidden(pack([free], model.vocabulary))[0][0]
            assert ((alone - other)[-len(speech) - 1 :].abs().max() > 1e-3) == (len(so_far.written["prosody"]) > reach + 1)


def test_a_phone_outside_the_window_changes_nothing_and_without_a_window_it_does(tiny):
    model = made(tiny, [ATTENTION], num_layers=1)  # in more layers it is seen through the entries beside it
    durations = torch.tensor([2, 2, 2, 2])
    for reach, moved in ((1, False), (None, True)):
        rows = window_by_alignment(durations, reach)
        speech = [Segment("end", torch.tensor([1]), reach=rows[:1]), Segment("unit", torch.arange(8), reach=rows[1:])]
        first, other = (Stream([*phones(4).segments, *speech]) for _ in range(2))
        other.segments[0] = dataclasses.replace(other.segments[0], ids=other.segments[0].ids.clone())
        other.segments[0].ids[3] = (other.segments[0].ids[3] + 1) % 20
        a, b = (model.hidden(pack([each], model.vocabulary))[0][0, 5:] for each in (first, other))
        assert ((a - b)[:4].abs().max() > 1e-6) == moved  # frames 0 to 3 belong to phones 0 and 1
        assert (a - b)[4:].abs().max() > 1e-6


def test_scaled_durations_give_exactly_their_sum_of_frames(plain):
    found = generate_staged(plain, [phones(length) for length in (4, 6)], aligned_stages(1, 1.3), seed=4)
    for so_far in found:
        assert len(so_far.written["speech"]) == int(((so_far.written["prosody"][:, 1] + 1) * 1.3).round().sum())


def test_recurrent_layers_refuse_windows_by_alignment(tiny):
    with pytest.raises(RecipeError, match="mamba2 reads from left to right: .*windows by alignment"):
        generate_staged(made(tiny, [MAMBA]), [phones(3)], aligned_stages(1))


# all at once


def nar(book, passes, **fields):
    part = CodebookPattern(check(CodebookOrder, {"order": "ar_nar"}, "test"), 3).parts[book]
    length = Length.exactly(lambda so_far: len(so_far.codes["codec"]) if so_far.codes else 6)
    return Stage(f"book {book}", "codec", length, part, passes if book else None, prompt=lambda s: Stream(s.stream.segments[:1]), **fields)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}], ids=str)
def test_one_pass_over_known_lower_codebooks_is_teacher_forcing(tiny, options):
    model = made(tiny, [{**ATTENTION, **options}])
    stages = [nar(0, None), nar(1, 1, book_channel="speaker"), nar(2, 1, book_channel="speaker")]
    for so_far in generate_staged(model, prompts(), stages):
        codes, first = so_far.codes["codec"], so_far.stream.segments[0]
        assert codes.shape == (6, 3) and (codes >= 0).all()
        ar = Segment("codec", torch.where(torch.tensor([True, False, False]), codes, -1))
        assert_greedy(model, Stream([first, ar]), ar)
        for book in (1, 2):
            shown = torch.where(torch.arange(3) < book, codes, -1)
            hidden = torch.zeros(6, 3, dtype=torch.bool)
            hidden[:, book] = True
            told = [{"speaker": torch.full((size,), book)} for size in (len(first), 6)]
            target = Segment("codec", shown, hidden=hidden, channels=told[1])
            stream = Stream([dataclasses.replace(first, channels=told[0]), target])
            scores = full_scores(model, stream, target, at_once=True)[f"codec.{book}"]
            assert scores.argmax(-1).tolist() == codes[:, book].tolist()
            log = scores.log_softmax(-1).amax(-1).sum()
            assert so_far.scores[f"book {book}"] == pytest.approx(float(log), abs=1e-5)


@pytest.mark.parametrize("passes", [1, 3, 5, 9])
@pytest.mark.parametrize("guides", [(), (Branch(without_text, 2.0),)], ids=["free", "guided"])
def test_passes_keep_the_most_certain_cells_by_the_cosine_schedule(plain, passes, guides):
    stage = Stage("units", "unit", Length.exactly(7), passes=passes, prompt=lambda so_far: so_far.stream, branches=guides)
    for so_far, prompt in zip(generate_staged(plain, given := prompts(), [stage]), given, strict=True):
        ids, hidden, counts = torch.zeros(7, dtype=torch.long), torch.ones(7, dtype=torch.bool), []
        for step in range(passes):
            target = Segment("unit", ids, hidden=hidden)
            scores = []
            for stream in (prompt, without_text(prompt)):
                whole = Stream([*stream.segments, target])
                scores.append(full_scores(plain, whole, target, at_once=True)[:, FIRST["unit"] : FIRST["unit"] + 9])
            mixed = guided(scores[0], [(scores[1], branch.weight) for branch in guides]).log_softmax(-1)
            known = int(torch.ceil(7 * (1 - torch.cos(torch.tensor((step + 1) / passes, dtype=torch.float64) * torch.pi / 2)) - 1e-12))
            best = sorted((-float(mixed[at].max()), at) for at in range(7) if hidden[at])[: known - int((~hidden).sum())]
            ids, hidden = ids.clone(), hidden.clone()
            for _, at in best:
                ids[at], hidden[at] = int(mixed[at].argmax()), False
            counts.append(int((~hidden).sum()))
        assert counts[-1] == 7 and so_far.written["units"].tolist() == ids.tolist()
        assert so_far.stream.segments[-1].hidden is None


# listening, and the C++ decoder


@pytest.mark.parametrize("order", [None, "flatten", "parallel", "delay"])
@pytest.mark.parametrize("chunk", [0, 1, 2, 3])
def test_chunks_are_what_is_written_in_order_and_not_late(plain, order, chunk):
    part, told = part_of(order) if order else None, []
    stage = Stage("s", "codec" if order else "unit", Length(7), part, stop=(END if order else FIRST["end"],), chunk=chunk,
                  sampling=Sampling(temperature=1.5))  # fmt: skip
    found = generate_staged(plain, prompts(), [stage], seed=2, listen=told.append)
    for so_far in found:
        mine = [each for each in told if each.number == so_far.number]
        assert torch.equal(torch.cat([each.ids for each in mine]), so_far.written["s"])
        assert [each.start for each in mine] == [sum(len(one.ids) for one in mine[:at]) for at in range(len(mine))]
        assert [each.is_last for each in mine] == [False] * (len(mine) - 1) + [True]
        if chunk:
            assert all(len(each.ids) == chunk for each in mine[:-1]) and len(mine[-1].ids) <= chunk + 2
        else:
            assert len(mine) == 1


def test_plain_stages_go_through_the_one_call_decoder_to_the_same_ids(tiny, monkeypatch):
    model = made(tiny, [ATTENTION]).float()
    separator = Segment("end", torch.tensor([1]))
    stages = [
        Stage("units", "unit", Length(40), stop=(FIRST["end"],), branches=[Branch(without_text, 1.5)]),
        Stage("behind", "unit", Length.exactly(5), prompt=lambda so_far: Stream([*so_far.stream.segments, separator]),
              branches=[Branch(without_text, 1.5)]),
        Stage("codec", "codec", Length(15), part_of("delay"), stop=(END,), sampling=Sampling(temperature=4.0), channels={"speaker": 1}),
        Stage("more", "unit", Length(4), stop=(FIRST["end"],), sampling=Sampling(temperature=2.0)),
    ]  # fmt: skip
    with forced("torch"):
        wanted = generate_staged(model, prompts(), stages)
    calls = []
    for kind in (Decoding, OneCallDecoding):
        monkeypatch.setattr(kind, "read", lambda self, batch, of=kind.read, kind=kind: (calls.append(kind), of(self, batch))[1])
    found = generate_staged(model, prompts(), stages)
    assert len(calls) > 10 and set(calls) == {OneCallDecoding}
    assert len({len(one.codes["codec"]) for one in found}) > 1
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(one.written[name], other.written[name]) for name in other.written)
        assert all(one.scores[name] == pytest.approx(other.scores[name], abs=1e-3) for name in other.scores)


# faults


FAULTS = {
    "beams": ({"sampling": Sampling(num_beams=2)}, "stages have no beams"),
    "penalty": ({"passes": 2, "prompt": lambda s: s.stream, "stop": (), "sampling": Sampling(repetition_penalty=2)}, "no tokens before it"),
    "allowed of fewer codebooks": ({"allowed": [[1], [2]]}, "allowed needs ids for each of its 1 codebooks"),
    "allowed of nothing": ({"allowed": [[]]}, "allowed needs ids for each"),
    "samplings": ({"sampling": [Sampling()] * 2}, "sampling is for 2 codebooks, but it writes 1"),
    "a part at once without passes": ({"part": part_of("ar_nar", 3, 1)}, "a part that is written at once needs passes"),
    "passes without a prompt": ({"passes": 2, "stop": ()}, "needs a prompt"),
    "passes and stops": ({"passes": 2, "prompt": lambda so_far: so_far.stream}, "no stop ids and no chunks"),
    "known codes of single ids": ({"known": lambda so_far: torch.zeros(1, 3)}, "known codes need a part"),
    "the channel of a codebook": ({"book_channel": "speaker"}, "book_channel is for a codebook that is written at once"),
}
RUNS = {
    "ids outside": ({"allowed": [[1, 9]]}, "allowed ids of 'unit' lie within 0 and 8"),
    "an unknown range": ({"modality": "units"}, "unknown vocabulary range 'units'"),
    "a stop id of another range": (
        {"part": part_of("delay"), "modality": "codec"}, "with codebooks a stop id lies in the range 'codec.0', 40 to 47"
    ),
    "no head for it": ({"part": part_of("parallel", 1), "modality": "loc", "stop": ()}, "no head for the codebook 'loc.0'"),
    "lengths": ({"length": Length(2, 3)}, "goes from 3 to 2 for prompt 0"),
    "short positions": ({"position": lambda so_far, n: torch.arange(2)}, "position is given for 2 tokens, but it may write 6"),
    "an empty prompt": ({"prompt": lambda so_far: Stream([])}, "must begin behind at least one token"),
    "at once without a length": (
        {"passes": 1, "stop": (), "prompt": lambda so_far: so_far.stream}, "what is written at once has an exact length"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_stages_that_cannot_be_are_told(fault):
    change, message = FAULTS[fault]
    with pytest.raises(RecipeError, match=f"stage 'units': .*{message}"):
        dataclasses.replace(UNITS, **change)


@pytest.mark.parametrize("fault", RUNS)
def test_stages_that_do_not_fit_are_told(tiny, fault):
    change, message = RUNS[fault]
    heads = {"language_model": {"type": "language_model"}, "books": {"type": "codebooks", "ranges": BOOKS}}
    model = tiny([ATTENTION], heads, {**SIZES, "loc.0": 4})
    with pytest.raises(RecipeError, match=message):
        generate_staged(model, prompts(3), [dataclasses.replace(UNITS, **change)])


def test_names_differ_and_no_prompts_are_no_results(plain):
    with pytest.raises(RecipeError, match="stages must have different names, but are units, units"):
        generate_staged(plain, prompts(3), [UNITS, UNITS])
    assert generate_staged(plain, [], [UNITS]) == []
    long = dataclasses.replace(nar(1, 1), prompt=lambda so_far: so_far.stream, length=Length.exactly(4))
    with pytest.raises(RecipeError, match="is to write 4 frames, but the codebooks before it have 6"):
        generate_staged(plain, prompts(3), [nar(0, None), long])
