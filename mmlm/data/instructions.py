"""Instructions to speak: words of style around what is to be said, which stands in quotation marks, before, between or after them.

say slowly in a high voice: «two people are waiting»
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.config.styled import PLAIN

QUOTED = re.compile(r"«([^«»]*)»|“([^“”]*)”|\"([^\"]*)\"")

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "pitch": {
        "low": ("in a low voice", "in a deep voice", "at a low pitch"),
        PLAIN: ("at a normal pitch", "in an ordinary voice"),
        "high": ("in a high voice", "with a high voice", "at a high pitch"),
    },
    "tempo": {
        "slow": ("slowly", "at a slow pace", "taking your time"),
        PLAIN: ("at a normal pace", "at the usual speed"),
        "fast": ("quickly", "at a fast pace", "in a hurry"),
    },
    "loudness": {
        "soft": ("softly", "quietly", "at a low volume"),
        PLAIN: ("at a normal volume", "neither loud nor soft"),
        "loud": ("loudly", "at a high volume", "so that all can hear it"),
    },
}
FRAMES = (
    "say {style}: {content}",
    "please speak {style} and say {content}",
    "{style}: {content}",
    "{content}, said {style}",
    "{content}, and please say it {style}",
)
FRAMES_BETWEEN = ("{first}, say {content}, {style}", "speak {first} when you say {content}, {style}")
NAMED_PLAIN = 0.5  # chance that an attribute is named whose level is plain


def bare(text: str) -> str:
    """The instruction that says nothing but the text."""
    return f"«{re.sub('[«»]', '', text)}»"


def content(instruction: str, where: str = "the instruction") -> str:
    """What stands in quotation marks: «», “” or "". Raises DataError where nothing does, or several parts do."""
    found = ["".join(part for part in match.groups() if part).strip() for match in QUOTED.finditer(instruction)]
    shown = instruction if len(instruction) <= 80 else f"{instruction[:80]}..."
    if len(found) != 1:
        what = "nothing" if not found else f"{len(found)} parts"
        raise DataError(f"{where}: what is to be said stands in quotation marks, as in say slowly: «hello»; {what} in {shown!r}.")
    if not re.search(r"\w", found[0]):
        raise DataError(f"{where}: the quotation marks in {shown!r} hold nothing that could be said.")
    return found[0]


def requoted(instruction: str, text: str) -> str:
    """The instruction with another text to be said, in the marks that samples have."""
    return QUOTED.sub(lambda _: bare(text), instruction, count=1)


def instruction_of(text: str, style: Mapping[str, str], rng: np.random.Generator) -> str:
    """An instruction that asks for a text in a style {attribute: level}; rng decides the wording. What is plain is named in half of them,
    and where all is plain something of it always."""
    names = [name for name in WORDS if name in style]
    named = [name for name in names if style[name] != PLAIN or rng.random() < NAMED_PLAIN]
    named = named or [names[int(rng.integers(len(names)))]]
    phrases = [str(rng.choice(WORDS[name][style[name]])) for name in (named[place] for place in rng.permutation(len(named)))]
    frames = FRAMES + FRAMES_BETWEEN if len(phrases) > 1 else FRAMES
    frame = frames[int(rng.integers(len(frames)))]
    first, rest = (phrases[:1], phrases[1:]) if frame in FRAMES_BETWEEN else ([], phrases)
    return frame.format(content=bare(text), style=" and ".join(rest), first="".join(first))
