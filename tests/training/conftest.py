"""What the tests of the trainer share."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The toy model and samples, under an importable name, so that worker processes find them."""
    if "toy" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toy", HERE / "toy.py")
        assert spec is not None and spec.loader is not None
        sys.modules["toy"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["toy"])
    return sys.modules["toy"]


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts toy.py with arguments as a process of its own, its output a pipe."""

    def begin(*arguments: Any) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "toy.py"), *map(str, arguments)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin
