"""Continuous batching: requests for text join and leave one running batch between two tokens, so that each step serves all of them.

A thread of its own reads the prompts of those who wait, together, lets them join the sequences that are being written, and takes one token
of each; who is done or has gone leaves. Batching never changes what is written: each sequence has its own random numbers.

Source: iteration-level scheduling, Orca (Yu et al., OSDI 2022).
Axes: b sequences   v vocabulary rows
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

import torch
from torch import Tensor

from mmlm.decoding import Decoding, OneCallDecoding, open_decoding
from mmlm.generation import Sampling, require_finite, sample
from mmlm.serving.errors import busy

logger = logging.getLogger(__name__)


@dataclass
class Request:
    """A text that is to be continued. prompt: ids [t].   tell: called from the batcher's thread with each id and whether it is the last
    one, or with what went wrong.   is_gone: set by who no longer waits for it."""

    prompt: Tensor
    max_new_tokens: int
    sampling: Sampling
    stop: Sequence[int]
    seed: int
    tell: Callable[[int | Exception, bool], None]
    is_gone: bool = False
    written: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = torch.Generator().manual_seed(self.seed * 1_000_003)

    @property
    def left(self) -> int:
        """Tokens that may still be written."""
        return self.max_new_tokens - len(self.written)


class Batcher:
    """Writes for all who ask. at_once: sequences of the batch.   most_waiting: beyond it `submit` refuses.   lock: held for each step."""

    def __init__(self, model: Any, lock: AbstractContextManager[Any], *, at_once: int, most_waiting: int) -> None:
        self.model, self.lock, self.at_once, self.most_waiting = model, lock, at_once, most_waiting
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.changed = Condition()
        self.decoding: Decoding | OneCallDecoding | None = None
        self.is_closed = False
        self.thread = Thread(target=self._work, name="batcher", daemon=True)
        self.thread.start()

    def submit(self, request: Request) -> None:
        """Let a request wait for its place. Raises RequestError where too many wait."""
        with self.changed:
            if len(self.waiting) >= self.most_waiting:
                self.waiting = deque(each for each in self.waiting if not each.is_gone)
            if len(self.waiting) >= self.most_waiting:
                raise busy()
            self.waiting.append(request)
            self.changed.notify()

    def close(self) -> None:
        """End the thread after its step."""
        with self.changed:
            self.is_closed = True
            self.changed.notify()
        self.thread.join()

    @torch.no_grad()
    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.running or self.is_closed)
                if self.is_closed:
                    return
            try:
                with self.lock:
                    self._step()
            except Exception as error:  # of one batch: the next one begins afresh
                logger.exception("a batch failed")
                failed, self.running, self.decoding = self.running, [], None
                for request in failed:
                    request.tell(error, True)

    def _step(self) -> None:
        self._leave([not request.is_gone for request in self.running])
        self._join()
        if self.decoding is None:
            return
        ids = self._choose(self.decoding.scores())
        served, stays = self.running, list[bool]()
        for request, index in zip(served, ids, strict=True):
            request.written.append(index)
            stays.append(request.left > 0 and index not in request.stop)
        self._leave(stays)
        for request, index, is_kept in zip(served, ids, stays, strict=True):
            request.tell(index, not is_kept)
        if self.running:
            self.decoding.feed(torch.tensor([request.written[-1] for request in self.running]))

    def _choose(self, scores_bv: Tensor) -> list[int]:
        """The next id of each sequence."""
        best_b = scores_bv.argmax(-1)
        require_finite(scores_bv.gather(1, best_b[:, None]))
        return [
            best if request.sampling.temperature == 0 else sample(scores_v, request.written, request.sampling, request.draw)
            for request, scores_v, best in zip(self.running, scores_bv, best_b.tolist(), strict=True)
        ]

    def _leave(self, stays: list[bool]) -> None:
        """Keep the sequences that stay."""
        if self.decoding is None or all(stays):
            return
        keep = [row for row, is_kept in enumerate(stays) if is_kept]
        self.running = [self.running[row] for row in keep]
        if keep:
            self.decoding.select(torch.tensor(keep))
        else:
            self.decoding.close()
            self.decoding = None

    def _join(self) -> None:
        """Read the prompts of those for whom there is a place."""
        with self.changed:
            fresh: list[Request] = []
            while self.waiting and len(self.running) + len(fresh) < self.at_once:
                request = self.waiting.popleft()
                fresh += [] if request.is_gone else [request]
        if not fresh:
            return
        self.running = [*self.running, *fresh]
        prompts, room = [request.prompt for request in fresh], max(request.left for request in self.running)
        if self.decoding is None:
            self.decoding = open_decoding(self.model, prompts, room)
        else:
            self.decoding.join(Decoding(self.model, prompts, 0), room)
