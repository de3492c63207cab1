"""Micro-batches in the order of the run, prepared here or by worker processes, the same either way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mmlm.base.errors import MmlmError
from mmlm.training.order import items, sample_rng

Items = list[tuple[int, int]]


class Samples(Protocol):
    """What a run is trained on. `fingerprint` changes when the samples do. With workers it must be possible to pickle them.

    Samples of several tasks have `parts`, samples of one task each, and `sizes`, how many of each make up an optimizer step; micro-batches
    are of one part. Its length is then that of the shortest part.
    """

    fingerprint: str

    def __len__(self) -> int:
        """How many samples there are; a generator of samples may claim as many as it likes."""

    def sample(self, index: int, rng: np.random.Generator) -> Any:
        """One sample; all its randomness comes from rng, which belongs to this sample and epoch."""

    def collate(self, items: list[Any]) -> Any:
        """Samples as one batch: an object with `num_tokens` and `to(device)`."""


class Plan:
    """Which samples make up each micro-batch of one process: an iterable of steps `first` to `last`, each some lists of items.

    The step's samples are dealt to the processes in turn, so that another number of processes sees the same samples in the same steps.
    """

    def __init__(
        self,
        *,
        num_items: int,
        seed: int,
        batch_size: int,
        micro_batch_size: int,
        first: int,
        last: int,
        position: int,
        rank: int,
        world: int,
    ) -> None:
        self.num_items, self.seed = num_items, seed
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.first, self.last, self.position = first, last, position
        self.rank, self.world = rank, world

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one step on one process."""
        return -(-(self.batch_size // self.world) // self.micro_batch_size)

    def of_step(self, step: int) -> list[Items]:
        """The micro-batches of a step, counted from 0."""
        start = self.position + (step - self.first) * self.batch_size
        mine = items(start, start + self.batch_size, num_items=self.num_items, seed=self.seed)[self.rank :: self.world]
        return [mine[at : at + self.micro_batch_size] for at in range(0, len(mine), self.micro_batch_size)]

    def __iter__(self) -> Iterator[Items]:
        for step in range(self.first, self.last):
            yield from self.of_step(step)


class Plans:
    """The micro-batches of each step of several parts, those of the first part first. plans: one for each part."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one step on one process."""
        return sum(plan.micro_batches for plan in self.plans)

    def of_step(self, step: int) -> list[tuple[int, Items]]:
        """The micro-batches of a step, counted from 0, each with the number of its part."""
        return [(number, some) for number, plan in enumerate(self.plans) for some in plan.of_step(step)]

    def __iter__(self) -> Iterator[tuple[int, Items]]:
        for step in range(self.plans[0].first, self.plans[0].last):
            yield from self.of_step(step)


class _Prepared(Dataset[Any]):
    def __init__(self, parts: Sequence[Samples], seeds: Sequence[int]) -> None:
        self.parts, self.seeds = parts, seeds

    def __getitem__(self, wanted: Any) -> Any:
        number, some = wanted
        samples, seed = self.parts[number], self.seeds[number]
        try:
            return samples.collate([samples.sample(index, sample_rng(seed, epoch, index)) for epoch, index in some])
        except MmlmError as error:
            return error  # raised in the process that asked for it, with its own message and nothing around it


class Feed:
    """Iterates over steps, each a list of micro-batches. waited: seconds that the caller has spent waiting for data."""

    def __init__(self, parts: Sequence[Samples], plan: Plans, workers: int) -> None:
        self.plan = plan
        self.waited = 0.0
        more: dict[str, Any] = {"worker_init_fn": _begin_worker, "prefetch_factor": 2} if workers else {}
        source = _Prepared(parts, [each.seed for each in plan.plans])
        self._batches: Iterator[Any] = iter(
            DataLoader(source, batch_size=None, sampler=plan, num_workers=workers, collate_fn=_as_is, **more)
        )

    def step(self) -> list[Any]:
        """The micro-batches of the next step. Raises what went wrong while they were prepared."""
        begun = time.perf_counter()
        batches = [next(self._batches) for _ in range(self.plan.micro_batches)]
        self.waited += time.perf_counter() - begun
        for batch in batches:
            if isinstance(batch, MmlmError):
                raise batch
        return batches

    def close(self) -> None:
        """End the workers now. Left to the garbage collector, they may be waited for in vain."""
        self._batches = iter(())


def _as_is(batch: Any) -> Any:
    return batch


def _begin_worker(number: int) -> None:
    """Signals to the whole group are for the main process, which ends its workers itself after the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
