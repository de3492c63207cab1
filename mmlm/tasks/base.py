"""What a task is to the code that trains, validates, evaluates and serves it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from mmlm.base.errors import RecipeError, unknown_name
from mmlm.data.base import Draws
from mmlm.data.episodes import Episode
from mmlm.model import MultimodalLM
from mmlm.sound import Sound
from mmlm.stream import Stream
from mmlm.training.loader import Samples


def tokenizer_of(tokenizers: Mapping[str, Any], name: str, key: str, kind: type | tuple[type, ...], types: str) -> Any:
    """The tokenizer that a key of a task names. Raises RecipeError where there is none, or one of another type; types: those it may be."""
    if name not in tokenizers:
        raise RecipeError(f"tokenizers: {unknown_name('tokenizer', name, tokenizers)}")
    if not isinstance(tokenizers[name], kind):
        raise RecipeError(f"{key}: tokenizers.{name} must be of the type {types}.")
    return tokenizers[name]


class Task(Protocol):
    """What training and validation need of a task. A record is what its samples are made from; an output is what a model makes of one."""

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Vocabulary ranges and their sizes."""

    @property
    def features(self) -> Mapping[str, int]:
        """Channels of the features that each encoder reads."""

    @property
    def tokenizers(self) -> Mapping[str, Any]:
        """The tokenizers of the recipe, by name."""

    @property
    def asks(self) -> Any:
        """What a source is told when it draws a record, such as how many rows a task has."""

    @property
    def metrics(self) -> Sequence[str]:
        """The names that `score` gives."""

    def example(self, record: Any, rng: np.random.Generator) -> Stream | None:
        """The stream of a training sample, or None where it does not fit the context."""

    def arrange(self, streams: Sequence[Stream]) -> list[Stream]:
        """The streams of a batch as the documents that are packed."""

    def texts(self, record: Any, rng: np.random.Generator) -> list[str]:
        """What a tokenizer may be fitted on."""

    def title(self, record: Any) -> str:
        """What a record asks for, in one line."""

    def shown(self, record: Any) -> str:
        """A record as the model reads it, for people to look at."""

    def predict(self, model: MultimodalLM, records: Sequence[Any]) -> list[Any]:
        """An output for each record, whose answer the model does not read."""

    def score(self, outputs: Sequence[Any], records: Sequence[Any]) -> dict[str, float]:
        """How good outputs are, by the names of `metrics`; quick, for validation while training."""

    def write_samples(self, model: MultimodalLM, records: Sequence[Any], folder: Path) -> None:
        """Files in a folder that show a person what the model read, what it made of it, and the truth."""


class UsualTask:
    """Base of tasks, with what most of them do alike."""

    over = "nothing"

    def arrange(self, streams: Sequence[Any]) -> list[Any]:
        """Each by itself."""
        return list(streams)

    def texts(self, record: Any, rng: np.random.Generator) -> list[str]:
        """None."""
        return []

    def curves(self, outputs: Sequence[Any], records: Sequence[Any]) -> dict[str, list[tuple[float, float]]]:
        """None."""
        return {}


class Measured(Task, Protocol):
    """A task whose finished model is measured on records, by the metrics of `score`."""

    @property
    def over(self) -> str:
        """What its curves run over."""

    def baselines(self, records: Sequence[Any]) -> dict[str, dict[str, float]]:
        """What has to be beaten: by name, some of the metrics."""

    def curves(self, outputs: Sequence[Any], records: Sequence[Any]) -> dict[str, list[tuple[float, float]]]:
        """How good outputs are over a quantity, by what is drawn: (quantity, value) of each bin."""


@runtime_checkable
class HasTwins(Protocol):
    """A task whose model is also measured without what it should look at: what is right then was known without looking."""

    def twins(self, model: MultimodalLM, records: Sequence[Any]) -> dict[str, list[Any]]:
        """Outputs as `predict` gives them, by the name of the baseline that they are."""


GIVEN = "what was given"  # the baseline that leaves everything as it is
TRUTH, TRUE = "the true answers", "the true sound"
RESYNTHESIS, CODEC_ALONE = "the recordings through the codec", "the codec alone"
CEILINGS = frozenset({TRUTH, TRUE, RESYNTHESIS, CODEC_ALONE})  # told among the baselines, but what no model can be better than


@dataclass(frozen=True)
class Heard:
    """What there is to hear of one record. made: by the model.   true: how it should sound, None where nobody knows.   given: what the
    model was asked to mend, None where nothing was.   text, language: what is said, empty where unknown.   is_aligned: sample i of `made`
    should be sample i of `true`.   marks: what is said in `made` until how many seconds, such as its phonemes, where the model tells.
    style: {attribute: (level that was asked for, how far apart its levels are)}, see `mmlm.data.styled`.   attention: finds
    what the model looked at while it wrote `made`, such as phonemes, and how much, [e, t] over its time; called for what is drawn alone."""

    made: Sound
    true: Sound | None = None
    given: Sound | None = None
    text: str = ""
    language: str = ""
    is_aligned: bool = True
    marks: Sequence[tuple[str, float]] = ()
    style: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    attention: Callable[[], tuple[Sequence[str], Tensor] | None] | None = None


