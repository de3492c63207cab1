"""Next-token prediction."""

from __future__ import annotations

from mmlm.objectives.base import Objective
from mmlm.objectives.config import CausalConfig


class Causal(Objective):
    """Each token with weight is predicted at the token before it; `labels` of a segment are predicted at their own tokens."""

    def __init__(self, config: CausalConfig) -> None:
        self.config = config
