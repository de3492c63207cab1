"""Generating and scoring against full forward passes, exhaustive search and slow versions of every filter."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from mmlm.base.errors import DataError, RecipeError
from mmlm.generation import Guidance, RangeGrammar, Sampling, TrieGrammar, generate, sample, score_options, stream
from mmlm.stream import Segment, Stream, pack

ATTENTION = {"type": "attention", "num_heads": 2, "num_kv_heads": 1}
MAMBA = {"type": "mamba2", "state_size": 4, "head_size": 8, "chunk_size": 3}
MOE = {"type": "moe", "num_experts": 3, "hidden": 8}
PATTERNS = {
    "attention": [ATTENTION],
    "window": [{**ATTENTION, "window": 2}, ATTENTION],
    "mamba2": [MAMBA],
    "hybrid": [{"mixer": ATTENTION, "feed_forward": MOE, "parallel": True}, MAMBA],
}


@pytest.fixture(params=PATTERNS)
def model(request, tiny):
    return sharp(tiny, PATTERNS[request.param])


@pytest.fixture
def small(tiny):
    """Four ids, so that all sequences can be tried."""
    return sharp(tiny, [ATTENTION], vocabulary={"text": 4})


def sharp(tiny, pattern, vocabulary=None, **head):
    """A model whose scores lie far enough apart that no two are nearly equal, and which does not just repeat its last token."""
    model = tiny(pattern, {"language_model": {"type": "language_model", "tied": False, **head}}, vocabulary)
    with torch.no_grad():
        model.heads["language_model"].weight.mul_(8)
    return model.requires_grad_(False)


def ids(length, seed=0, high=20):
    return torch.randint(0, high, (length,), generator=torch.Generator().manual_seed(1000 * seed + length))


def log_of(model, prompt, more):
    """Log-probabilities [tokens, v] before each of `more`, from one full pass."""
    sequence = torch.cat([prompt, torch.tensor(more, dtype=torch.long)])
    return model.logits(sequence[None])[0, len(prompt) - 1 :].log_softmax(-1)


# sampling


def slow_choice(scores, written, sampling, draw):
    """The filters, in order, as loops over a list."""
    scores = list(scores.tolist())
    for index in set(written):
        scores[index] = scores[index] / sampling.repetition_penalty if scores[index] > 0 else scores[index] * sampling.repetition_penalty
    if sampling.temperature == 0:
        return max(range(len(scores)), key=lambda i: scores[i])
    scores = [score / sampling.temperature for score in scores]
    kept = set(range(len(scores)))

    def chances():
        whole = sum(math.exp(scores[i]) for i in kept)
        return {i: math.exp(scores[i]) / whole for i in kept}

    if sampling.top_k is not None:
        kept = set(sorted(kept, key=lambda i: -scores[i])[: sampling.top_k])
    if sampling.top_p is not None:
        held, some = 0.0, set()
        for index, chance in sorted(chances().items(), key=lambda item: -item[1]):
            if held < sampling.top_p:
                some.add(index)
            held += chance
        kept = some
    if sampling.min_p is not None:
        found = chances()
        kept = {i for i in kept if found[i] >= sampling.min_p * max(found.values())}
    found = chances()
    return int(torch.multinomial(torch.tensor([found.get(i, 0.0) for i in range(len(scores))], dtype=torch.float64), 1, generator=draw))


FILTERS = {
    "repetition_penalty": [1.0, 1.7], "temperature": [0.0, 0.7, 1.5], "top_k": [None, 1, 4, 99], "top_p": [None, 0.3, 0.9, 1.0],
    "min_p": [None, 0.2, 1.0],
}  # fmt: skip


def test_every_combination_of_filters_is_its_slow_version():
    g, tried = torch.Generator().manual_seed(0), 0
    for values in itertools.product(*FILTERS.values()):
        sampling = Sampling(**dict(zip(FILTERS, values, strict=True)))
        for trial in range(3):
            scores = 2 * torch.randn(12, generator=g, dtype=torch.float64)
            written = torch.randint(0, 12, (trial,), generator=g).tolist()
            draws = [torch.Generator().manual_seed(tried) for _ in range(2)]
            before = scores.clone()
            assert sample(scores, written, sampling, draws[0]) == slow_choice(scores, written, sampling, draws[1]), sampling
            assert torch.equal(scores, before)
            tried += 1
    assert tried == 3 * 288


def test_the_repetition_penalty_makes_written_tokens_less_likely_whatever_their_sign():
    sampling = Sampling(repetition_penalty=2.0)
    for scores in ([-1.0, -1.5, -3.0], [3.0, 2.0, -1.0]):
        assert [sample(torch.tensor(scores), written, sampling, None) for written in ([], [0], [0, 0], [2])] == [0, 1, 1, 0]


def test_draws_follow_the_chances():
    scores, draw = torch.tensor([1.0, 0.0, -1.0, 2.0]), torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([sample(scores, [], Sampling(temperature=2.0), draw) for _ in range(1500)]), minlength=4)
    torch.testing.assert_close(counts / 1500, (scores / 2).softmax(-1), rtol=0, atol=0.05)


# generating


def test_greedy_is_the_best_token_of_full_passes_for_prompts_of_different_lengths(model):
    prompts = [ids(3), ids(9), ids(1), ids(6)]
    for prompt, found in zip(prompts, generate(model, prompts, max_new_tokens=5), strict=True):
        log = log_of(model, prompt, found.ids)
        assert found.ids == log[:-1].argmax(-1).tolist() and len(found.ids) == 5 and not found.finished
        assert found.score == pytest.approx(sum(float(log[at, index]) for at, index in enumerate(found.ids)), abs=1e-9)


ALL = Sampling(temperature=1.3, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.2)


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), ALL], ids=["plain", "filters"])
def test_drawn_sequences_do_not_depend_on_the_rest_of_the_batch(model, sampling):
    prompts = [ids(4), ids(8), ids(2)]
    together = generate(model, prompts, max_new_tokens=6, sampling=sampling, seed=3)
    assert together[0] == near(generate(model, prompts[:1], max_new_tokens=6, sampling=sampling, seed=3)[0])
    others = generate(model, [ids(11, 5), ids(1, 5), prompts[2]], max_new_tokens=6, sampling=sampling, seed=3)
    assert together[2] == near(others[2]) and others[0] != near(together[0])
    assert together == [near(one) for one in generate(model, prompts, max_new_tokens=6, sampling=sampling, seed=3)]
    assert generate(model, prompts, max_new_tokens=6, sampling=sampling, seed=4) != together


class near:  # noqa: N801
    """Equal to a result with the same ids and nearly the same score."""

    def __init__(self, found):
        self.found = found

    def __eq__(self, other):
        return (self.found.ids, self.found.finished) == (other.ids, other.finished) and abs(self.found.score - other.score) < 1e-9


def test_sequences_end_with_a_stop_id_each_at_its_own_time(model):
    prompts, sampling = [ids(4), ids(7), ids(2), ids(5)], Sampling(temperature=2.0)
    free = generate(model, prompts, max_new_tokens=12, sampling=sampling, seed=1)
    stop = [free[0].ids[2], free[1].ids[5]]
    for one, found in zip(free, generate(model, prompts, max_new_tokens=12, sampling=sampling, seed=1, stop=stop), strict=True):
        end = next((at for at, index in enumerate(one.ids) if index in stop), None)
        assert found.ids == (one.ids if end is None else one.ids[: end + 1]) and found.finished == (end is not None)
    with pytest.raises(RecipeError, match="max_new_tokens must be at least 1"):
        generate(model, prompts, max_new_tokens=0)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)], ids=["greedy", "drawn"])
def test_prompts_are_read_once(model, sampling, monkeypatch):
    lengths, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda batch, cache=None: lengths.append(batch.ids.shape[1]) or hidden(batch, cache))
    generate(model, [ids(5), ids(9)], max_new_tokens=3, sampling=sampling)
    assert lengths == [9, 1, 1]


def test_streaming_tells_what_generate_returns(model):
    prompts, options = [ids(3), ids(6)], {"max_new_tokens": 8, "sampling": Sampling(temperature=2.0), "seed": 2, "stop": [3, 5, 8, 13]}
    steps = list(stream(model, prompts, **options))
    for number, found in enumerate(generate(model, prompts, **options)):
        mine = [step[number] for step in steps if number in step]
        assert [index for index, _, _ in mine] == found.ids and sum(score for _, score, _ in mine) == pytest.approx(found.score)
        assert mine[-1][2] == found.finished and not any(ended for _, _, ended in mine[:-1])
    assert len(steps) == max(len(found.ids) for found in generate(model, prompts, **options))


@pytest.mark.parametrize("scale", [0.0, 1.5, -0.5])
def test_guidance_mixes_the_scores_of_two_caches(model, scale):
    prompts, free = [ids(5), ids(3)], [ids(2, 9), ids(7, 9)]
    found = generate(model, prompts, max_new_tokens=4, guidance=[Guidance(free, 1 + scale)])
    for prompt, other, one in zip(prompts, free, found, strict=True):
        score = 0.0
        for at, index in enumerate(one.ids):
            written = torch.tensor(one.ids[:at], dtype=torch.long)
            with_prompt, without = (model.logits(torch.cat([p, written])[None])[0, -1] for p in (prompt, other))
            mixed = (1 + scale) * with_prompt - scale * without
            assert index == int(mixed.argmax())
            score += float(mixed.log_softmax(-1)[index])
        assert one.score == pytest.approx(score, abs=1e-9)


def test_guided_sequences_keep_their_own_cache_when_others_end(model):
    prompts, free, sampling = [ids(5), ids(3), ids(4)], [ids(2, 9), ids(7, 9), ids(1, 9)], Sampling(temperature=1.5)
    whole = generate(model, prompts, max_new_tokens=8, guidance=[Guidance(free, 2.0)], sampling=sampling, seed=1)
    stop = [whole[0].ids[1]]
    for one, found in zip(
        whole, generate(model, prompts, max_new_tokens=8, guidance=[Guidance(free, 2.0)], sampling=sampling, seed=1, stop=stop), strict=True
    ):
        end = one.ids.index(stop[0]) + 1 if stop[0] in one.ids else 8
        assert found.ids == one.ids[:end]


def test_ids_outside_the_ranges_of_the_head_are_never_written(tiny):
    model = sharp(tiny, [ATTENTION], ranges=["label"])
    for options in ({}, {"guidance": [Guidance([ids(2)], 3.0)]}):
        for temperature in (0.0, 3.0):
            found = generate(model, [ids(4)], max_new_tokens=20, sampling=Sampling(temperature=temperature), **options)[0]
            assert set(found.ids) <= set(range(20, 25)) and math.isfinite(found.score)


# beams


@pytest.mark.parametrize("stop", [(), (3,), (0, 3), (0, 1, 3)])
def test_wide_beams_find_what_an_exhaustive_search_finds(small, stop):
    every = [torch.tensor(list(itertools.product(range(4), repeat=length))) for length in range(1, 5)]
    for seed, penalty in itertools.product(range(3), (0.0, 1.0, 2.0)):
        prompt, best = ids(3, seed, high=4), None
        for sequences in every:
            length = sequences.shape[1]
            whole = torch.cat([prompt.expand(len(sequences), -1), sequences], dim=1)
            log = small.logits(whole)[:, len(prompt) - 1 : -1].log_softmax(-1).gather(2, sequences[..., None]).sum((1, 2))
            for sequence, score in zip(sequences.tolist(), log.tolist(), strict=True):
                ended = sequence[-1] in stop
                if any(index in stop for index in sequence[:-1]) or not (ended or (length == 4 and not stop)):
                    continue
                if best is None or score / length**penalty > best[0]:
                    best = (score / length**penalty, sequence, score)
        found = generate(small, [prompt], max_new_tokens=4, sampling=Sampling(num_beams=64, length_penalty=penalty), stop=stop)[0]
        assert found.ids == best[1] and found.score == pytest.approx(best[2], abs=1e-9) and found.finished == bool(stop)


def test_beams_of_a_batch_are_as_alone_and_more_beams_are_not_worse(model):
    prompts = [ids(4), ids(9)]
    together = generate(model, prompts, max_new_tokens=5, sampling=Sampling(num_beams=3))
    alone = [generate(model, [prompt], max_new_tokens=5, sampling=Sampling(num_beams=3))[0] for prompt in prompts]
    assert together == [near(one) for one in alone]
    greedy = generate(model, prompts, max_new_tokens=5)
    wider = generate(model, prompts, max_new_tokens=5, sampling=Sampling(num_beams=39))
    for wide, narrow, prompt in zip(wider, greedy, prompts, strict=True):
        assert wide.score >= narrow.score - 1e-9
        log = log_of(model, prompt, wide.ids)
        assert wide.score == pytest.approx(sum(float(log[at, index]) for at, index in enumerate(wide.ids)), abs=1e-9)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_last_token_needs_no_place_of_its_own(tiny, num_beams):
    model = tiny([{**ATTENTION, "rope": None}], learned_positions=8)
    (found,) = generate(model, [ids(6)], max_new_tokens=3, sampling=Sampling(num_beams=num_beams))
    assert len(found.ids) == 3
    with pytest.raises(RecipeError, match="position 8 is beyond the 8 learned positions"):
        generate(model, [ids(6)], max_new_tokens=4, sampling=Sampling(num_beams=num_beams))


def test_many_stop_ids_do_not_crowd_out_the_beams(tiny):
    model = sharp(tiny, [ATTENTION])
    stop = model.logits(ids(4)[None])[0, -1].topk(10).indices.tolist()
    seen = []

    class Watched:
        def allowed(self, written):
            seen.append(tuple(written))
            return range(39)

    generate(model, [ids(4)], max_new_tokens=2, sampling=Sampling(num_beams=2), stop=stop, grammar=Watched())
    assert len({written for written in seen if len(written) == 1 and written[0] not in stop}) == 2


# grammars


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=5.0), Sampling(num_beams=3)], ids=["greedy", "drawn", "beams"])
def test_grammars_are_never_left_and_end(model, sampling):
    sequences = [[1, 2, 3], [1, 5], [7], [1, 2, 4, 4]]
    for found in generate(model, [ids(3), ids(8), ids(2)], sampling=sampling, grammar=TrieGrammar(sequences), max_new_tokens=9):
        assert found.ids in sequences and found.finished
    grammar = RangeGrammar(range(20, 25), stop=(7, 21))
    for found in generate(model, [ids(3), ids(8), ids(2)], sampling=sampling, grammar=grammar, max_new_tokens=30):
        assert set(found.ids[:-1]) <= {20, 22, 23, 24} and (found.ids[-1] in (7, 21)) == found.finished
        assert set(found.ids) <= {7, *range(20, 25)} and (found.finished or len(found.ids) == 30)


def test_the_score_under_a_grammar_is_that_of_the_free_model(model):
    for sampling in (Sampling(), Sampling(num_beams=5)):
        found = generate(model, [ids(5)], sampling=sampling, grammar=TrieGrammar([[1, 2], [3, 4]]), max_new_tokens=3)[0]
        log = log_of(model, ids(5), found.ids)
        assert found.score == pytest.approx(float(log[0, found.ids[0]] + log[1, found.ids[1]]), abs=1e-9)


def test_a_grammar_that_allows_nothing_ends_at_once(model):
    class Nothing:
        def allowed(self, written):
            return []

    for sampling in (Sampling(), Sampling(num_beams=2)):
        found = generate(model, [ids(3)], grammar=Nothing(), sampling=sampling, max_new_tokens=3)[0]
        assert (found.ids, found.score, found.finished) == ([], 0.0, True)


def test_sequences_whose_end_a_trie_cannot_tell_are_refused():
    with pytest.raises(RecipeError, match=r"cannot tell where \[1, 2\] ends, because it begins another sequence; add an end token"):
        TrieGrammar([[1, 2, 3], [1, 2]])
    with pytest.raises(RecipeError, match="no empty sequence"):
        TrieGrammar([[1], []])
    assert TrieGrammar([[1, 2], [1, 2], [3]]).allowed([1]) == [2]


# options


@pytest.mark.parametrize(("prefixed", "end", "at_once"), [(False, None, 256), (False, 19, 1), (True, 19, 256), (True, None, 2)])
@pytest.mark.parametrize("length", ["sum", "mean", "first"])
def test_options_are_scored_as_full_passes_score_them(model, length, end, prefixed, at_once):
    prompts, prefix = [ids(3), ids(7), ids(1)], ids(5, 3)
    options = [[torch.tensor(o) for o in some] for some in ([[1], [2, 3], [4, 4, 4]], [[5, 1]], [[6, 2], [7]])]
    prior = [torch.arange(float(len(some))) for some in options]
    given = {"length": length, "end_token": end, "prefix": prefix if prefixed else None, "options_at_once": at_once}
    found = score_options(model, prompts, options, **given)
    less = score_options(model, prompts, options, **given, prior=prior)
    for prompt, some, scores, fewer, before in zip(prompts, options, found, less, prior, strict=True):
        for option, score in zip(some, scores.tolist(), strict=True):
            written = [*option.tolist(), *([] if end is None else [end])]
            log = log_of(model, torch.cat([prefix, prompt]) if prefixed else prompt, written)
            each = [float(log[at, index]) for at, index in enumerate(written)]
            wanted = {"sum": sum(each), "mean": sum(each) / len(each), "first": each[0]}[length]
            assert score == pytest.approx(wanted, abs=1e-9)
        assert torch.equal(fewer, scores - before)


# prompts that are streams


def next_of(model, prompt, written):
    """The best id after a stream and what was written since, from one full pass."""
    names = [model.vocabulary.name_of(index) for index in written]
    more = [Segment(name, model.vocabulary.to_local(name, torch.tensor([i]))) for name, i in zip(names, written, strict=True)]
    batch = pack([dataclasses.replace(prompt, segments=[*prompt.segments, *more])], model.vocabulary)
    return int(model.heads["language_model"].predict(model.hidden(batch)[0][0, -1]).argmax())


def test_prompts_with_features_channels_and_a_prefix_in_both_directions_go_on(tiny):
    model = sharp(tiny, [ATTENTION, {**ATTENTION, "window": 4}])
    g = torch.Generator().manual_seed(0)

    def prompt(size):
        cells = Segment("cell", features=torch.randn(size, 3, generator=g, dtype=torch.float64), mutual=1)
        return Stream([cells, Segment("text", ids(size + 1), channels={"speaker": torch.full((size + 1,), 2)})])

    prompts = [prompt(2), prompt(5)]
    for one, found in zip(prompts, generate(model, prompts, max_new_tokens=4), strict=True):
        for at, index in enumerate(found.ids):
            assert index == next_of(model, one, found.ids[:at])


def test_positions_of_several_axes_go_on_together(tiny):
    model = sharp(tiny, [{**ATTENTION, "rope": {"sections": [2, 1, 1]}}])
    axes, grid = ("time", "row", "column"), torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
    prompts = [Stream([Segment("label", ids(4, high=5), position=grid), Segment("text", ids(n))], axes=axes) for n in (2, 5)]
    for one, found in zip(prompts, generate(model, prompts, max_new_tokens=4), strict=True):
        for at, index in enumerate(found.ids):
            assert index == next_of(model, one, found.ids[:at])


@pytest.mark.parametrize("last", [[9, 3, 4], [2, 2, 2], [0, 7, 1]])
def test_what_is_written_takes_the_positions_that_a_further_segment_would(tiny, last):
    model = sharp(tiny, [ATTENTION])
    points = Segment("label", ids(3, high=5), position=torch.tensor(last)[:, None])
    prompts = [Stream([Segment("text", ids(4)), points]), Stream([points, Segment("text", ids(2))])]
    for one, found in zip(prompts, generate(model, prompts, max_new_tokens=3), strict=True):
        score, positions = 0.0, []
        for at, index in enumerate(found.ids):
            names = [model.vocabulary.name_of(i) for i in found.ids[:at]]
            more = [Segment(n, model.vocabulary.to_local(n, torch.tensor([i]))) for n, i in zip(names, found.ids, strict=False)]
            batch = pack([Stream([*one.segments, *more])], model.vocabulary)
            positions = batch.layout.position[0, :, 0].tolist()
            score += float(model.heads["language_model"].predict(model.hidden(batch)[0][0, -1]).log_softmax(-1)[index])
        assert found.score == pytest.approx(score, abs=1e-6) and len(positions) == len(one) + 2


def test_no_prompts_have_no_scores(model):
    assert score_options(model, [], []) == []


# faults


FAULTS = {
    "empty prompt": (lambda m: generate(m, [ids(1)[:0]]), RecipeError, "at least one token, but has shape \\(0,\\)"),
    "prompt of two axes": (lambda m: generate(m, [torch.zeros(1, 3, dtype=torch.long)]), RecipeError, "has shape \\(1, 3\\)"),
    "no prompts": (lambda m: generate(m, []), DataError, "nothing to pack"),
    "an id of no range": (lambda m: generate(m, [torch.tensor([99])]), DataError, "id 99 lies in no range; the vocabulary holds 0 to 38"),
    "no options": (lambda m: score_options(m, [ids(2)], [[]]), RecipeError, "at least one option for every prompt"),
    "an empty option": (lambda m: score_options(m, [ids(2)], [[ids(1), ids(1)[:0]]]), RecipeError, "no option may be empty"),
    "fewer options": (
        lambda m: score_options(m, [ids(2)] * 2, [[ids(1)]]), RecipeError, "needs options for each of the 2 prompts, but has 1"
    ),
    "fewer priors": (
        lambda m: score_options(m, [ids(2)] * 2, [[ids(1)]] * 2, prior=[torch.zeros(1)]), RecipeError, "needs prior for each of the 2"
    ),
    "an empty prompt behind a prefix": (
        lambda m: score_options(m, [ids(2), ids(1)[:0]], [[ids(1)]] * 2, prefix=ids(3)), RecipeError, "at least one token, but has shape"
    ),
    "an empty stream behind a prefix": (
        lambda m: score_options(m, [Stream([])], [[ids(1)]], prefix=ids(3)), RecipeError, "behind a prefix must hold at least one token"
    ),
    "equal first tokens": (
        lambda m: score_options(m, [ids(2)], [[torch.tensor([1, 2]), torch.tensor([1, 3])]], length="first"),
        RecipeError,
        "'first' needs options whose first tokens differ",
    ),
    "beams and a temperature": (
        lambda m: generate(m, [ids(2)], sampling=Sampling(num_beams=2, temperature=1.0)), RecipeError, "excludes a temperature"
    ),
    "beams and a filter": (
        lambda m: generate(m, [ids(2)], sampling=Sampling(num_beams=2, top_k=3)), RecipeError, "excludes a temperature, filters"
    ),
    "beams and guidance": (
        lambda m: generate(m, [ids(2)], sampling=Sampling(num_beams=2), guidance=[Guidance([ids(1)], 2.0)]), RecipeError, "and guidance"
    ),
    "streamed beams": (
        lambda m: next(stream(m, [ids(2)], sampling=Sampling(num_beams=2))), RecipeError, "beams cannot be streamed"
    ),
    "guidance for fewer": (
        lambda m: generate(m, [ids(2)] * 2, guidance=[Guidance([ids(1)], 2.0)]),
        RecipeError,
        "one unconditional prompt a sequence, but has 1 for 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_told(tiny, fault):
    call, error, message = FAULTS[fault]
    with pytest.raises(error, match=message):
        call(tiny([ATTENTION]))


def test_a_model_that_looks_ahead_cannot_write(tiny):
    with pytest.raises(RecipeError, match="causal: false sees later tokens and cannot go token by token"):
        generate(tiny([{**ATTENTION, "causal": False}]), [ids(3)])


def test_each_id_has_its_log_probability(model) -> None:
    prompts = [torch.tensor([3, 4, 5]), torch.tensor([6])]
    whole = generate(model, prompts, max_new_tokens=6, precision="fp32")
    held = generate(model, prompts, max_new_tokens=6, grammar=RangeGrammar(range(len(model.vocabulary))), precision="fp32")
    for one, other in zip(whole, held, strict=True):
        assert one.ids == other.ids and len(one.logs) == 6
        assert one.logs == pytest.approx(other.logs, abs=1e-4) and one.score == pytest.approx(sum(other.logs), abs=1e-4)
