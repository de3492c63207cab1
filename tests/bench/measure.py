"""What the benchmarks share: times, peak memory, and what the machine can do at best. All on one thread, in CPU seconds of the process."""

from __future__ import annotations

import ctypes
import os
import statistics
import time

import torch

MARGIN = 1.3  # every goal is divided by it, for the noise of a shared machine
GEMM = 2048, 1024, 4096  # a product of the shape at which this kind of machine was measured fastest


def compare(contestants, rounds=5, seconds=0.15):
    """CPU milliseconds of each contestant: median over interleaved rounds on one thread. seconds: time for each, all rounds together."""
    torch.set_num_threads(1)
    repeats, times = {}, {name: [] for name in contestants}
    for name, run in contestants.items():
        run()
        begin = time.process_time()
        run()
        repeats[name] = max(1, int(seconds / rounds / max(time.process_time() - begin, 1e-6)))
    for _ in range(rounds):
        for name, run in contestants.items():
            begin = time.process_time()
            for _ in range(repeats[name]):
                run()
            times[name].append((time.process_time() - begin) / repeats[name] * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def peak_mb(run):
    """Rise of the peak resident memory of a fresh process that runs this once."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).malloc_trim(0)  # what the parent freed but kept would otherwise serve the child unseen
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = resident("VmRSS")
        run()
        os.write(write, str(resident("VmHWM") - before).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        found = float(answer.read())
    os.waitpid(child, 0)
    return found


def resident(kind):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(kind)) / 1024


def gemm(dtype):
    """The large product that gives the machine's rate, as a call without arguments; it computes `gemm_gflop`."""
    m, k, n = GEMM
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    out = torch.empty(m, n, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def gemm_gflop():
    m, k, n = GEMM
    return 2e-9 * m * k * n


def read_rate():
    """Bytes that one thread reads from memory in a second at best, of 5 passes over 256 MiB."""
    x, best = torch.ones(64 << 20, dtype=torch.float32), 0.0
    for _ in range(5):
        begin = time.process_time()
        x.sum()
        best = max(best, x.numel() * 4 / (time.process_time() - begin))
    return best
