"""A finished model on the records of its test sources, each source by itself, beside what has to be beaten."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from mmlm.base.registry import Component
from mmlm.data.base import Listed, Source
from mmlm.evaluation.judges import MODEL, Judges, Verdict
from mmlm.model import MultimodalLM
from mmlm.tasks.base import HasTwins, MakesSound, Measured, Pictured
from mmlm.training.order import evaluation_rng

RECORDS_AT_ONCE = 64


@dataclass
class Measurement:
    """By the name of a test source.   values: {metric: value}.   baselines: {name: {metric: value}}.   curves: see `Measured.curves`.
    records: how many there were.   first: the first of them.   seconds: of CPU time, by who predicted.   verdicts: of what can be heard.
    pictures: SVG elements."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    baselines: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    curves: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, list[str]] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)


def source_names(configs: Sequence[Component]) -> list[str]:
    """A name for each source: its type, and the keys in which it differs from others of that type, but those left at their default."""
    raws = [config.model_dump() for config in configs]
    names = []
    for config, raw in zip(configs, raws, strict=True):
        others = [each for each in raws if each["type"] == raw["type"]]
        differs = [key for key, value in raw.items() if any(each.get(key) != value for each in others)]
        own = [key for key in differs if raw[key] != type(config).model_fields[key].default]
        own = own or [key for key in differs if raw[key]] or differs
        names.append(", ".join([raw["type"], *(f"{key.replace('_', ' ')} {raw[key]}" for key in own)]))
    return [name if names.count(name) == 1 else f"{name} ({names[:at].count(name) + 1})" for at, name in enumerate(names)]


def records_of(source: Source, asks: Any, *, count: int, seed: int, number: int) -> list[Any]:
    """All records of a source that lists them, or of more than `count` so many, evenly spaced over the list, as lists are often sorted by
    class; else so many drawn ones, which are none of training or validation."""
    if isinstance(source, Listed):
        listed = list(source.everything())
        return listed if len(listed) <= count else [listed[at * len(listed) // count] for at in range(count)]
    return [source.draw(evaluation_rng(seed, number, at), asks) for at in range(count)]


def measure(
    task: Measured,
    model: MultimodalLM,
    tests: dict[str, list[Any]],
    progress: Callable[[int, int], None] | None = None,
    judges: Judges | None = None,
) -> Measurement:
    """Every metric, baseline and curve on every test source, and what judges say of a task that makes sound.

    progress(records done, records in all) is called as they are; the records of each judge count again.
    """
    found = Measurement()
    passes = 1 + (judges.passes if judges is not None else 0)
    total, done = passes * sum(map(len, tests.values())), 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for name, records in tests.items():
        began, wall = time.process_time(), time.perf_counter()
        outputs: list[Any] = []
        for start in range(0, len(records), RECORDS_AT_ONCE):
            some = records[start : start + RECORDS_AT_ONCE]
            outputs += task.predict(model, some)
            tick(len(some))
        wall = time.perf_counter() - wall
        found.seconds["model"] = found.seconds.get("model", 0.0) + time.process_time() - began
        found.values[name] = task.score(outputs, records)
        found.baselines[name] = task.baselines(records)
        if isinstance(task, HasTwins):
            found.baselines[name] |= {twin: task.score(some, records) for twin, some in task.twins(model, records).items()}
        found.curves[name] = task.curves(outputs, records)
        if isinstance(task, Pictured):
            found.pictures[name] = task.pictures(outputs, records)
        found.records[name], found.first[name] = len(records), records[0]
        if judges is not None:
            assert isinstance(task, MakesSound)
            _judge(found, name, task, judges, outputs, records, wall, partial(tick, len(records)))
    return found


def _judge(
    found: Measurement,
    name: str,
    task: Any,
    judges: Judges,
    outputs: Sequence[Any],
    records: Sequence[Any],
    wall_seconds: float,
    tick: Callable[[], None],
) -> None:
    """Add what judges say of the outputs on one source, and the real-time factor: seconds by the clock for a second of sound made."""
    heard = task.heard(outputs, records)
    most = judges.config.max_sounds
    titles = [task.title(record) for record in records[:most]]
    verdict = judges.judge(heard[:most], task.heard_baselines(records[:most]), titles, tick)
    values = found.values[name]
    values |= verdict.values.get(MODEL, {})
    values["real_time_factor"] = wall_seconds / max(sum(one.made.seconds for one in heard), 1e-9)
    for who, judged in verdict.values.items():
        if who != MODEL:
            found.baselines[name][who] = {**found.baselines[name].get(who, {}), **judged}
    found.verdicts[name] = verdict


def metric_names(found: Measurement) -> dict[tuple[str, str], str]:
    """{(source, metric): key of metrics.json}: the metric alone where there is one source, else with the source after it. Those that only
    a baseline has, such as the voice of a recording beside silence, come after the model's."""
    several, names = len(found.values) > 1, dict[tuple[str, str], str]()
    for name, values in found.values.items():
        for row in (values, *found.baselines.get(name, {}).values()):
            names |= {(name, metric): f"{metric}: {name}" if several else metric for metric in row}
    return names


def measured_summary(found: Measurement, over: str) -> dict[str, Any]:
    """What metrics.json holds: the model's metrics, the baselines', curves over a quantity, and what all were measured on."""
    keys = metric_names(found)
    metrics = {keys[name, metric]: value for name, values in found.values.items() for metric, value in values.items()}
    baselines: dict[str, dict[str, float]] = {}
    for name, rows in found.baselines.items():
        for baseline, values in rows.items():
            baselines.setdefault(baseline, {}).update({keys[name, metric]: value for metric, value in values.items()})
    about: dict[str, Any] = {"records": found.records}
    if found.verdicts:
        about["judged"] = {name: verdict.about for name, verdict in found.verdicts.items()}
    return {"metrics": metrics, "baselines": baselines, "curves": found.curves, "over": over, "data": about, "seconds": found.seconds}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation over what is behind them (0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
