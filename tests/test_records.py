"""Samples from weighted sources: their shares are those of the weights, however many of the records of one give no sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.records import DrawnSamples, Records


def samples(*weights: float, **fits: float) -> DrawnSamples:
    """Of one source a name, whose records give a sample with a chance."""
    named: list[Any] = [SimpleNamespace(draw=lambda rng, asks, name=name: name) for name in fits]
    task: Any = SimpleNamespace(example=lambda record, rng: record if rng.random() < fits[record] else None, title=str)
    objective: Any = SimpleNamespace(prepare=lambda stream, vocabulary, rng: stream)
    return DrawnSamples(task, objective, None, Records(list(zip(named, weights, strict=True)), None))  # type: ignore[arg-type]


def test_a_source_of_many_records_that_give_no_sample_keeps_its_share():
    drawn = samples(3, 1, often=0.15, always=1.0)
    found = [drawn.sample(number, np.random.default_rng(number)) for number in range(600)]
    assert found.count("often") / 600 == pytest.approx(0.75, abs=0.05)


def test_a_source_without_any_leaves_the_samples_to_others_and_without_others_says_so():
    drawn = samples(1, 1, never=0.0, always=1.0)
    assert {drawn.sample(number, np.random.default_rng(number)) for number in range(40)} == {"always"}
    with pytest.raises(DataError, match="none of 50 drawn records gives a sample"):
        samples(1, never=0.0).sample(0, np.random.default_rng(0))
