"""Work that nobody waits for any more ends at its next step: who waits holds an event, whatever is at work looks at it.

Models look before every pass through their layers, so that no task needs to know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

_unwanted: ContextVar[Event | None] = ContextVar("unwanted", default=None)


class GivenUp(BaseException):
    """Nobody waits for this. No error: what catches errors lets it pass."""


@contextmanager
def unless(unwanted: Event) -> Iterator[None]:
    """Whatever is at work inside ends with GivenUp at its next step once the event is set; in threads it starts only with its context."""
    token = _unwanted.set(unwanted)
    try:
        yield
    finally:
        _unwanted.reset(token)


def go_on() -> None:
    """A step begins. Raises GivenUp where nobody waits for it."""
    if (unwanted := _unwanted.get()) is not None and unwanted.is_set():
        raise GivenUp
