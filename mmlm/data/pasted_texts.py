"""Captions and expressions of pictures with cut-outs. What an expression says is a program that gives its thing and no other.

key: `name` calls things as their captions do, `kind` by their class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmlm.data.pasted import Pasted
from mmlm.data.pictures import Expression
from mmlm.data.scenes.programs import ALL, MOST, RELATIONS, Program, Scene, related
from mmlm.tokenizers.boxes import Grounded, Phrase

LISTS = ("{}.", "There is {}.", "A picture of {}.", "One can see {}.")
CHAIN = 3  # most things whose places are told one after the other


def caption(rng: np.random.Generator, scene: Scene[Pasted], key: str) -> Grounded:
    """A sentence that names every thing, each phrase with its box: a list in reading order, or where each stands, the largest first."""
    by_size = sorted(scene.items, key=lambda item: -item.radius)
    if len(by_size) in range(2, CHAIN + 1) and rng.random() < 0.5:
        steps = [_clearest(scene, one, other) for one, other in zip(by_size, by_size[1:], strict=False)]
        if all(steps):
            return _sentence(["", *(f" {step} " for step in steps), "."], by_size, key)
    order = sorted(scene.items, key=lambda item: (round(3 * item.center[1] / scene.height), item.center[0]))
    before, after = LISTS[int(rng.integers(len(LISTS)))].split("{}")
    between = [" and " if at == len(order) - 1 else ", " for at in range(1, len(order))]
    return _sentence([before, *between, after], order, key)


def _sentence(joints: Sequence[str], items: Sequence[Pasted], key: str) -> Grounded:
    """joints[0], the first thing, joints[1], the second one, ..., the last of joints."""
    text, phrases = joints[0], []
    for item, joint in zip(items, joints[1:], strict=True):
        article, name = _called(item, key)
        text += f"{article} " if article else ""
        phrases.append(Phrase(len(text), len(text) + len(name), (item.box,)))
        text += name + joint
    return Grounded(text[0].upper() + text[1:], tuple(phrases))


def _called(item: Pasted, key: str) -> tuple[str, str]:
    cut_out = item.cut_out
    return (cut_out.article, cut_out.name) if key == "name" else (cut_out.kind_article, cut_out.kind)


def _clearest(scene: Scene[Pasted], one: Pasted, other: Pasted) -> str | None:
    """On which side of another a thing stands: along the direction in which they are further apart; None where that is not clear."""
    (x, y), (u, v) = one.center, other.center
    across = abs(x - u) / scene.width >= abs(y - v) / scene.height
    relation = ("left of" if x < u else "right of") if across else ("above" if y < v else "below")
    return relation if related([one, other], relation, 0, 1, scene.width, scene.height) else None


def expression(rng: np.random.Generator, scene: Scene[Pasted], key: str) -> Expression | None:
    """Words for one thing alone: its name, or where it stands among others or beside another; None where no words are clear."""
    number = int(rng.integers(len(scene.items)))
    forms = (_by_name, _by_extreme, _by_relation)
    for form in rng.permutation(len(forms)).tolist():
        if fitting := forms[form](scene, number, key):
            return Expression(fitting[int(rng.integers(len(fitting)))][0], scene.items[number].box)
    return None


def programs(scene: Scene[Pasted], number: int, key: str) -> list[tuple[str, Program]]:
    """All words for a thing alone, each with its program."""
    return [*_by_name(scene, number, key), *_by_extreme(scene, number, key), *_by_relation(scene, number, key)]


def _word(scene: Scene[Pasted], number: int, key: str) -> tuple[str, Program]:
    value = str(getattr(scene.items[number], key))
    return value, ("filter", key, value, ALL)


def _by_name(scene: Scene[Pasted], number: int, key: str) -> list[tuple[str, Program]]:
    word, program = _word(scene, number, key)
    return [(f"the {word}", program)] if scene.means(program, number) else []


def _by_extreme(scene: Scene[Pasted], number: int, key: str) -> list[tuple[str, Program]]:
    options = [(f"the {most} {word}", ("most", most, of)) for most in MOST for word, of in (_word(scene, number, key), ("thing", ALL))]
    return [(said, program) for said, program in options if scene.means(program, number)]


def _by_relation(scene: Scene[Pasted], number: int, key: str) -> list[tuple[str, Program]]:
    word, _ = _word(scene, number, key)
    found = []
    for anchor in range(len(scene.items)):
        for named, of in [] if anchor == number else _by_name(scene, anchor, key):
            for relation in RELATIONS:
                beside: Program = ("relate", relation, of)
                for said, program in ((word, ("filter", key, word, beside)), ("thing", beside)):
                    if scene.means(program, number):
                        found.append((f"the {said} {relation} {named}", program))
    return found
