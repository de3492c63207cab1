"""Notes which operation and back end a test is about; the run's last lines count them (tests/conftest.py)."""

from __future__ import annotations

import re

import pytest

from mmlm.kernels import native

OPERATIONS = {"conv1d": "causal_conv1d", "cross_entropy": "linear_cross_entropy"}  # of test files


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest) -> None:
    """(operation, back end) of tests that take a back end other than the reference."""
    given = getattr(request.node, "callspec", None)
    given = given.params if given else {}
    backend = given.get("backend") or given.get("form", " ")[0]
    if backend in ("triton", "native", "torch"):
        stem = request.node.path.stem.removeprefix("test_")
        name = OPERATIONS.get(stem, given.get("op", stem))
        if stem in ("elementwise", "recurrences"):  # of several operations: a parameter or the test's name tells which
            told = re.sub("test_(rms_norm|swiglu|rope|lrpe)_.*", r"\1", request.node.originalname)
            name = str(given.get("name", told)).removeprefix("add_").split()[0]
        request.node.user_properties.append(("kernel", f"{name} {backend}"))


@pytest.fixture
def other_flags(monkeypatch, tmp_path):
    """Native code compiled with other flags, in a folder of its own."""

    def use(march):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(native, "FLAGS", tuple(f"-march={march}" if flag == "-march=native" else flag for flag in native.FLAGS))
        native.forget()

    yield use
    monkeypatch.undo()
    native.forget()
