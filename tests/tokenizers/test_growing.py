"""Text that grows token by token is the text of all tokens."""

from __future__ import annotations

import numpy as np
import pytest

from mmlm.tokenizers.config import TextConfig
from mmlm.tokenizers.growing import HALF, GrowingText

package = pytest.importorskip("tokenizers")
TEXTS = ["Grüße, 世界! 🎈 of ünïcode", "plain words and more words", "🎈🎈🎈", "á" * 9]


def by_bytes():
    tokenizer = TextConfig(vocabulary_size=300).build().fit(["words words and more of them"])
    return tokenizer.decode, lambda text: tokenizer.ids([text])[0], 256


def by_words():
    """Of SentencePiece's kind: the space before the first word is no part of the text."""
    core = package.Tokenizer(package.models.Unigram([(piece, -1.0) for piece in ("▁a", "▁b", "c", "▁", "▁de")], 0))
    core.pre_tokenizer, core.decoder = package.pre_tokenizers.Metaspace(), package.decoders.Metaspace()
    return (lambda ids: core.decode(list(ids))), lambda text: core.encode(text).ids, 5


@pytest.mark.parametrize("make", [by_bytes, by_words])
def test_pieces_are_the_whole_and_each_is_settled(make):
    decode, encode, size = make()
    draws = np.random.default_rng(0)
    runs = [encode(text) for text in TEXTS] + [draws.integers(0, size, 60).tolist() for _ in range(200)]
    for ids in runs:
        growing = GrowingText(decode)
        pieces = [growing.push(index) for index in ids]
        assert not any(piece.endswith(HALF) for piece in pieces)
        assert "".join(pieces) + growing.flush() == decode(ids)


def test_a_token_costs_as_much_at_the_end_as_at_the_beginning():
    decode, encode, _ = by_bytes()
    sizes = []

    def counted(ids):
        sizes.append(len(ids))
        return decode(ids)

    growing = GrowingText(counted)
    for index in encode(TEXTS[0] * 50):
        growing.push(index)
    assert len(sizes) > 1000 and max(sizes) <= 10
