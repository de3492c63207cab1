"""Notes which operation and back end a test is about; the run's last lines count them (tests/conftest.py)."""

from __future__ import annotations

import pytest

OPERATIONS = {"conv1d": "causal_conv1d", "cross_entropy": "linear_cross_entropy", "elementwise": "rms_norm"}  # of test files


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest) -> None:
    """(operation, back end) of tests that take a back end other than the reference."""
    given = getattr(request.node, "callspec", None)
    given = given.params if given else {}
    backend = given.get("backend") or given.get("form", " ")[0]
    if backend in ("triton", "native", "torch"):
        stem = request.node.path.stem.removeprefix("test_")
        name = str(given.get("name", OPERATIONS.get(stem, stem))).removeprefix("add_")
        request.node.user_properties.append(("kernel", f"{name} {backend}"))
