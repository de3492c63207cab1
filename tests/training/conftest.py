"""What the tests of the trainer share."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def toy() -> Iterator[ModuleType]:
    """The toy model and samples, under a name that other processes can import."""
    sys.path.insert(0, str(HERE))
    import toy

    yield toy
    sys.path.remove(str(HERE))


@pytest.fixture(scope="session")
def server(toy: ModuleType) -> Any:
    """Starts processes forked from one that has imported torch and done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy", "accelerate", "torch._dynamo"])
    with pytest.MonkeyPatch.context() as patch:  # the server does not take over sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent.parent)]))
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="session")
def start(toy: ModuleType, server: Any) -> Callable[..., BaseProcess]:
    """Starts a run as a process of its own."""

    def begin(folder: Path, options: dict, seconds: float = 0.0) -> BaseProcess:
        process = server.Process(target=toy.child, args=(folder, options, seconds))
        process.start()
        return process

    return begin
