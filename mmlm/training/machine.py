"""What a run asks of the process it runs in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEPT_TRIM, _USUAL_TRIM, _USUAL_MMAPS = (1 << 31) - 1, 128 << 10, 65536


@contextlib.contextmanager
def kept_memory() -> Iterator[bool]:
    """Let the C library keep freed blocks instead of giving them back to the system at every use; afterwards they are given back.

    A training step frees and asks for the same large blocks over and over. Yields whether it took effect (glibc only).
    """
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError):
        yield False
        return
    try:
        yield bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_TRIM))
    finally:
        mallopt(_M_MMAP_MAX, _USUAL_MMAPS)
        mallopt(_M_TRIM_THRESHOLD, _USUAL_TRIM)
        trim(0)


def peak_gib() -> float:
    """Most memory that this process has held so far, or most memory of its GPU where it uses one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextlib.contextmanager
def process_settings(is_deterministic: bool) -> Iterator[None]:
    """Global generators and switches as they were, once the run is over."""
    deterministic: Any = torch.utils.deterministic
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        deterministic.fill_uninitialized_memory = False
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
