"""Sending the log elsewhere, through accelerate."""

from __future__ import annotations

import importlib.util
from typing import Any

from mmlm.base.errors import MissingExtra


def require_tracker(name: str) -> None:
    """Raises MissingExtra with the command that installs a tracker, if it is missing."""
    if importlib.util.find_spec(name) is None:
        raise MissingExtra(f"train.trackers: {name!r} is not installed. Install it with: pip install {name}")


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys with plain values, which is what trackers take."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, int | float | str) else str(value)
    return found
