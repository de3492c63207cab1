"""The order of samples and their randomness are pure functions of seed and position."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections import Counter

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.training.loader import Feed, Plan, Plans
from mmlm.training.order import items, permuted, sample_rng


def plan(**changes):
    options = {
        "num_items": 11,
        "seed": 3,
        "batch_size": 4,
        "micro_batch_size": 4,
        "first": 0,
        "last": 9,
        "position": 0,
        "rank": 0,
        "world": 1,
    }
    return Plan(**{**options, **changes})


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_every_epoch_shows_every_sample_once(size):
    for epoch in range(3):
        found = items(epoch * size, (epoch + 1) * size, num_items=size, seed=1)
        assert sorted(index for _, index in found) == list(range(size)) and {number for number, _ in found} == {epoch}


def test_a_part_of_the_order_is_that_part_of_the_whole():
    whole = items(0, 100, num_items=11, seed=7)
    for start, stop in itertools.pairwise([0, 1, 5, 22, 23, 60, 100]):
        assert items(start, stop, num_items=11, seed=7) == whole[start:stop]


def test_epochs_and_seeds_differ():
    one, two = items(0, 200, num_items=100, seed=1), items(0, 100, num_items=100, seed=2)
    assert [index for _, index in one[:100]] != [index for _, index in one[100:]] and one[:100] != two


def test_the_order_stays_what_it_was():
    """A change here would change every run that is resumed."""
    assert items(0, 8, num_items=10, seed=0) == [(0, index) for index in FIRST]
    assert sample_rng(1, 2, 3).integers(0, 1000, 4).tolist() == DRAWN


FIRST = [2, 9, 7, 1, 0, 3, 5, 8]
DRAWN = [682, 331, 897, 45]


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_a_few_samples_are_about_equally_likely(size):
    count = 6000
    found = Counter(tuple(permuted(np.arange(size), size, key).tolist()) for key in range(count))
    number = len(list(itertools.permutations(range(size))))
    expected = count / number
    assert len(found) == number
    chi = sum((seen - expected) ** 2 / expected for seen in found.values())
    assert chi < number + 5 * (2 * number) ** 0.5


def test_places_and_neighbours_of_many_samples_are_spread_evenly():
    size, keys = 1000, 300
    firsts = np.array([permuted(np.arange(2), size, key) for key in range(keys)])
    assert abs(firsts[:, 0].mean() / size - 0.5) < 0.06 and len(set(firsts[:, 0].tolist())) > 220
    assert abs(np.corrcoef(firsts.T)[0, 1]) < 0.2
    orders = [permuted(np.arange(size), size, key) for key in range(keys)]
    for other in (lambda order: np.roll(order, 1), lambda order: np.arange(size)):
        correlations = [np.corrcoef(order, other(order))[0, 1] for order in orders]
        assert 0.85 < np.std(correlations) * size**0.5 < 1.15


def test_a_virtual_length_costs_nothing_and_stays_inside():
    size = 2**62 + 12345
    found = items(10**17, 10**17 + 64, num_items=size, seed=0)
    indices = [index for _, index in found]
    assert len(set(indices)) == 64 and all(0 <= index < size for index in indices)
    assert min(indices) < size / 4 and max(indices) > 3 * size / 4


def test_all_processes_together_see_the_samples_of_one():
    whole = [item for step in range(9) for part in plan().of_step(step) for item in part]
    for world in (2, 4):
        for step in range(9):
            parts = [plan(rank=rank, world=world, micro_batch_size=2).of_step(step) for rank in range(world)]
            together = [item for part in parts for micro in part for item in micro]
            assert sorted(together) == sorted(whole[4 * step : 4 * step + 4])


def test_a_plan_that_starts_later_goes_on_where_the_first_stopped():
    whole = list(plan(micro_batch_size=3))
    assert whole[10:] == list(plan(micro_batch_size=3, first=5, position=20))
    assert [len(part) for part in whole[:4]] == [3, 1, 3, 1]


def test_a_batch_larger_than_the_data_takes_samples_again():
    found = [index for _, index in plan(num_items=3, batch_size=8, micro_batch_size=8).of_step(0)[0]]
    assert sorted(found[:3]) == sorted(found[3:6]) == [0, 1, 2] and len(found) == 8


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_batches_that_none_gives(toy, workers):
    alone = Feed([toy.ToySamples()], Plans([plan(micro_batch_size=3)]), 0)
    feed = Feed([toy.ToySamples()], Plans([plan(micro_batch_size=3)]), workers)
    for _ in range(9):
        one, two = alone.step(), feed.step()
        assert len(one) == len(two) == 2
        for a, b in zip(one, two, strict=True):
            assert a.x.equal(b.x) and a.y.equal(b.y) and a.weight.equal(b.weight)
    assert feed.waited > 0
    feed.close()
    assert not multiprocessing.active_children()


def test_a_sample_has_the_same_randomness_in_every_place_and_another_in_every_epoch():
    draws = {(seed, epoch, index): sample_rng(seed, epoch, index).random() for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)}
    assert len(set(draws.values())) == 8
    assert all(sample_rng(*key).random() == value for key, value in draws.items())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_sample_arrives_with_its_own_message(workers):
    class Broken:
        fingerprint = "broken"

        def __len__(self):
            return 3

        def sample(self, index, rng):
            raise DataError(f"data.jsonl, line {index}: no such file.")

        def collate(self, items):
            return items

    feed = Feed([Broken()], Plans([plan(num_items=3)]), workers)
    with pytest.raises(DataError, match=r"^data.jsonl, line \d: no such file.$"):
        feed.step()
    feed.close()
    assert not multiprocessing.active_children()


def test_workers_pass_over_a_signal_to_the_group_and_heed_one_of_their_parent(toy):
    feed = Feed([toy.ToySamples()], Plans([plan(micro_batch_size=3)]), 1)
    feed.step()
    (worker,) = multiprocessing.active_children()
    sender = multiprocessing.get_context("fork").Process(target=os.kill, args=(worker.pid, signal.SIGTERM))
    sender.start()
    sender.join()
    feed.step()
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    feed.close()


def test_a_step_of_several_parts_holds_micro_batches_of_each_from_where_it_stands():
    one, other = plan(batch_size=4, micro_batch_size=3), plan(num_items=1000, seed=9, batch_size=2, micro_batch_size=2, position=40)
    both = Plans([one, other])
    assert both.micro_batches == 3
    for step in (0, 5):
        found = both.of_step(step)
        assert [number for number, _ in found] == [0, 0, 1]
        assert [some for number, some in found if number == 0] == one.of_step(step)
        assert found[2][1] == items(40 + 2 * step, 42 + 2 * step, num_items=1000, seed=9)
    assert list(both) == [each for step in range(9) for each in both.of_step(step)]
