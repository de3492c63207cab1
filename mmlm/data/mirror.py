"""Left and right changed places: boxes, and the words that tell of sides.

A text is mirrored only where every left and right in it is surely a side ("left of", "top right", "the leftmost", "on the right"), and
where nothing is said of what looks otherwise in a mirror (writing, clocks, points of the compass). Else there is no mirrored text.
"""

from __future__ import annotations

import re

from mmlm.tokenizers.boxes import Box, Grounded, Phrase

SIDE = re.compile(r"(?<![a-z])(left|right)(most|wards?)?(?![a-z])", re.IGNORECASE)
HIDDEN = re.compile(r"left|right", re.IGNORECASE)  # also within words, such as leftover and upright
UNSURE = re.compile(
    r"\b(?:anti|counter)?-?clock(?:s|wise)?\b|\b(?:north|south)?-?(?:east|west)(?:ern|wards?)?\b|\b(?:letters?|words?|texts?|reads?|reading"
    r"|says?|saying|signs?|numbers?|numerals?|digits?|logos?|written|writing|lettering|captions?|port|starboard)\b|[\"\u201c\u201d]",
    re.IGNORECASE,
)
BEFORE = re.compile(
    r"(?:\b(?:top|bottom|upper|lower|far|extreme|on|from)|\b(?:to|on|at|from|towards?|in) (?:the|its|his|her|their|your|our|my))[\s-]+$"
)
AFTER = re.compile(r"[\s-]+(?:of|hand|side|half|third|corner|edge|part|end)\b")
THE = re.compile(r"\b(?:the|most)\s+$")
OTHER = re.compile(r"[\s-]*(?:hand(?:ed|er)|over|now|away|behind|angles?|answer|way|time|order|thing|choice|place|size|kind|word|to)\b")
SMALL = re.compile(r"[\s-]+(?:over|behind|alone|by|with|in|on|at|out|to|now|away|here|there|after|before|up|down|next)\b")
SWAPPED = {"left": "right", "right": "left"}


def mirrored_box(share: Box) -> Box:
    """A box in shares of the sides, seen in a mirror."""
    x1, y1, x2, y2 = share
    return 1 - x2, y1, 1 - x1, y2


def mirrored(said: Grounded) -> Grounded | None:
    """A text with its boxes, in shares, for the mirrored picture; None where its words cannot be mirrored for sure.

    The words of a caption keep their order, also where it went from the left to the right.
    """
    found = list(SIDE.finditer(said.text))
    if UNSURE.search(said.text) or len(found) != len(HIDDEN.findall(said.text)) or not all(_is_side(said.text, each) for each in found):
        return None
    parts, at, ends = list[str](), 0, list[tuple[int, int]]()
    for match in found:
        word = SWAPPED[match[1].lower()]
        parts += [said.text[at : match.start()], word.upper() if match[1].isupper() else word.title() if match[1][0].isupper() else word]
        at = match.end(1)
        ends.append((at, len(word) - len(match[1])))
    phrases = []
    for phrase in said.phrases:
        start, end = (place + sum(by for until, by in ends if until <= place) for place in (phrase.start, phrase.end))
        phrases.append(Phrase(start, end, tuple(map(mirrored_box, phrase.boxes))))
    return Grounded("".join(parts) + said.text[at:], tuple(phrases))


def _is_side(text: str, match: re.Match[str]) -> bool:
    """Whether a left or right is surely a side."""
    before, after = text[: match.start()].lower(), text[match.end() :].lower()
    if match[2] or not re.search(r"\w", before + after):
        return True
    if OTHER.match(after) and not AFTER.match(after):
        return False
    if BEFORE.search(before) or AFTER.match(after):
        return True
    if not re.match(r"\s+\w", after):
        return False
    return bool(THE.search(before)) or (not before.strip() and not SMALL.match(after))
