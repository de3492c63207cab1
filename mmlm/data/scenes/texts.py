"""Captions, expressions and questions about a scene. Each expression and question is checked by running its program."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from mmlm.data.pictures import Expression, Question
from mmlm.data.scenes.objects import COLORS, SHAPES, Item
from mmlm.data.scenes.programs import ALL, KEYS, MOST, RELATIONS, TRIES, Program, Scene, Unclear
from mmlm.tokenizers.boxes import Grounded, Phrase

ORDER = ("size", "fill", "color", "shape")  # of the words of a phrase
SHORT = ("{}.", "{}, and nothing else.", "There is {}.", "A picture of {}.")
MIDDLE = ("This picture shows {}.", "One can see {}.", "The scene holds {}.", "Here are {}.")
LONG = ("A drawing with {n}: {}.", "{n} in all: {}.", "Someone drew {}.", "On a light ground there is {}.")
NUMBERS = ("no things", "one thing", "two things", "three things", "four things", "five things", "six things", "seven things",
           "eight things", "nine things")  # fmt: skip
MAX_COUNT = 6


def words(item: Item, keys: Sequence[str]) -> str:
    """A thing by some of its properties, such as 'large red circle'; without a shape it is a thing."""
    said = [getattr(item, key) for key in ORDER if key in keys]
    return " ".join(said if "shape" in keys else [*said, "thing"])


def article(phrase: str) -> str:
    """a or an."""
    return "an" if phrase[0] in "aeiou" else "a"


def plural(phrase: str) -> str:
    """Several of them."""
    return f"{phrase}es" if phrase.endswith("s") else f"{phrase}s"


def meaning(item: Item, keys: Sequence[str], of: Program = ALL) -> Program:
    """The program for the things that share these properties with one."""
    for key in keys:
        of = ("filter", key, getattr(item, key), of)
    return of


def caption(rng: np.random.Generator, scene: Scene) -> Grounded:
    """A sentence that names every thing, each phrase with its box; from short, with colour and shape, to long, with all."""
    items, kind = scene.items, int(rng.integers(3))
    keys = (("color", "shape"), ("size", "color", "shape"), KEYS)[kind]
    if kind == 1:
        order = sorted(range(len(items)), key=lambda number: -items[number].radius)
    else:
        order = sorted(range(len(items)), key=lambda number: (round(3 * items[number].center[1] / scene.height), items[number].center[0]))
    template = (SHORT, MIDDLE, LONG)[kind][int(rng.integers(4))]
    before, after = template.replace("{n}", NUMBERS[len(items)]).split("{}")
    text, phrases = before, []
    for place, number in enumerate(order):
        said = words(items[number], keys)
        text += ("" if place == 0 else " and " if place == len(order) - 1 else ", ") + f"{article(said)} "
        phrases.append(Phrase(len(text), len(text) + len(said), (items[number].box,)))
        text += said
    text += after
    return Grounded(text[0].upper() + text[1:], tuple(phrases))


def expression(rng: np.random.Generator, scene: Scene) -> tuple[Expression, Program] | None:
    """Words for one thing alone: the fewest properties that do, else the most extreme of its kind, else its place beside another."""
    number = int(rng.integers(len(scene.items)))
    found = _by_properties(rng, scene, number) or _by_extreme(rng, scene, number) or _by_relation(rng, scene, number)
    if found is None:
        return None
    text, program = found
    return Expression(text, scene.items[number].box), program


def _by_properties(rng: np.random.Generator, scene: Scene, number: int) -> tuple[str, Program] | None:
    item = scene.items[number]
    for count in (1, 2, 3):
        fitting = [keys for keys in combinations(KEYS, count) if "fill" not in keys and scene.means(meaning(item, keys), number)]
        if fitting:
            keys = fitting[int(rng.integers(len(fitting)))]
            return f"the {words(item, keys)}", meaning(item, keys)
    return None


def _by_extreme(rng: np.random.Generator, scene: Scene, number: int) -> tuple[str, Program] | None:
    item = scene.items[number]
    options = [(kind, keys) for kind in MOST for keys in (("shape",), ("color",), ("color", "shape"))]
    fitting = [(kind, keys) for kind, keys in options if scene.means(("most", kind, meaning(item, keys)), number)]
    if not fitting:
        return None
    kind, keys = fitting[int(rng.integers(len(fitting)))]
    return f"the {kind} {words(item, keys)}", ("most", kind, meaning(item, keys))


def _by_relation(rng: np.random.Generator, scene: Scene, number: int) -> tuple[str, Program] | None:
    item, fitting = scene.items[number], []
    for anchor in range(len(scene.items)):
        if anchor == number or (named := _by_properties(rng, scene, anchor)) is None:
            continue
        for relation in RELATIONS:
            for keys in (("shape",), ("color", "shape")):
                program = meaning(item, keys, ("relate", relation, named[1]))
                if scene.means(program, number):
                    fitting.append((f"the {words(item, keys)} {relation} {named[0]}", program))
    return fitting[int(rng.integers(len(fitting)))] if fitting else None


def question(rng: np.random.Generator, scene: Scene) -> tuple[Question, Program] | None:
    """A question with an answer that the scene decides; kinds are drawn alike, and so are the answers of a kind."""
    makers = (_exist, _count, _query, _greater, _third, _two_steps)
    for _ in range(TRIES):
        asked = makers[int(rng.integers(len(makers)))](rng, scene)
        if asked is None:
            continue
        text, kind, program = asked
        try:
            return Question(text, scene.answer(program), kind), program
        except Unclear:
            continue
    return None


def _chosen(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _random_filter(rng: np.random.Generator, scene: Scene) -> tuple[str, Program]:
    """A kind of thing, drawn without looking."""
    color, shape = _chosen(rng, list(COLORS)), _chosen(rng, SHAPES)
    both: Program = ("filter", "shape", shape, ("filter", "color", color, ALL))
    return [(f"{color} {shape}", both), (f"{color} thing", ("filter", "color", color, ALL)), (shape, ("filter", "shape", shape, ALL))][
        int(rng.integers(3))
    ]


def _present_filter(rng: np.random.Generator, scene: Scene) -> tuple[str, Program]:
    """A kind of thing that there is."""
    item = scene.items[int(rng.integers(len(scene.items)))]
    keys = (("color", "shape"), ("color",), ("shape",))[int(rng.integers(3))]
    return words(item, keys), meaning(item, keys)


def _kind_of(rng: np.random.Generator, scene: Scene) -> tuple[str, Program]:
    return _present_filter(rng, scene) if rng.random() < 0.5 else _random_filter(rng, scene)


def _exist(rng: np.random.Generator, scene: Scene) -> tuple[str, str, Program] | None:
    wanted = rng.random() < 0.5
    said, of = _present_filter(rng, scene) if wanted else _random_filter(rng, scene)
    if bool(scene.things(of)) != wanted:
        return None
    return f"Is there {article(said)} {said}?", "exist", ("exist", of)


def _count(rng: np.random.Generator, scene: Scene) -> tuple[str, str, Program] | None:
    said, of = ("thing", ALL) if rng.random() < 0.3 else _kind_of(rng, scene)
    return (f"How many {plural(said)} are there?", "count", ("count", of)) if len(scene.things(of)) <= MAX_COUNT else None


def _query(rng: np.random.Generator, scene: Scene) -> tuple[str, str, Program] | None:
    key = ("color", "shape", "size")[int(rng.integers(3))]
    item = scene.items[int(rng.integers(len(scene.items)))]
    keys = [each for each in ("color", "shape", "size") if each != key and rng.random() < 0.7]
    if not keys or (key == "shape" and "color" not in keys and "size" not in keys):
        return None
    return f"What {key} is the {words(item, keys)}?", f"query {key}", ("query", key, meaning(item, keys))


def _greater(rng: np.random.Generator, scene: Scene) -> tuple[str, str, Program] | None:
    (one, of_one), (other, of_other) = _kind_of(rng, scene), _kind_of(rng, scene)
    wanted, counts = rng.random() < 0.5, (len(scene.things(of_one)), len(scene.things(of_other)))
    if one == other or (counts[0] > counts[1]) != wanted or counts == (0, 0):
        return None
    return f"Are there more {plural(one)} than {plural(other)}?", "compare counts", ("greater", of_one, of_other)


def _third(rng: np.random.Generator, scene: Scene) -> tuple[str, str, Program] | None:
    number = int(rng.integers(len(scene.items)))
    named = _by_properties(rng, scene, number)
    return None if named is None else (f"Which third of the picture is {named[0]} in?", "position", ("third", named[1]))


def _two_steps(rng: np.random.Generator, scene: Scene) -> tuple[str, str, Program] | None:
    if len(scene.items) < 2:
        return None
    named = _by_properties(rng, scene, int(rng.integers(len(scene.items))))
    if named is None:
        return None
    relation, key = RELATIONS[int(rng.integers(4))], ("color", "shape", "size")[int(rng.integers(3))]
    return f"What {key} is the thing {relation} {named[0]}?", "two steps", ("query", key, ("relate", relation, named[1]))
