"""Every generator of labelled sequences against a slow definition of its own, and what all of them keep."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import check
from mmlm.data.config import SOURCES, ProbeConfig
from mmlm.data.probes.base import NONE
from mmlm.recipe import Recipe
from mmlm.training.order import evaluation_rng, sample_rng, validation_rng

SETTINGS = {
    "recall": [{}, {"length": 24, "num_pairs": 8, "num_tokens": 18}],
    "induction": [{}, {"length": 4, "num_tokens": 2}],
    "copying": [{}, {"length": 6, "num_values": 6, "num_tokens": 3}],
    "counting": [{}, {"modulus": 5, "length": 9}],
    "permutations": [{}, {"size": 5, "length": 7}, {"size": 4, "swaps_only": True}],
    "needle": [{}, {"length": 20, "num_needles": 4}],
    "phonebook": [{}, {"asked_first": True, "num_entries": 3, "name_size": 1, "number_size": 2}],
}
CASES = [(name, setting) for name, settings in SETTINGS.items() for setting in settings]


def source(name: str, **settings):
    return SOURCES.entries[name].model_validate({"type": name, **settings}).build()


def slow(name: str, config, tokens: list[int]) -> dict[int, int]:
    """The label at each place that has one, found from the tokens alone."""
    last = len(tokens) - 1
    if name == "recall":
        pairs = {tokens[2 * i]: tokens[2 * i + 1] for i in range(config.num_pairs)}
        assert len(pairs) == config.num_pairs and all(0 < key < config.num_tokens // 2 <= value for key, value in pairs.items())
        return {at: pairs[tokens[at]] for at in range(2 * config.num_pairs, last + 1) if tokens[at]}
    if name == "induction":
        assert tokens.count(0) == 2 and tokens[-1] == 0
        return {last: tokens[tokens.index(0) + 1]}
    if name == "copying":
        values = [token for token in tokens[: config.length] if token]
        assert len(values) == config.num_values and tokens[config.length :] == [1] * config.num_values and min(values) >= 2
        return {config.length + place: value for place, value in enumerate(values)}
    if name == "counting":
        return {at: sum(1 for bit in tokens[: at + 1] if bit) % config.modulus for at in range(last + 1)}
    if name == "permutations":
        known = list(permutations("abcde"[: config.size]))
        things, found = known[0], {}
        for at, token in enumerate(tokens):
            places = ["abcde".index(letter) for letter in known[token]]
            assert not config.swaps_only or sum(place != own for own, place in enumerate(places)) == 2
            things = tuple(things[place] for place in places)
            found[at] = known.index(things)
        return found
    if name == "needle":
        values = {tokens[at + 1]: tokens[at + 2] for at, token in enumerate(tokens) if token == 0}
        asked = [at + 1 for at, token in enumerate(tokens) if token == 1]
        assert len(values) == len(asked) == config.num_needles and asked[-1] == last and len({tokens[at] for at in asked}) == len(asked)
        return {at: values[tokens[at]] for at in asked}
    line = config.name_size + config.number_size
    said = len(tokens) - config.number_size
    if config.asked_first:
        question, book = tokens[1 : 1 + config.name_size], tokens[1 + config.name_size :]
        assert tokens[0] == tokens[said] == 0
    else:
        question, book = tokens[said + 1 - config.name_size : said + 1], tokens
        assert tokens[config.num_entries * line] == 0
    lines = [book[i * line : (i + 1) * line] for i in range(config.num_entries)]
    numbers = {tuple(each[: config.name_size]): each[config.name_size :] for each in lines}
    assert len(numbers) == config.num_entries and tokens[said + 1 :] == numbers[tuple(question)][:-1]
    return {said + place: digit for place, digit in enumerate(numbers[tuple(question)])}


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)])
def test_labels_are_those_of_the_slow_definition(name, settings):
    probe = source(name, **settings)
    seen = set()
    for number in range(200):
        found = probe.draw(np.random.default_rng(number), None)
        wanted = slow(name, probe.config, found.tokens.tolist())
        assert dict(zip(found.asked.tolist(), found.labels[found.asked].tolist(), strict=True)) == wanted
        assert found.tokens.dtype == found.labels.dtype == np.int64 and found.tokens.shape == found.labels.shape == found.reach.shape
        assert found.tokens.min() >= 0 and max(found.tokens.max(), found.labels.max()) < probe.config.vocabulary_size
        again = probe.draw(np.random.default_rng(number), None)
        assert np.array_equal(found.tokens, again.tokens) and np.array_equal(found.labels, again.labels)
        seen.add(found.tokens.tobytes())
        at = found.asked
        if name in ("counting", "permutations") or settings.get("asked_first"):
            assert np.array_equal(found.reach[at], at)
        else:
            assert np.array_equal(found.tokens[at - found.reach[at]], found.labels[at]) and (found.reach[at] > 0).all()
    assert len(seen) > (100 if name != "induction" or not settings else 1)


def test_every_probe_is_tested_here():
    assert {name for name, config in SOURCES.entries.items() if issubclass(config, ProbeConfig)} == set(SETTINGS)


def test_early_labels_can_be_left_out():
    whole, late = (source("counting", length=12, scored_from=start).draw(np.random.default_rng(3), None) for start in (0, 8))
    assert np.array_equal(whole.tokens, late.tokens) and np.array_equal(late.asked, np.arange(8, 12))
    assert np.array_equal(whole.labels[8:], late.labels[8:]) and (late.labels[:8] == NONE).all()
    with pytest.raises(DataError, match="scored_from 12 leaves no label in a sequence of 12 tokens"):
        source("counting", length=12, scored_from=12).draw(np.random.default_rng(3), None)


def test_training_validation_and_test_samples_come_from_generators_of_their_own():
    probe = source("counting", length=64)
    drawn = [
        probe.draw(rng, None).tokens.tobytes()
        for number in range(50)
        for rng in (sample_rng(0, 0, number), validation_rng(0, number), evaluation_rng(0, 0, number), evaluation_rng(0, 1, number))
    ]
    assert len(set(drawn)) == 200
    again = probe.draw(sample_rng(0, 0, 7), None).tokens.tobytes()
    assert drawn[4 * 7] == again


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"type": "recall", "length": 20}, "length (20) must be at least 3 times num_pairs (8)"),
        ({"type": "recall", "num_tokens": 16}, "num_pairs (8) must be below the number of keys (7)"),
        ({"type": "copying", "length": 4}, "num_values (8) must be at most length (4)"),
        ({"type": "needle", "num_needles": 30}, "num_needles (30) must be at most num_keys (16)"),
        ({"type": "needle", "num_needles": 10, "length": 40}, "length (40) must be at least 5 times num_needles (10)"),
        ({"type": "phonebook", "num_names": 2, "num_entries": 9}, "num_entries (9) must be at most the number of names (4)"),
    ],
)
def test_settings_that_do_not_fit_together_are_told(settings, told):
    with pytest.raises(RecipeError) as error:
        check(SOURCES.entries[settings["type"]], settings, "source")
    assert told in str(error.value)


def test_a_source_of_another_kind_than_the_task_reads_is_told_with_those_that_fit():
    head = {"schema": 1, "name": "x"}
    with pytest.raises(RecipeError) as error:
        Recipe.read({**head, "task": "labels", "data": {"train": ["counting"], "test": ["real_tables", "recall"]}})
    assert "data.test.0: 'real_tables' gives tables, but the task reads labels: copying, counting, induction" in str(error.value)
    with pytest.raises(RecipeError, match="data.train.0: 'real_tables' gives tables, but the task reads labels"):
        Recipe.read({**head, "task": "labels"})
    with pytest.raises(RecipeError, match="evaluate: has no effect: the task 'labels' is measured on data.test"):
        Recipe.read({**head, "task": "labels", "data": {"train": ["counting"]}, "evaluate": {"seeds": 2}})
    with pytest.raises(RecipeError, match="data.test: has no effect: evaluate names the tables that are measured"):
        Recipe.read({**head, "task": "tabular", "data": {"test": ["real_tables"]}})
    assert SOURCES.entries["real_tables"]().gives == "tables"
