"""SIGTERM and SIGINT as a request to stop after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """Leaves a validation or sampling at once; the trainer catches it and writes a checkpoint."""


class Interrupts:
    """While its context is open, the first signal is noted in `signal` and the second is a KeyboardInterrupt.

    Outside the main thread, where Python cannot handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._in_hook = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as for a program that a shell started in the background
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def hook(self) -> Iterator[None]:
        """A part that changes no state of the run and may be left in the middle."""
        if self.signal:
            raise Interrupted
        self._in_hook = True
        try:
            yield
        finally:
            self._in_hook = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        if self._in_hook:
            raise Interrupted
