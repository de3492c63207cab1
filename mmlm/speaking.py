"""A finished text-to-speech run, for applications: texts as sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from mmlm.base.errors import CheckpointError, DataError
from mmlm.data.speech import Utterance
from mmlm.recipe import Recipe
from mmlm.run import RECIPE, load_run
from mmlm.sound import Sound

SHORTEST_VOICE = 0.5  # seconds in which a voice can be heard
LONGEST_VOICE = 15.0


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
        spoken = self.task.speak(self.model, given, voice=_voice(voice, voice_text), pace=pace, seed=seed, listen=listen)
        return [one.sound for one in spoken]

    def stream(
        self, text: str, *, voice: str | Path | Sound | None = None, voice_text: str = "", pace: float = 1.0, seed: int = 0
    ) -> Iterator[Sound]:
        """The sound of a text piece by piece, while the rest is being written: together what `say` gives. Needs task.order: delay.

        Raises what `say` does, and RecipeError for another model, when the first piece is asked for. Whoever asks for no more ends it.
        """
        given: SimpleQueue[Sound | Exception | None] = SimpleQueue()
        unwanted = Event()

        def hear(number: int, sound: Sound) -> None:
            if unwanted.is_set():
                raise _Unwanted
            given.put(sound)

        def work() -> None:
            try:
                self.task.speak(self.model, [text], voice=_voice(voice, voice_text), pace=pace, seed=seed, hear=hear)
                given.put(None)
            except Exception as error:  # raised where the pieces are asked for
                given.put(error)

        worker = Thread(target=work, daemon=True)
        worker.start()
        try:
            while (piece := given.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            unwanted.set()
            worker.join()


class _Unwanted(Exception):
    """Ends speech that nobody listens to any more."""


def speaks(folder: str | Path) -> bool:
    """Whether a folder holds a run that speaks, by its recipe alone."""
    path = Path(folder) / RECIPE
    return path.is_file() and any(task.type == "tts" for task in Recipe.read(path).tasks)


def _voice(voice: str | Path | Sound | None, text: str) -> Utterance | None:
    if voice is None:
        if text:
            raise DataError("voice_text says what is heard in a voice, but no voice is given.")
        return None
    where = "the voice" if isinstance(voice, Sound) else str(voice)
    if not text.strip():
        raise DataError(f"{where}: give voice_text, what is said in it.")
    given: dict[str, Any] = {"held": voice} if isinstance(voice, Sound) else {"path": Path(voice)}
    found = Utterance(id=where, where=where, text=text, **given)
    if not SHORTEST_VOICE <= found.seconds <= LONGEST_VOICE:
        raise DataError(f"{where}: a voice lasts {SHORTEST_VOICE:g} to {LONGEST_VOICE:g} s, but this one {found.seconds:.2f} s.")
    return found
