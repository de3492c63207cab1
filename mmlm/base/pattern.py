"""Layer patterns as text: one letter a sublayer, groups repeated, and the allocator of hybrid models.

    M*-        three sublayers, each x + f(norm(x))
    (MM*-)x6   a group six times; groups nest

Source of letters and allocator: the hybrid models of NVIDIA's Megatron-LM (An Empirical Study of Mamba-based Language Models,
arXiv:2406.07887); details chosen here.
"""

from __future__ import annotations

import re

MAX_LAYERS = 4096
_COUNT = re.compile(r"x(\d{1,4})")


def letters(text: str) -> list[str]:
    """The letters of a pattern in order, groups written out. Raises ValueError naming the place of what cannot be read."""
    found, at = _group(text, 0, 0)
    if at < len(text):
        raise ValueError(f"pattern {text!r}: ')' at place {at + 1} closes no group")
    if not found:
        raise ValueError("a pattern needs at least one letter")
    return found


def _group(text: str, at: int, depth: int) -> tuple[list[str], int]:
    """The letters from a place to the end of the group, and the place of its closing bracket (or the end of the text)."""
    found: list[str] = []
    if depth > 16:
        raise ValueError(f"pattern {text[:40]!r} nests more than 16 groups")
    while at < len(text) and text[at] != ")":
        if text[at] == "(":
            inner, end = _group(text, at + 1, depth + 1)
            count = _COUNT.match(text, end + 1)
            if end == len(text) or not inner or count is None or not int(count[1]):
                raise ValueError(f"pattern {text!r}: the group at place {at + 1} must be written (letters)xN, such as (MM*-)x6")
            found += inner * int(count[1])
            at = count.end()
        else:
            if not text[at].isspace():
                found.append(text[at])
            at += 1
        if len(found) > MAX_LAYERS:
            raise ValueError(f"pattern {text[:40]!r} has more than {MAX_LAYERS} layers")
    return found, at


def allocate(num_layers: int, attention_share: float, feed_forward_share: float) -> str:
    """Letters M, * and - with attention and feed-forward layers spread evenly among Mamba layers.

    num_layers: of all kinds. attention_share, feed_forward_share: of all layers, 0 to 1, together at most 1.
    Raises ValueError for shares that cannot be.
    """
    if num_layers < 1 or attention_share < 0 or feed_forward_share < 0 or attention_share + feed_forward_share > 1:
        raise ValueError(
            f"{num_layers} layers with {attention_share:g} attention and {feed_forward_share:g} feed-forward: shares lie within 0 and 1 "
            "and sum to at most 1"
        )
    number = round(num_layers * attention_share)
    kinds = _spread(["M"] * num_layers, "*", (num_layers - number) / (number + 1), number)
    feeds = round(num_layers * feed_forward_share)
    places = [at for at, kind in enumerate(kinds) if kind == "M"]
    if feeds:
        per_feed = (len(places) - feeds) / feeds
        for at, kind in zip(places, _spread(["M"] * len(places), "-", per_feed, feeds), strict=True):
            kinds[at] = kind
    return "".join(kinds)


def _spread(kinds: list[str], kind: str, gap: float, number: int) -> list[str]:
    """`number` times `kind` in the list, after every `gap` others."""
    left, waited = number, gap
    for at in range(len(kinds)):
        if left and waited < 0.5:
            kinds[at] = kind
            waited += gap
            left -= 1
        else:
            waited -= 1
    return kinds
