"""Learning rates follow progress alone."""

from __future__ import annotations

import math

import pytest

from mmlm.training.config import SCHEDULES, TrainConfig
from mmlm.training.schedules import learning_rate

ALL = ["constant", "cosine", "inverse_sqrt", "linear", "wsd"]


def rates(steps=100, **options):
    config = TrainConfig(steps=steps, lr=1.0, **options)
    return [learning_rate(config, step) for step in range(steps)]


def test_every_schedule_is_tried():
    assert sorted(SCHEDULES.entries) == ALL


@pytest.mark.parametrize("name", ALL)
def test_warmup_rises_in_equal_parts_to_the_full_rate(name):
    found = rates(schedule=name, warmup=0.1)
    assert found[:9] == pytest.approx([step / 10 for step in range(1, 10)])
    assert found[9] == pytest.approx(1.0) and max(found) == pytest.approx(1.0)
    assert found == pytest.approx(rates(schedule=name, warmup=10))


@pytest.mark.parametrize("name", ALL)
def test_after_warmup_the_rate_never_rises(name):
    found = rates(schedule=name, warmup=0.1)
    assert all(one >= two - 1e-12 for one, two in zip(found[9:], found[10:], strict=False))


@pytest.mark.parametrize(
    ("options", "step", "expected"),
    [
        ({"schedule": "constant"}, 99, 1.0),
        ({"schedule": "linear", "min_lr_ratio": 0.2}, 50, 0.6),
        ({"schedule": "cosine", "min_lr_ratio": 0.0}, 50, 0.5),
        ({"schedule": "cosine", "min_lr_ratio": 0.0}, 25, (1 + math.cos(math.pi / 4)) / 2),
        ({"schedule": "cosine", "min_lr_ratio": 0.1}, 99, 0.1 + 0.9 * (1 + math.cos(math.pi * 0.99)) / 2),
        ({"schedule": {"type": "wsd", "decay_share": 0.5}, "min_lr_ratio": 0.0}, 50, 1.0),
        ({"schedule": {"type": "wsd", "decay_share": 0.5}, "min_lr_ratio": 0.0}, 75, 0.5),
        ({"schedule": {"type": "wsd", "decay_share": 0.5, "shape": "sqrt"}, "min_lr_ratio": 0.0}, 62, 1 - math.sqrt(0.24)),
        ({"schedule": "inverse_sqrt", "warmup": 4, "min_lr_ratio": 0.0}, 16, 0.5),
        ({"schedule": "inverse_sqrt", "warmup": 4, "min_lr_ratio": 0.0}, 64, 0.25),
    ],
)
def test_worked_examples(options, step, expected):
    assert rates(**{"warmup": 0, **options})[step] == pytest.approx(expected)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 0.5), (2, 100), (3, 3), (5, 0.99)])
def test_short_runs_have_rates_between_zero_and_full(name, steps, warmup):
    assert all(0 < rate <= 1 for rate in rates(steps, schedule=name, warmup=warmup))


def test_under_a_limit_of_time_the_schedule_follows_whichever_is_ahead():
    config = TrainConfig(steps=100, lr=1.0, warmup=0, schedule="linear", min_lr_ratio=0.0, max_seconds=50)
    assert learning_rate(config, 10, 20.0) == pytest.approx(0.6)
    assert learning_rate(config, 80, 20.0) == pytest.approx(0.2)
    assert learning_rate(config, 10, 60.0) == pytest.approx(0.0)
    assert learning_rate(TrainConfig(steps=100, lr=1.0, warmup=0, schedule="linear", min_lr_ratio=0.0), 10, 1e9) == pytest.approx(0.9)
