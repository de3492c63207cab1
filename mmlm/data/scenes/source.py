"""Drawn scenes as a source of pictures: any number for training, a fixed list to measure on."""

from __future__ import annotations

from functools import partial

import numpy as np

from mmlm.data.base import Numbered
from mmlm.data.config.scenes import ScenesConfig
from mmlm.data.pictures import Expression, Picture, Question, Thing
from mmlm.data.scenes.objects import arranged, picture
from mmlm.data.scenes.programs import Program, Scene
from mmlm.data.scenes.texts import caption, expression, question

SPLITS = ("train", "validate", "test", "compose")
EXPRESSIONS, QUESTIONS = 2, 2  # drawn for a scene


class Scenes(Numbered[Picture]):
    """Scenes of a split. A scene is a function of the split, its number and the config."""

    def __init__(self, config: ScenesConfig) -> None:
        self.config = config

    def record(self, number: int) -> Picture:
        """The scene of a number."""
        return self.with_programs(number)[0]

    def with_programs(self, number: int) -> tuple[Picture, Scene, list[Program]]:
        """(a scene, its things, the programs of its expressions and then of its questions)."""
        config = self.config
        rng = np.random.default_rng([SPLITS.index(config.split), number])
        width, height = config.width, config.height
        if config.sides is not None:
            width, height = (int(side) for side in rng.integers(config.sides[0], config.sides[1] + 1, 2))
        scene = Scene(arranged(rng, config, width, height), width, height)
        captions = (caption(rng, scene),)
        named = {found[0].text: found for found in (expression(rng, scene) for _ in range(EXPRESSIONS)) if found is not None}
        asked = {found[0].text: found for found in (question(rng, scene) for _ in range(QUESTIONS)) if found is not None}
        expressions: tuple[Expression, ...] = tuple(one for one, _ in named.values())
        questions: tuple[Question, ...] = tuple(one for one, _ in asked.values())
        programs = [program for _, program in [*named.values(), *asked.values()]]
        drawn = partial(_pixels, [SPLITS.index(config.split), number, 1], scene, config.noise)
        things = tuple(Thing(f"{item.color} {item.shape}", item.box) for item in scene.items)
        where = f"scenes, {config.split}, number {number}"
        return Picture(f"{config.split} {number}", where, width, height, drawn, captions, expressions, questions, things), scene, programs


def _pixels(seed: list[int], scene: Scene, noise: float) -> np.ndarray:
    return picture(np.random.default_rng(seed), scene.items, scene.width, scene.height, noise)
