"""What tasks share whose records are parts of recordings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmlm.data.speech import Utterance
from mmlm.tasks.base import UsualTask


class RecordingsTask(UsualTask):
    """Base of such tasks, whose config says how many `seconds` of an utterance are drawn; None: all of it."""

    features: Mapping[str, int] = {}
    config: Any

    @property
    def asks(self) -> float | None:
        """Seconds of a drawn part of an utterance."""
        return self.config.seconds

    def texts(self, record: Utterance, rng: np.random.Generator) -> list[str]:
        """The text, if there is one."""
        return [record.text] if record.text else []

    def title(self, record: Utterance) -> str:
        """Who says what, as far as it is known."""
        return f"{record.id}: {record.text or 'no text'}"
