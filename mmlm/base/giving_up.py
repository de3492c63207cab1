"""Work that nobody waits for any more ends at its next step: who waits holds an event, whatever is at work looks at it.

Models look before every pass through their layers, so that no task needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
_unwanted: ContextVar[tuple[Event, ...]] = ContextVar("unwanted", default=())


class GivenUp(BaseException):
    """Nobody waits for this. No error: what catches errors lets it pass."""


@contextmanager
def unless(unwanted: Event) -> Iterator[None]:
    """Whatever is at work inside ends with GivenUp at its next step once the event is set; in threads it starts only with its context."""
    token = _unwanted.set((*_unwanted.get(), unwanted))
    try:
        yield
    finally:
        _unwanted.reset(token)


def go_on() -> None:
    """A step begins. Raises GivenUp where nobody waits for it."""
    if any(unwanted.is_set() for unwanted in _unwanted.get()):
        raise GivenUp


def as_told(work: Callable[[Callable[[T], None]], object]) -> Iterator[T]:
    """What work(tell) tells, as it comes, from a thread of its own; whoever asks for no more ends the work. Raises what the work raises."""
    told: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
    unwanted, context = Event(), copy_context()

    def tell(item: T) -> None:
        go_on()
        told.put((item,))

    def whole() -> None:
        try:
            with unless(unwanted):
                work(tell)
            told.put(None)
        except BaseException as error:  # raised where the items are asked for
            told.put(error)

    worker = Thread(target=context.run, args=[whole], daemon=True)
    worker.start()
    try:
        while (item := told.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]
    finally:
        unwanted.set()
        worker.join()
