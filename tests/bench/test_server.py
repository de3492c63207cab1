"""Goal: 16 clients of a 10M model get at least three times the tokens a second from one running batch than one after another.

Both are the same server over HTTP with the same limits but for `at_once`, 16 or 1; the answers are the same ids. Tokens are counted by CPU
seconds of the process, clients included, as in all benchmarks; the seconds of answers are those of the clock.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace

import httpx
import pytest
import torch

from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.serving.guard import Limits
from mmlm.serving.uses import Use
from mmlm.tasks.text import TextTask

from ..serving.conftest import TOKEN, listening

CLIENTS, TOKENS, GOAL = 16, 48, 3.0


class Letters:
    """Bytes as text."""

    first, sizes = None, {"text": 8192}

    def ids(self, texts):
        return [list(text.encode()) for text in texts]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module")
def use():
    config = {
        "schema": 1, "vocabulary": {"text": 8192},
        "backbone": {"width": 320, "num_layers": 6, "pattern": [{"type": "attention", "num_heads": 5}],
                     "feed_forward": {"type": "swiglu", "hidden": 864}},
        "heads": {"language_model": {"type": "language_model"}},
    }  # fmt: skip
    torch.manual_seed(0)
    model = MultimodalLM(ModelConfig.model_validate(config)).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 9e6 < count < 12e6, count
    task = TextTask.__new__(TextTask)
    task.config, task.text = SimpleNamespace(end=None, context=512, test_context=None), Letters()
    return Use(Path("ten"), "text", "text", TextTask.inputs, TextTask.outputs, lambda given: iter(()), None, task, model)


def load(use, at_once):
    """(tokens a second, seconds that 95 % of the answers took at most, answers) of all clients at once."""

    def ask(number):
        began = time.perf_counter()
        body = {"messages": [{"role": "user", "content": f"client {number} asks"}], "max_tokens": TOKENS}
        answer = http.post("/v1/chat/completions", json=body)
        return time.perf_counter() - began, answer.json()["choices"][0]["message"]["content"]

    with listening([use], limits=Limits(at_once=at_once)) as (address, _), ThreadPoolExecutor(CLIENTS) as pool:
        http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=120)
        ask(0)
        began = time.process_time()
        found = list(pool.map(ask, range(CLIENTS)))
        seconds = time.process_time() - began
    return CLIENTS * TOKENS / seconds, quantiles([one for one, _ in found], n=20)[-1], [text for _, text in found]


@pytest.mark.bench
def test_a_running_batch_is_three_times_one_after_another(use):
    ratios = []
    for _ in range(3):
        (alone, p95_alone, one_by_one), (batched, p95, together) = load(use, 1), load(use, CLIENTS)
        assert together == one_by_one
        ratios.append(batched / alone)
        print(
            f"one after another {alone:.0f} tokens/s, p95 {p95_alone:.2f} s; batch {batched:.0f}, p95 {p95:.2f} s: {ratios[-1]:.2f} times"
        )
    assert median(ratios) >= GOAL
