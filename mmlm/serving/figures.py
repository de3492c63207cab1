"""Counts of a server, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mmlm.serving.guard import Message, Receive, Send


class Figures:
    """Requests by route and status, their seconds, tokens, and what runs and waits. Nothing of what was asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("mmlm_requests", "requests answered", ["route", "status"], registry=self.registry)
        self.seconds = Histogram("mmlm_request_seconds", "seconds until an answer begins", ["route"], registry=self.registry)
        self.tokens = Counter("mmlm_tokens", "tokens written", registry=self.registry)
        self.running = Gauge("mmlm_running", "answers that a model is at work on", ["model"], registry=self.registry)
        self.waiting = Gauge("mmlm_waiting", "requests that wait for a model", ["model"], registry=self.registry)

    def count(self, route: str, status: int, seconds: float) -> None:
        """One request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self, at_work: Mapping[str, tuple[int, int]]) -> tuple[bytes, str]:
        """(what Prometheus reads, its media type). at_work: {model: (answers being made, requests that wait)}."""
        for name, (running, waiting) in at_work.items():
            self.running.labels(name).set(running)
            self.waiting.labels(name).set(waiting)
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class Measured:
    """An ASGI application around another one, whose requests are counted."""

    def __init__(self, app: Any, figures: Figures) -> None:
        self.app, self.figures = app, figures

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Count a request when its answer begins."""
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self.figures.count(route, message["status"], time.perf_counter() - began)
            await send(message)

        await self.app(scope, receive, counted)
