"""Goal: the memory of a server stays flat under load: after the first minute it grows by less than 5 %.

A server in a process of its own, with runs of texts, pictures and speech, is asked by clients of this process without a pause: streamed,
whole, refused and given up. Its resident set is read from /proc once a second; growth is the median of the last tenth of the time over that
of the tenth after the beginning, which is a minute or, in short runs, a fifth. MMLM_LOAD_SECONDS: how long, by default ten minutes.
"""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pytest
from PIL import Image as Pictures

from ..serving.conftest import TOKEN
from ..serving.tiny import made_in

SECONDS, CLIENTS, MOST_GROWTH = float(os.environ.get("MMLM_LOAD_SECONDS", "600")), 8, 1.05


def resident(pid: int) -> int:
    """Bytes of a process that lie in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def server(tmp_path):
    """(process, address) of a server."""
    runs = made_in(tmp_path, ["text", "picture_classes", "tts"])
    words = ["serve", *map(str, runs), "--port", "8765", "--token", TOKEN, "--queue", "64"]
    process = subprocess.Popen([sys.executable, "-m", "mmlm", *words], stdout=subprocess.DEVNULL)
    address = "http://127.0.0.1:8765"
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 120:
        try:
            httpx.get(address + "/health")
            break
        except httpx.TransportError:
            time.sleep(0.2)
    yield process, address
    process.terminate()
    process.wait(20)


def asked(number: int) -> tuple[str, dict]:
    """What the next request is for: text, streamed or whole or refused, classes and vectors of pictures of any size, speech."""
    draws = np.random.default_rng(number)
    if number % 4 == 0:
        buffer = io.BytesIO()
        Pictures.fromarray(draws.integers(0, 255, (*draws.integers(20, 300, 2), 3), dtype=np.uint8)).save(buffer, "PNG")
        picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        if number % 8:
            return "/v1/tasks/picture_classes", {"inputs": {"image": picture}}
        return "/v1/embeddings", {"model": "picture_classes", "input": picture}
    if number % 4 == 1:
        return "/v1/audio/speech", {"input": "a sea", "seed": int(draws.integers(99)), "stream_format": ("sse", "audio")[number % 8 > 3]}
    text = "Zq" * 200 if number % 20 == 2 else f"line {number}"
    messages = [{"role": "user", "content": text}]
    return "/v1/chat/completions", {"messages": messages, "max_tokens": int(draws.integers(4, 60)), "stream": number % 3 == 0}


@pytest.mark.bench
def test_memory_stays_flat_under_load(server):
    process, address = server
    numbers, end, seen, codes = count(), time.monotonic() + SECONDS, [], dict.fromkeys((200, 400, "given up"), 0)

    def client(_):
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as http:
            while time.monotonic() < end:
                path, body = asked(number := next(numbers))
                with http.stream("POST", path, json=body) as answer:
                    if number % 11 == 0:
                        codes["given up"] += 1
                        continue  # without reading it
                    answer.read()
                codes[answer.status_code] = codes.get(answer.status_code, 0) + 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(client, number) for number in range(CLIENTS)]
        while time.monotonic() < end:
            seen.append(resident(process.pid))
            time.sleep(1)
        for each in running:
            each.result()
    start, tenth = min(60, len(seen) // 5), max(len(seen) // 10, 3)
    first, last = median(seen[start : start + tenth]), median(seen[-tenth:])
    print(f"{SECONDS:.0f} s, {CLIENTS} clients, requests {codes}: resident {first / 2**20:.0f} MiB, then {last / 2**20:.0f} MiB, "
          f"{last / first:.3f} times; most {max(seen) / 2**20:.0f} MiB")  # fmt: skip
    assert set(codes) == {200, 400, "given up"} and min(codes.values()) > 0 and process.poll() is None
    assert last / first < MOST_GROWTH
