"""From a recipe to a run folder: the place that puts task, data, model, objective and trainer together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mmlm.adapt import adapt, adapted_layers, merge_lora, save_adapters
from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.base.files import write_text_whole
from mmlm.compression.surgery import replace_as
from mmlm.data.base import KeepsBack, Listed, Source
from mmlm.data.config import TableFileConfig
from mmlm.data.episodes import OneTable
from mmlm.data.real_tables import load_real_tables
from mmlm.data.tables import Table
from mmlm.evaluation.card import write_card
from mmlm.evaluation.judges import Judges
from mmlm.evaluation.measure import measure, measured_summary, records_of, source_names
from mmlm.evaluation.measured_report import write_measured_report
from mmlm.evaluation.protocol import compare, summary
from mmlm.evaluation.report import write_report
from mmlm.evaluation.validation import Validation
from mmlm.interop.load import load
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.objectives.base import Objective
from mmlm.recipe import Recipe
from mmlm.stream import Batch, Stream
from mmlm.tasks.base import GivesSounds, MeetsModel, MeetsSources, OwnNetwork, ReadsAhead, TabularLike, Task, TestsApart
from mmlm.training.config import AdaptConfig, LoraConfig, TrainConfig
from mmlm.training.learner import Learner
from mmlm.training.trainer import Result, Trainer
from mmlm.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

RECIPE, METRICS, TOKENIZERS, ADAPTER = "recipe.yaml", "metrics.json", "tokenizers", "adapter"
ENDLESS = 1 << 40  # samples that a source of drawn tasks claims to have
TRIES = 50
FITTED_ON = 500  # drawn tasks whose texts a tokenizer is fitted on


class DrawnSamples:
    """Streams of records drawn from weighted sources; sample number and seed decide everything."""

    def __init__(self, task: Task, objective: Objective, vocabulary: Vocabulary, records: Records) -> None:
        self.task, self.objective, self.vocabulary, self.records = task, objective, vocabulary, records
        self.fingerprint = records.fingerprint
        if isinstance(task, ReadsAhead):
            task.read_ahead(records.everything())

    def __len__(self) -> int:
        return ENDLESS

    def sample(self, index: int, rng: np.random.Generator) -> Stream:
        """One record as a stream, prepared by the objective. Raises DataError where none fits the context."""
        return self.draw(rng)[1]

    def draw(self, rng: np.random.Generator) -> tuple[Any, Stream]:
        """The same with the record itself."""
        for _ in range(TRIES):
            record = self.records.draw(rng)
            stream = self.task.example(record, rng)
            if stream is not None:
                return record, self.objective.prepare(stream, self.vocabulary, rng)
        raise DataError(f"none of {TRIES} drawn records has a part that fits the context of the task.")

    def collate(self, items: list[Stream]) -> Batch:
        """Streams as one packed batch."""
        return self.objective.collate(self.task.arrange(items), self.vocabulary)


class Records:
    """Records from weighted sources. asks: what they are told when they draw. origin: says which they are and what is made of them, for
    the fingerprint."""

    def __init__(self, sources: Sequence[tuple[Source, float]], asks: Any, origin: Any = None) -> None:
        self.asks, self.fingerprint = asks, repr(origin)
        self.sources = [source for source, _ in sources]
        weights = np.array([weight for _, weight in sources])
        self.borders = np.cumsum(weights / weights.sum())

    @classmethod
    def of_training(cls, recipe: Recipe, task: Task) -> Records:
        """Those of data.train."""
        sources = [(source.build(), source.weight) for source in recipe.data.train]
        return cls(sources, task.asks, ({"train": [source.model_dump() for source in recipe.data.train]}, *cls._made(recipe)))

    @staticmethod
    def _made(recipe: Recipe) -> tuple[Any, Any]:
        return recipe.tasks[0].model_dump(), {name: config.model_dump() for name, config in recipe.tokenizers.items()}

    def for_validation(self, recipe: Recipe) -> Records:
        """Those of data.validate, and of what these sources, of data.train, keep back. Raises RecipeError without any."""
        sources: list[tuple[Source, float]] = [(source.build(), source.weight) for source in recipe.data.validation]
        for source, config in zip(self.sources, recipe.data.train, strict=True):
            kept = source.kept_back() if isinstance(source, KeepsBack) else None
            sources += [] if kept is None else [(kept, config.weight)]
        if not sources:
            raise RecipeError("data.validate: is empty, and no source of data.train keeps anything back.")
        origin = [[source.model_dump() for source in part] for part in (recipe.data.validation, recipe.data.train)]
        return Records(sources, self.asks, (origin, *self._made(recipe)))

    def everything(self) -> list[Any]:
        """All records of the sources that can tell them."""
        return [record for source in self.sources if isinstance(source, Listed) for record in source.everything()]

    def draw(self, rng: np.random.Generator) -> Any:
        """One record of one source."""
        place = int(np.searchsorted(self.borders, rng.random(), side="right").clip(max=len(self.sources) - 1))
        return self.sources[place].draw(rng, self.asks)


class _Asked(dict[str, Any]):
    """Tokenizers by name, and which of them have been asked for."""

    def __init__(self, tokenizers: dict[str, Any]) -> None:
        super().__init__(tokenizers)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)


def build_task(recipe: Recipe, folder: Path | None = None) -> Any:
    """The task of a recipe with its tokenizers: those that a run keeps in its folder, else read or fitted on training texts or sounds."""
    tokenizers = _Asked({name: config.build() for name, config in recipe.tokenizers.items()})
    task: Task = recipe.tasks[0].build(tokenizers)
    for name in sorted(tokenizers.keys() - tokenizers.asked):
        logger.warning("tokenizers.%s is not used: the task %r does not name it.", name, recipe.tasks[0].type)
        del tokenizers[name]
    if isinstance(task, MeetsSources):
        task.meet([*recipe.data.train, *recipe.data.validation, *recipe.data.test])
    for name, tokenizer in tokenizers.items():
        if folder is not None and (folder / TOKENIZERS / name).is_dir():
            tokenizer.load(folder / TOKENIZERS / name)
        elif isinstance(task, OwnNetwork) and name in task.trains:
            continue
        elif not getattr(tokenizer, "is_fitted", True):
            if not hasattr(tokenizer, "fit"):
                kind = recipe.tokenizers[name].type
                raise RecipeError(f"tokenizers.{name}: {kind!r} is trained by a run of its own; give that run as its `path`.")
            records = Records.of_training(recipe, task)
            draws = [np.random.default_rng([recipe.seed, number]) for number in range(FITTED_ON)]
            if getattr(tokenizer, "is_fitted_on_sounds", False):
                if not isinstance(task, GivesSounds):
                    raise RecipeError(f"tokenizers.{name}: is fitted on sounds, but the task {recipe.tasks[0].type!r} has none.")
                tokenizer.fit(sound for rng in draws for sound in task.sounds(records.draw(rng)))
            else:
                tokenizer.fit([text for rng in draws for text in task.texts(records.draw(rng), rng)])
    return task


def build_model(recipe: Recipe, task: Task) -> MultimodalLM:
    """The model of a recipe: pretrained, with rows added for new tokens and new encoders, or with first weights, which the seed decides.

    Raises RecipeError where the parts do not fit together, or the model does not read what the task gives.
    """
    model = _first(recipe, task) if recipe.backbone.pretrained is None else _pretrained(recipe, task)
    if isinstance(task, MeetsModel):
        task.meet_model(model)
    return model


def _first(recipe: Recipe, task: Task) -> MultimodalLM:
    if recipe.adapt.replace is not None:
        raise RecipeError("adapt.replace: there is nothing to replace: backbone.pretrained names no decoder.")
    if recipe.adapt.dropout is not None:
        raise RecipeError("adapt.dropout: is of a pretrained decoder; of a new one backbone.dropout says it.")
    missing = task.features.keys() - recipe.encoders.keys()
    if missing:
        raise RecipeError(f"encoders: the task {recipe.tasks[0].type!r} needs an encoder named {', '.join(sorted(missing))}.")
    torch.manual_seed(recipe.seed)
    return MultimodalLM(
        ModelConfig(
            schema=1,
            vocabulary=dict(task.vocabulary),
            backbone=recipe.backbone,
            encoders=recipe.encoders,
            projectors=recipe.projectors,
            features=dict(task.features),
            channels=dict(getattr(task, "channels", {})),
            heads=recipe.heads,
        )
    )


def _pretrained(recipe: Recipe, task: Task) -> MultimodalLM:
    name = recipe.backbone.pretrained
    assert name is not None
    model = load(name)
    if recipe.heads not in (Recipe.model_fields["heads"].default, model.config.heads):
        raise RecipeError(f"heads: those of backbone.pretrained, {name}, are others; leave them out.")
    held, wanted = model.vocabulary.sizes, dict(task.vocabulary)
    if model.config.features and held != wanted:
        raise RecipeError(f"backbone.pretrained: {name} has the vocabulary {held}, but the task needs {wanted}.")
    new = _new_encoders(recipe, task, model.config)
    torch.manual_seed(recipe.seed)
    model.extend_vocabulary({key: max(size, held.get(key, 0)) for key, size in wanted.items()})
    some = {key: kind for key, kind in recipe.projectors.items() if key in new}
    model.add_encoders({key: recipe.encoders[key] for key in new}, {key: task.features[key] for key in new}, some)
    model.to(next(model.parameters()).dtype)
    if recipe.adapt.replace is not None:
        model = replace_as(model, recipe.adapt.replace)
    if recipe.adapt.dropout is not None:
        model.set_dropout(recipe.adapt.dropout)
    return model


def _new_encoders(recipe: Recipe, task: Task, config: ModelConfig) -> list[str]:
    """Encoders that a task needs and a pretrained decoder has not. Raises RecipeError where what it has does not fit."""
    name = recipe.backbone.pretrained
    for key, size in config.features.items():
        if task.features.get(key) != size:
            raise RecipeError(
                f"backbone.pretrained: {name} reads the features {config.features}, but the task {recipe.tasks[0].type!r} gives "
                f"{dict(task.features) or 'none'}."
            )
        if key in recipe.encoders and recipe.encoders[key].without_weights() != config.encoders[key]:
            raise RecipeError(f"encoders.{key}: that of backbone.pretrained, {name}, is another; leave it out.")
        if recipe.projectors.get(key, held := config.projectors.get(key, "linear")) != held:
            raise RecipeError(f"projectors.{key}: that of backbone.pretrained, {name}, is {held}; leave it out.")
    if unknown := recipe.encoders.keys() - config.encoders.keys() - task.features.keys():
        raise RecipeError(f"encoders: the task {recipe.tasks[0].type!r} reads nothing through {', '.join(sorted(unknown))}; leave it out.")
    new = [key for key in task.features if key not in config.features]
    if missing := [key for key in new if key not in recipe.encoders]:
        raise RecipeError(f"encoders: the task {recipe.tasks[0].type!r} needs an encoder named {', '.join(missing)}, which {name} has not.")
    return new


def preview(recipe: Recipe, count: int = 2) -> str:
    """Samples of a recipe as the model will read them, and what a batch holds. Nothing is trained or written."""
    if not recipe.tasks:
        raise RecipeError(f"recipe {recipe.name!r}: `task` is missing; there is nothing to show.")
    task = build_task(recipe)
    vocabulary = Vocabulary(task.vocabulary)
    records, objective = Records.of_training(recipe, task), recipe.objective.build()
    own = isinstance(task, OwnNetwork)
    samples = task.samples(records) if own else DrawnSamples(task, objective, vocabulary, records)
    parts = []
    for number in range(count):
        rng = np.random.default_rng([recipe.seed, number])
        record = records.draw(rng)
        parts += [f"sample {number + 1}: {task.title(record)}", task.shown(record), ""]
    size = recipe.train.batch_size
    batch = samples.collate([samples.sample(number, np.random.default_rng([recipe.seed, number])) for number in range(size)])
    if own:
        return "\n".join([*parts, f"a batch of {size}: {batch.num_tokens:,} tokens"])
    documents, tokens, weighted = int(batch.layout.document.max()), batch.num_tokens, int((batch.weight > 0).sum())
    ranges = ", ".join(f"{name} {size}" for name, size in vocabulary.sizes.items())
    parts += [f"a batch of {size}: {documents} documents, {tokens:,} tokens, {weighted:,} of them carry loss; vocabulary: {ranges}"]
    return "\n".join(parts)


def train(recipe: Recipe, *, fresh: bool = False, progress: Callable[[int, dict[str, Any]], None] | None = None) -> Result:
    """Train (or go on training) and leave a run folder that `load_run` reads.

    Raises RecipeError, DataError, CheckpointError or NumericsError.
    """
    if not recipe.tasks:
        raise RecipeError(f"recipe {recipe.name!r}: `task` is missing; nothing can be trained without one.")
    folder = Path(recipe.output)
    task = build_task(recipe, None if fresh else folder)
    learner, made_of = _learner(recipe, task)
    records = Records.of_training(recipe, task)
    samples = made_of(records)
    hooks: dict[str, Any] = {}
    if recipe.train.validate_every or recipe.train.sample_every:
        apart = made_of(records.for_validation(recipe))
        validation = Validation(apart, task, recipe.train, count=recipe.data.validate_samples, seed=recipe.seed)
        validation.check(learner)
        hooks = {"validate": validation, "draw": validation.draw}
    elif recipe.data.has_validation:
        logger.warning("data.validate is not used: train.validate_every and train.sample_every are 0.")
    if not isinstance(task, OwnNetwork):
        adapt(learner.model, recipe.adapt, recipe.seed)
    result = Trainer(learner, samples, recipe.train, folder, seed=recipe.seed, progress=progress, **hooks).fit(fresh=fresh)
    if result.reason != "signal":
        save_run(folder, recipe, task, learner.model)
    return result


def _learner(recipe: Recipe, task: Task) -> tuple[Any, Callable[[Records], Any]]:
    """What is trained, and what makes its samples of records."""
    if isinstance(task, OwnNetwork):
        return task.learner(recipe.seed), task.samples
    objective = recipe.objective.build()
    model = build_model(recipe, task)
    if (teacher := getattr(objective, "teacher_name", None)) is not None:
        objective.set_teacher(load(teacher))
    return Learner(model, objective), partial(DrawnSamples, task, objective, model.vocabulary)


def save_run(folder: Path, recipe: Recipe, task: Task, model: MultimodalLM) -> None:
    """Write what `load_run` reads. Adapters are kept by themselves and added to the weights, so that the model is whole."""
    for name, tokenizer in task.tokenizers.items():
        tokenizer.save(folder / TOKENIZERS / name)
    if isinstance(task, OwnNetwork):
        task.save(folder)
    else:
        _save_decoder(folder, recipe, task, model)
    write_text_whole(folder / RECIPE, recipe.dump())
    write_card(folder, recipe, None)


def _save_decoder(folder: Path, recipe: Recipe, task: Task, model: MultimodalLM) -> None:
    if adapted_layers(model) and recipe.adapt.lora is not None:
        save_adapters(model, folder / ADAPTER, recipe.adapt.lora)
        merge_lora(model)
    if (ends := getattr(task, "ends", None)) is not None:
        model.stop = tuple(model.vocabulary.span("text").start + index for index in ends)
    model.save_pretrained(folder)


def fine_tune(recipe: Recipe, task: Task, model: MultimodalLM, table: Table, lora: LoraConfig, config: TrainConfig) -> None:
    """Fit adapters to one table with a target, in place, and add them to the weights. Nothing is written.

    Raises DataError where the table gives no task.
    """
    objective = recipe.objective.build()
    records = Records([(OneTable(table, table.name), 1.0)], task.asks)
    samples = DrawnSamples(task, objective, model.vocabulary, records)
    adapt(model, AdaptConfig(lora=lora), recipe.seed)
    with TemporaryDirectory() as folder:
        Trainer(Learner(model, objective), samples, config, Path(folder) / "run", seed=recipe.seed).fit()
    merge_lora(model)
    model.eval()


def load_run(folder: Path | str, overrides: Sequence[str] = ()) -> tuple[Recipe, Any, Any]:
    """The recipe, task and model (or own network of the task) of a finished run. Raises CheckpointError where the folder holds none."""
    path = Path(folder) / RECIPE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no finished run: {RECIPE} is missing.")
    recipe = Recipe.read(path, overrides)
    task = build_task(recipe, Path(folder))
    return recipe, task, task.load(Path(folder)) if isinstance(task, OwnNetwork) else MultimodalLM.from_pretrained(folder)


def dry(recipe: Recipe) -> Recipe:
    """The same recipe for two steps, in a folder of its own."""
    short = recipe.train.model_copy(update={"steps": min(2, recipe.train.steps), "max_seconds": None, "log_every": 1})
    return recipe.model_copy(update={"train": short, "output": recipe.output.rstrip("/") + "-dry-run"})


def evaluate(folder: Path | str, overrides: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Measure a finished run beside its baselines; writes metrics.json, report.html and README.md and returns the metrics.

    progress(done, in all) is called after each table, or some records. Files that are there are replaced at the end, whole.
    """
    recipe, task, model = load_run(folder, overrides)
    if getattr(recipe.tasks[0], "reads", "tables") == "tables":
        return _evaluate_tables(Path(folder), recipe, task, model, progress)
    sources: dict[str, Source] = {
        name: config.build() for name, config in zip(source_names(recipe.data.test), recipe.data.test, strict=True)
    }
    for name, config in zip(source_names(recipe.data.train), recipe.data.train, strict=True):
        if getattr(config, "hold_out", 0) and (held_out := config.build().held_out_records()) is not None:
            sources[f"held out of {name}"] = held_out
    if not sources:
        raise RecipeError("data.test: is empty, and no source of data.train holds anything out; there is nothing to measure on.")
    tests = {
        name: records_of(source, task.asks, count=recipe.data.test_samples, seed=recipe.seed, number=number)
        for number, (name, source) in enumerate(sources.items())
    }
    if isinstance(task, TestsApart):
        task.begin_tests()
    is_heard = getattr(recipe.tasks[0], "makes_sound", False)
    found = measure(task, model, tests, progress, Judges(recipe.evaluate) if is_heard else None)
    metrics = measured_summary(found, task.over)
    _write_metrics(Path(folder), metrics)
    write_measured_report(Path(folder), recipe, found, metrics, task.over, task.shown)
    write_card(Path(folder), recipe, metrics)
    return metrics


def _evaluate_tables(
    folder: Path, recipe: Recipe, task: TabularLike, model: MultimodalLM, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    """Compare a model with the baselines on held-out tables."""
    config = recipe.evaluate
    files = [source.build() for source in recipe.data.train if isinstance(source, TableFileConfig)] if config.split == "file" else []
    if config.split == "file" and not any(file.held_out.any() for file in files):
        raise RecipeError("evaluate.split: file predicts the held-out rows of a table_file source, but data.train has none.")
    tables = [file.whole for file in files] or load_real_tables(config.split)
    held_out = [file.held_out for file in files] or None
    found = compare(tables, partial(task.predict_proba, model), config, held_out=held_out, progress=progress)
    if not found.values:
        raise DataError("evaluate: no table gives a comparison: too few rows, or fewer than two classes among the examples.")
    metrics = summary(found, config)
    _write_metrics(folder, metrics)
    write_report(folder, recipe, found, metrics, task.shown)
    write_card(folder, recipe, metrics)
    return metrics


def _write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    write_text_whole(folder / METRICS, json.dumps(metrics, indent=2) + "\n")
