"""Text of tokens that come one by one, as all of them together decode, at a cost for each that does not grow with their number.

What a token says may hang on the one before it (a space that only the first word lacks), and bytes of a character may be parted between
tokens. So a token is decoded behind the piece before it, and nothing is told while the end of it is half a character.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\ufffd"  # what the bytes of an unfinished character decode to


class GrowingText:
    """Told ids, it gives what they add. decode: the text of some ids."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []  # the piece told last, and the tokens since
        self.num_told = 0  # tokens of these that belong to it
        self.told = ""  # what they decode to

    def push(self, index: int) -> str:
        """What the next id adds; nothing where it ends in half a character."""
        self.ids.append(index)
        text = self.decode(self.ids)
        return "" if text.endswith(HALF) else self._tell(text)

    def flush(self) -> str:
        """What is left when no more ids come: halves of characters."""
        return self._tell(self.decode(self.ids))

    def _tell(self, text: str) -> str:
        piece = text[len(self.told) :]
        if piece:
            self.ids = self.ids[self.num_told :]
            self.num_told, self.told = len(self.ids), self.decode(self.ids)
        return piece
