"""Numbers as tokens: a sign, then one token for each digit that knows its power of ten, and the point.

    -3.94 with two places before and after the point:   -  0e1  3e0  .  9e-1  4e-2

Beside its learned vector each digit has a fixed encoding, digit * 10^order, which the model adds as a channel of the kind `number`; signs
and points add nothing. A number is written with as many places as the config says, whatever its size, so that the count of its tokens
tells nothing; one that does not fit is refused.

Source: Regression Transformer, arXiv:2202.01338.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from mmlm.base.errors import CheckpointError, DataError
from mmlm.base.files import parse_json, write_text_whole
from mmlm.stream import Segment
from mmlm.tokenizers.config import NumbersConfig

NUMBER = "number"
PLUS, MINUS, POINT = 0, 1, 2
DIGITS = 3  # the id of digit 0 of the highest order; ten of each order follow one another
FILE = "numbers.json"
ALL_PLACES = Context(prec=64)  # more than a number may have


class NumberTokenizer:
    """Numbers to ids of the range `number` and back."""

    def __init__(self, config: NumbersConfig) -> None:
        self.config = config
        self.orders = list(range(config.whole_digits - 1, -config.decimals - 1, -1))
        self.kinds = self._kinds()  # the ids that may stand at each place of a number
        self.table = self._table()

    @property
    def sizes(self) -> dict[str, int]:
        """The range and its size."""
        return {NUMBER: DIGITS + 10 * len(self.orders)}

    def __len__(self) -> int:
        """Tokens of a number."""
        return len(self.kinds)

    def _kinds(self) -> list[range]:
        digits = [range(DIGITS + 10 * row, DIGITS + 10 * row + 10) for row in range(len(self.orders))]
        point = [range(POINT, POINT + 1)] if self.config.decimals else []
        return [range(PLUS, MINUS + 1), *digits[: self.config.whole_digits], *point, *digits[self.config.whole_digits :]]

    def ids(self, value: float) -> list[int]:
        """Ids of a number, rounded to the last place. Raises DataError for one that is not finite or has too many places."""
        config = self.config
        exact, most = Decimal(repr(float(value))), 10**config.whole_digits
        too_large = DataError(f"the number {value:g} does not fit: whole_digits {config.whole_digits} is for those below {most:,}.")
        if not exact.is_finite():
            raise DataError(f"the number {value} is not finite.")
        if abs(exact) >= most:
            raise too_large
        rounded = exact.quantize(Decimal(1).scaleb(-config.decimals), ROUND_HALF_EVEN, ALL_PLACES)
        digits = f"{rounded.copy_abs():f}".replace(".", "").rjust(len(self.orders), "0")
        if len(digits) > len(self.orders):
            raise too_large
        found = [MINUS if rounded < 0 else PLUS]
        for row, digit in enumerate(digits):
            found += [POINT] if row == config.whole_digits else []
            found.append(DIGITS + 10 * row + int(digit))
        return found

    def number(self, ids: Sequence[int]) -> float | None:
        """The number of ids; None where they are none."""
        if len(ids) != len(self) or any(index not in kind for index, kind in zip(ids, self.kinds, strict=True)):
            return None
        digits = "".join(self.symbol(index)[0] for index in ids[1:])
        return float(("-" if ids[0] == MINUS else "") + digits)

    def values(self, ids: Tensor) -> Tensor:
        """[t, 1] fixed encoding of ids [t]: digit times power of ten, brought to at most `largest`; 0 for signs and points."""
        return self.table[ids]

    def _table(self) -> Tensor:
        """The encoding of every id."""
        ten = torch.tensor([10.0**order for order in self.orders], dtype=torch.float64)
        value = torch.cat([torch.zeros(DIGITS, dtype=torch.float64), (ten[:, None] * torch.arange(10)).flatten()])
        return (value * self.config.largest / (9 * ten[0])).float()[:, None]

    def symbol(self, index: int) -> str:
        """An id for people, such as 3e-1."""
        if index < DIGITS:
            return "+-."[index]
        row, digit = divmod(index - DIGITS, 10)
        return f"{digit}e{self.orders[row]}"

    def encode(self, raw: float) -> Segment:
        """Tokens of a number with their fixed encoding in the channel `number`."""
        ids = torch.tensor(self.ids(raw))
        return Segment(NUMBER, ids, channels={NUMBER: self.values(ids)})

    def decode(self, segment: Any) -> float | None:
        """The number of a segment or of ids; None where it is none."""
        ids: Any = segment.ids if isinstance(segment, Segment) else segment
        return self.number([int(index) for index in ids])

    def save(self, folder: Path | str) -> None:
        """Write the places, which a run's recipe holds too."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_text_whole(Path(folder) / FILE, json.dumps({"orders": self.orders}) + "\n")

    def load(self, folder: Path | str) -> Self:
        """Raises CheckpointError where `save` wrote another number of places."""
        path = Path(folder) / FILE
        try:
            held = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}.") from None
        if held != {"orders": self.orders}:
            raise CheckpointError(f"{path}: holds numbers of {held}, but the recipe asks for the orders {self.orders}.")
        return self