@runtime_checkable
class MakesSound(Protocol):
    """A task whose outputs can be heard, so that independent judges measure them. Its config says `makes_sound`."""

    def heard(self, outputs: Sequence[Any], records: Sequence[Any]) -> list[Heard]:
        """What there is to hear of each output."""

    def heard_baselines(self, records: Sequence[Any]) -> dict[str, list[Sound]]:
        """What has to be beaten: by name, the sound that it makes of each record. What was given is judged without being named here."""


@runtime_checkable
class Enhances(Protocol):
    """A task whose finished model mends sounds."""

    @property
    def rate_hz(self) -> int:
        """Samples a second that `enhance` reads and writes."""

    @property
    def window_seconds(self) -> float:
        """Longest sound that `enhance` is to be given."""

    def enhance(self, model: Any, sounds: Sequence[Sound]) -> list[Sound]:
        """Each sound, at `rate_hz`, as it should be, with as many samples."""


@runtime_checkable
class TestsApart(Protocol):
    """A task that makes something else of test records than of training records."""

    def begin_tests(self) -> None:
        """Called before the first test record."""


@runtime_checkable
class LearnsPriors(Protocol):
    """A task with a baseline that learns from records of training."""

    def learn_priors(self, records: Iterable[Any]) -> None:
        """Learn it; called before anything is measured. The records are made as they are asked for."""


@runtime_checkable
class Pictured(Protocol):
    """A task whose report shows pictures of what was made."""

    def pictures(self, outputs: Sequence[Any], records: Sequence[Any]) -> list[str]:
        """Some of them, as elements of HTML or SVG."""


@runtime_checkable
class KnowsTraining(Protocol):
    """A task that compares a finished model with what is fitted on its training records."""

    def take_training(self, records: Sequence[Any]) -> None:
        """The records of the sources of training that can tell them, before the first test record."""


@runtime_checkable
class MeetsSources(Protocol):
    """A task that takes something, such as its vocabulary, from the configs of the sources it will read."""

    def meet(self, sources: Sequence[Any]) -> None:
        """Take it; called before anything else."""


@runtime_checkable
class MeetsModel(Protocol):
    """A task that can tell whether the model of a recipe reads what the task gives it."""

    def meet_model(self, model: MultimodalLM) -> None:
        """Raises RecipeError where it does not; called before anything is trained."""


@runtime_checkable
class MeasuresMore(Protocol):
    """A task whose `score` gives more than `metrics` where records allow it."""

    def further_metrics(self, records: Sequence[Any]) -> Sequence[str]:
        """The names of what it gives of these records beside `metrics`."""


@runtime_checkable
class ReadsAhead(Protocol):
    """A task that makes tokens of all records of a source before samples are drawn from it."""

    def read_ahead(self, records: Sequence[Any], progress: Callable[[int, int], None] | None = None) -> None:
        """Make them; what was made before is kept. progress(done, in all)."""


@runtime_checkable
class FitsSeveral(Protocol):
    """A task whose tokenizers are fitted on different texts of its records."""

    def texts_of(self, name: str, record: Any, rng: np.random.Generator) -> list[str]:
        """What the tokenizer of this name may be fitted on."""


@runtime_checkable
class GivesSounds(Protocol):
    """A task whose records have sounds, which some tokenizers are fitted on (`is_fitted_on_sounds`)."""

    def sounds(self, record: Any) -> list[Sound]:
        """The sounds of a record."""


@runtime_checkable
class OwnNetwork(Protocol):
    """A task that trains a network of its own instead of a decoder, such as a tokenizer. Its config says `has_own_network`."""

    @property
    def trains(self) -> Collection[str]:
        """The tokenizers of the recipe that this run trains; the others are fitted or read before."""

    def learner(self, seed: int) -> Any:
        """What the trainer calls, with first weights that the seed decides: `learner(batch)` and `learner.loss_weights(batch)` as the
        trainer wants them, and `learner.model`, the network that `predict` and `write_samples` get, which knows its `device`."""

    def samples(self, records: Draws) -> OwnSamples:
        """What it is trained on, or validated on, made from records."""

    def save(self, folder: Path) -> None:
        """Write into a run folder what `load` reads, beside the tokenizers, which are saved anyway."""

    def load(self, folder: Path) -> Any:
        """The network of a finished run, whose tokenizers have been read."""


class OwnSamples(Samples, Protocol):
    """Samples that also serve validation, which needs the records they are made from."""

    def draw(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """One record and its sample."""


class TabularLike(Task, Protocol):
    """A task that predicts a column from example rows."""

    @property
    def max_classes(self) -> int | None:
        """Most classes that a prediction can choose from; None for any number."""

    def predict_proba(self, model: MultimodalLM, problem: Episode) -> np.ndarray:
        """Probabilities [queries, classes] of the rows after the examples."""
