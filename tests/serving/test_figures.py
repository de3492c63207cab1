"""What a server counts for Prometheus."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import httpx

from mmlm.tasks import forms

from .conftest import TOKEN, listening
from .test_server import own


def test_failures_are_counted_and_leave_the_connection_open():
    uses = [own("broken", {"words": forms.Text("Words")}, {"backwards": forms.Text("Back")}, lambda given: 1 / 0)]
    with listening(uses) as (address, _), httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        answer = http.post("/v1/tasks/broken", json={"inputs": {"words": "a"}})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error"
        assert 'mmlm_requests_total{route="/v1/tasks/{kind}",status="500"} 1.0' in http.get("/metrics").text


def test_texts_that_are_written_together_are_counted(text_use, monkeypatch):
    with listening([text_use]) as (address, server):
        ((name, writer),) = server.writers.items()
        with monkeypatch.context() as changed:
            changed.setattr(writer, "batcher", SimpleNamespace(running=[1, 2, 3], waiting=[4, 5]))
            text = httpx.get(address + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    assert f'mmlm_running{{model="{name}"}} 3.0' in text and f'mmlm_waiting{{model="{name}"}} 2.0' in text


def test_who_waits_for_a_model_of_any_kind_is_counted():
    free = Event()

    def slow(given):
        free.wait(20)
        yield {"backwards": given["words"]}

    uses = [own("slow", {"words": forms.Text("Words")}, {"backwards": forms.Text("Back")}, slow)]
    with listening(uses) as (address, server), ThreadPoolExecutor(3) as pool:
        http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
        asked = [pool.submit(http.post, "/v1/tasks/slow", json={"inputs": {"words": "a"}}) for _ in range(3)]
        while server.turns["slow"].waiting < 3:
            time.sleep(0.01)
        text = http.get("/metrics").text
        free.set()
        assert [each.result().status_code for each in asked] == [200] * 3
        assert 'mmlm_running{model="slow"} 1.0' in text and 'mmlm_waiting{model="slow"} 2.0' in text
        while 'mmlm_running{model="slow"} 0.0' not in http.get("/metrics").text:
            time.sleep(0.01)
