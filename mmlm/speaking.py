"""A finished text-to-speech run, for applications: texts as sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmlm.base.errors import CheckpointError
from mmlm.recipe import Recipe
from mmlm.run import RECIPE, load_run
from mmlm.sound import Sound
from mmlm.tasks.tts import voice_of


class Speaker:
    """Speaks texts. run: the folder of a finished run. Raises CheckpointError where it does not speak."""

    def __init__(self, run: str | Path) -> None:
        recipe, self.task, self.model = load_run(run, fits=lambda task: task.type == "tts")
        if not hasattr(self.task, "speak"):
            raise CheckpointError(f"{run}: this run does not speak: its task is {recipe.tasks[0].type!r}.")

    @property
    def rate_hz(self) -> int:
        """Samples a second of what it says."""
        return int(self.task.codec.rate_hz)

    def say(
        self,
        texts: str | Sequence[str],
        *,
        voice: str | Path | Sound | None = None,
        voice_text: str = "",
        pace: float = 1.0,
        seed: int = 0,
        listen: Callable[[int, Sound], None] | None = None,
    ) -> list[Sound]:
        """The sound of each text. voice, voice_text: a recording of 0.5 to 15 seconds and what is said in it, whose voice is taken.

        pace: 2 is twice as fast.   listen: told (number of the text, its sound) while the others are still to come.
        Raises DataError for a text that cannot be spoken, naming it, and for a voice that cannot be used.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        spoken = self.task.speak(self.model, given, voice=voice_of(voice, voice_text), pace=pace, seed=seed, listen=listen)
        return [one.sound for one in spoken]

    def stream(
        self, text: str, *, voice: str | Path | Sound | None = None, voice_text: str = "", pace: float = 1.0, seed: int = 0
    ) -> Iterator[Sound]:
        """The sound of a text piece by piece, while the rest is being written: together what `say` gives. Needs task.order: delay.

        Raises what `say` does, and RecipeError for another model, when the first piece is asked for. Whoever asks for no more ends it.
        """
        yield from self.task.pieces(self.model, text, voice=voice_of(voice, voice_text), pace=pace, seed=seed)


def speaks(folder: str | Path) -> bool:
    """Whether a folder holds a run that speaks, by its recipe alone."""
    path = Path(folder) / RECIPE
    return path.is_file() and any(task.type == "tts" for task in Recipe.read(path).tasks)
