"""From a recipe to a run folder: the place that puts task, data, model, objective and trainer together."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from mmlm.adapt import adapt, adapted_layers, adapter_names, detach_lora, load_adapters, merge_lora, save_adapters
from mmlm.base.errors import CheckpointError, DataError, RecipeError, unknown_name
from mmlm.base.files import read_json, without_nan, write_text_whole
from mmlm.compression.surgery import replace_as
from mmlm.data.base import Source
from mmlm.data.config import TableFileConfig
from mmlm.data.episodes import OneTable
from mmlm.data.real_tables import load_real_tables
from mmlm.data.tables import Table
from mmlm.evaluation.card import CARD, write_card
from mmlm.evaluation.joint_report import write_joint_report
from mmlm.evaluation.judges import Judges
from mmlm.evaluation.measure import measure, measured_summary, records_of, source_names
from mmlm.evaluation.measured_report import write_measured_report
from mmlm.evaluation.protocol import compare, summary
from mmlm.evaluation.report import PAGE, write_report
from mmlm.evaluation.validation import Validation
from mmlm.interop.load import load
from mmlm.joint import JointLearner, JointSamples, JointValidation, Part, merged, vocabulary_of
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.objectives.config import CausalConfig
from mmlm.recipe import Recipe
from mmlm.records import DrawnSamples, Records
from mmlm.tasks.base import (
    FitsSeveral,
    GivesSounds,
    KnowsTraining,
    LearnsPriors,
    MeetsModel,
    MeetsSources,
    OwnNetwork,
    TabularLike,
    Task,
    TestsApart,
)
from mmlm.training.config import AdaptConfig, LoraConfig, TrainConfig
from mmlm.training.learner import Learner
from mmlm.training.order import evaluation_rng
from mmlm.training.trainer import Result, Trainer
from mmlm.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

RECIPE, METRICS, TOKENIZERS, ADAPTER = "recipe.yaml", "metrics.json", "tokenizers", "adapter"
TEXTS = ("text", "tabular_text")  # types of tasks that read texts alone
MADE = ("*.safetensors", f"{ADAPTER}/**/*", RECIPE, f"{TOKENIZERS}/**/*")  # what a run answers by
FITTED_ON = 500  # drawn tasks whose texts a tokenizer is fitted on, and records that a baseline learns from


class _Asked(dict[str, Any]):
    """Tokenizers by name, and which of them a task has asked for."""

    def __init__(self, tokenizers: dict[str, Any]) -> None:
        super().__init__(tokenizers)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)


def build_parts(recipe: Recipe, folder: Path | None = None) -> list[Part]:
    """The tasks of a recipe with their tokenizers: those that a run keeps in its folder, else read or fitted on training records."""
    tokenizers = {name: config.build() for name, config in recipe.tokenizers.items()}
    parts, used = list[Part](), set[str]()
    for alone in recipe.alone:
        own = _Asked(tokenizers)
        parts.append(Part(alone, alone.tasks[0].build(own)))
        used |= own.asked
        for name in own.keys() - own.asked:
            del own[name]
    for name in sorted(tokenizers.keys() - used):
        logger.warning("tokenizers.%s is not used: no task names it.", name)
    for part in parts:
        if isinstance(part.task, MeetsSources):
            data = part.recipe.data
            part.task.meet([*data.train, *data.validation, *data.test])
    for name, tokenizer in tokenizers.items():
        users = [part for part in parts if name in part.task.tokenizers]
        if folder is not None and (folder / TOKENIZERS / name).is_dir():
            tokenizer.load(folder / TOKENIZERS / name)
        elif users and not any(isinstance(part.task, OwnNetwork) and name in part.task.trains for part in users):
            _fit(name, tokenizer, users)
    return parts


def build_task(recipe: Recipe, folder: Path | None = None) -> Any:
    """The task of a recipe that has one, as `build_parts` makes it."""
    return build_parts(recipe, folder)[0].task


def _fit(name: str, tokenizer: Any, users: Sequence[Part]) -> None:
    """Fit a tokenizer, if it is to be, on records of the tasks that use it."""
    if getattr(tokenizer, "is_fitted", True):
        return
    recipe = users[0].recipe
    if not hasattr(tokenizer, "fit"):
        kind = recipe.tokenizers[name].type
        raise RecipeError(f"tokenizers.{name}: {kind!r} is trained by a run of its own; give that run as its `path`.")
    by_sounds = getattr(tokenizer, "is_fitted_on_sounds", False)
    if by_sounds and (deaf := [part for part in users if not isinstance(part.task, GivesSounds)]):
        raise RecipeError(f"tokenizers.{name}: is fitted on sounds, but the task {deaf[0].config.type!r} has none.")
    drawn = [
        (part.task, records.draw(rng), rng)
        for part in users
        for records in [Records.of_training(part.recipe, part.task)]
        for rng in (np.random.default_rng([recipe.seed, number]) for number in range(FITTED_ON))
    ]
    if by_sounds:
        tokenizer.fit(sound for task, record, _ in drawn for sound in task.sounds(record))
    else:
        tokenizer.fit([text for task, record, rng in drawn for text in _texts(task, name, record, rng)])


def _texts(task: Any, tokenizer: str, record: Any, rng: np.random.Generator) -> list[str]:
    """What a tokenizer may be fitted on, of one record."""
    return task.texts_of(tokenizer, record, rng) if isinstance(task, FitsSeveral) else list(task.texts(record, rng))


def build_model(recipe: Recipe, task: Task) -> MultimodalLM:
    """The model of a recipe: pretrained, with rows added for new tokens and new encoders, or with first weights, which the seed decides.

    Raises RecipeError where the parts do not fit together, or the model does not read what the task gives.
    """
    return _model(recipe, [Part(recipe, task)])


def _model(recipe: Recipe, parts: Sequence[Part]) -> MultimodalLM:
    """The model of all tasks."""
    model = _first(recipe, parts) if recipe.backbone.pretrained is None else _pretrained(recipe, parts)
    for part in parts:
        if isinstance(part.task, MeetsModel):
            part.task.meet_model(model)
    return model


def _first(recipe: Recipe, parts: Sequence[Part]) -> MultimodalLM:
    if recipe.adapt.replace is not None:
        raise RecipeError("adapt.replace: there is nothing to replace: backbone.pretrained names no decoder.")
    if recipe.adapt.dropout is not None:
        raise RecipeError("adapt.dropout: is of a pretrained decoder; of a new one backbone.dropout says it.")
    features = merged(parts, "features")
    if missing := features.keys() - recipe.encoders.keys():
        raise RecipeError(f"encoders: {_who(parts)} needs an encoder named {', '.join(sorted(missing))}.")
    torch.manual_seed(recipe.seed)
    return MultimodalLM(
        ModelConfig(
            schema=1,
            vocabulary=vocabulary_of(parts),
            backbone=recipe.backbone,
            encoders=recipe.encoders,
            projectors=recipe.projectors,
            features=features,
            channels=merged(parts, "channels"),
            heads=recipe.heads,
        )
    )


def _pretrained(recipe: Recipe, parts: Sequence[Part]) -> MultimodalLM:
    name = recipe.backbone.pretrained
    assert name is not None
    model = load(name)
    if recipe.heads not in (Recipe.model_fields["heads"].default, model.config.heads):
        raise RecipeError(f"heads: those of backbone.pretrained, {name}, are others; leave them out.")
    held, wanted, features = model.vocabulary.sizes, vocabulary_of(parts), merged(parts, "features")
    if model.config.features and held != wanted:
        raise RecipeError(f"backbone.pretrained: {name} has the vocabulary {held}, but {_who(parts)} needs {wanted}.")
    new = _new_encoders(recipe, features, _who(parts), model.config)
    torch.manual_seed(recipe.seed)
    model.extend_vocabulary({key: max(size, held.get(key, 0)) for key, size in wanted.items()})
    some = {key: kind for key, kind in recipe.projectors.items() if key in new}
    model.add_encoders({key: recipe.encoders[key] for key in new}, {key: features[key] for key in new}, some)
    model.to(next(model.parameters()).dtype)
    if recipe.adapt.replace is not None:
        model = replace_as(model, recipe.adapt.replace)
    if recipe.adapt.dropout is not None:
        model.set_dropout(recipe.adapt.dropout)
    return model


def _new_encoders(recipe: Recipe, features: Mapping[str, int], who: str, config: ModelConfig) -> list[str]:
    """Encoders of features that tasks give and a pretrained decoder has not. Raises RecipeError where what it has does not fit."""
    name = recipe.backbone.pretrained
    for key, size in config.features.items():
        if features.get(key) != size:
            raise RecipeError(
                f"backbone.pretrained: {name} reads the features {config.features}, but {who} gives {dict(features) or 'none'}."
            )
        if key in recipe.encoders and recipe.encoders[key].without_weights() != config.encoders[key]:
            raise RecipeError(f"encoders.{key}: that of backbone.pretrained, {name}, is another; leave it out.")
        if recipe.projectors.get(key, held := config.projectors.get(key, "linear")) != held:
            raise RecipeError(f"projectors.{key}: that of backbone.pretrained, {name}, is {held}; leave it out.")
    if unknown := recipe.encoders.keys() - config.encoders.keys() - features.keys():
        raise RecipeError(f"encoders: {who} reads nothing through {', '.join(sorted(unknown))}; leave it out.")
    new = [key for key in features if key not in config.features]
    if missing := [key for key in new if key not in recipe.encoders]:
        raise RecipeError(f"encoders: {who} needs an encoder named {', '.join(missing)}, which {name} has not.")
    return new


def _who(parts: Sequence[Part]) -> str:
    """The tasks, for messages."""
    return f"the task {parts[0].config.type!r}" if len(parts) == 1 else f"one of the tasks {', '.join(part.name for part in parts)}"


def preview(recipe: Recipe, count: int = 2) -> str:
    """Samples of a recipe as the model will read them, and what a batch holds. Nothing is trained or written."""
    if not recipe.tasks:
        raise RecipeError(f"recipe {recipe.name!r}: `task` is missing; there is nothing to show.")
    parts = build_parts(recipe)
    vocabulary = Vocabulary(vocabulary_of(parts))
    return "\n\n".join(_preview(part, vocabulary, count, is_named=len(parts) > 1) for part in parts)


def _preview(part: Part, vocabulary: Vocabulary, count: int, *, is_named: bool) -> str:
    """Samples of one task."""
    task, seed, size = part.task, part.recipe.seed, part.size
    records, own = Records.of_training(part.recipe, task), isinstance(task, OwnNetwork)
    samples = task.samples(records) if own else DrawnSamples(task, part.recipe.objective.build(), vocabulary, records)
    lines = [f"task {part.name}", ""] if is_named else []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        record = records.draw(rng)
        lines += [f"sample {number + 1}: {task.title(record)}", task.shown(record), ""]
    batch = samples.collate([samples.sample(number, np.random.default_rng([seed, number])) for number in range(size)])
    if own:
        return "\n".join([*lines, f"a batch of {size}: {batch.num_tokens:,} tokens"])
    for name, view in getattr(batch, "views", {"": batch}).items():
        documents, weighted = int(view.layout.document.max()), int((view.weight > 0).sum())
        told = f"a batch of {size}{name and f', {name}'}"
        lines += [f"{told}: {documents} documents, {view.num_tokens:,} tokens, {weighted:,} of them carry loss"]
    return "\n".join([*lines, f"vocabulary: {', '.join(f'{name} {size}' for name, size in vocabulary.sizes.items())}"])


def train(recipe: Recipe, *, fresh: bool = False, progress: Callable[[int, dict[str, Any]], None] | None = None) -> Result:
    """Train (or go on training) and leave a run folder that `load_run` reads; of several processes the main one writes it.

    Raises RecipeError, DataError, CheckpointError or NumericsError.
    """
    if not recipe.tasks:
        raise RecipeError(f"recipe {recipe.name!r}: `task` is missing; nothing can be trained without one.")
    folder = Path(recipe.output)
    parts = build_parts(recipe, None if fresh else folder)
    learner, made_of = _learner(recipe, parts)
    if not isinstance(parts[0].task, OwnNetwork):
        adapt(learner.model, recipe.adapt, recipe.seed, [part.name for part in parts])
    records = [Records.of_training(part.recipe, part.task) for part in parts]
    each = [make(some) for make, some in zip(made_of, records, strict=True)]
    hooks: dict[str, Any] = {}
    if recipe.train.validate_every or recipe.train.sample_every:
        apart = [
            Validation(
                make(some.for_validation(part.recipe)), part.task, recipe.train, count=recipe.data.validate_samples, seed=recipe.seed
            )
            for part, make, some in zip(parts, made_of, records, strict=True)
        ]
        validation = apart[0] if len(parts) == 1 else JointValidation(parts, apart, recipe.train)
        validation.check(learner)
        hooks = {"validate": validation, "draw": validation.draw}
    elif recipe.data.has_validation:
        logger.warning("data.validate is not used: train.validate_every and train.sample_every are 0.")
    samples = each[0] if len(parts) == 1 else JointSamples(parts, each)
    config = recipe.train if len(parts) > 1 else recipe.train.model_copy(update={"batch_size": parts[0].size})
    trainer = Trainer(learner, samples, config, folder, seed=recipe.seed, progress=progress, **hooks)
    result = trainer.fit(fresh=fresh)
    if result.reason != "signal":
        if trainer.ranks.is_main:
            save_run(folder, recipe, parts, learner.model)
        trainer.ranks.wait()
    return result


def _learner(recipe: Recipe, parts: Sequence[Part]) -> tuple[Any, list[Callable[[Records], Any]]]:
    """What is trained, and for each task what makes its samples of records."""
    first = parts[0].task
    if isinstance(first, OwnNetwork):
        return first.learner(recipe.seed), [first.samples]
    objectives = {part.name: part.recipe.objective.build() for part in parts}
    model = _model(recipe, parts)
    for objective in objectives.values():
        if (teacher := getattr(objective, "teacher_name", None)) is not None:
            objective.set_teacher(load(teacher))
    weights = {part.name: float(part.config.weight) for part in parts}
    learner = Learner(model, objectives[parts[0].name]) if len(parts) == 1 else JointLearner(model, objectives, weights)
    return learner, [partial(DrawnSamples, part.task, objectives[part.name], model.vocabulary) for part in parts]


def save_run(folder: Path, recipe: Recipe, parts: Sequence[Part], model: MultimodalLM) -> None:
    """Write what `load_run` reads. Adapters are kept by themselves; where all tasks share them they are added to the weights too. What was
    measured of a run with other weights or another recipe, in the same folder, is taken away, as it does not hold for this one."""
    before = fingerprint(folder)
    for name, tokenizer in {name: each for part in parts for name, each in part.task.tokenizers.items()}.items():
        tokenizer.save(folder / TOKENIZERS / name)
    if isinstance(parts[0].task, OwnNetwork):
        parts[0].task.save(folder)
    else:
        _save_decoder(folder, recipe, parts, model)
    write_text_whole(folder / RECIPE, recipe.dump())
    if fingerprint(folder) != before:
        _forget_measures(folder, parts)
    write_card(folder, recipe, read_run(folder)[1])


def fingerprint(run: Path) -> str:
    """Changes with the weights, adapters, tokenizers and recipe in a run folder."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in MADE for path in run.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(run)} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def _forget_measures(folder: Path, parts: Sequence[Part]) -> None:
    """Delete the figures and reports of a run, and those of its tasks in folders of their own, with their cards."""
    own = [folder / part.name for part in parts] if len(parts) > 1 else []
    measured = [place for place in (folder, *own) if (place / METRICS).is_file()]
    if measured:
        logger.warning("%s: what was measured before is taken away: this is another run now. mmlm evaluate measures it.", folder)
    for place in measured:
        for name in (METRICS, PAGE, *([CARD] if place in own else [])):
            (place / name).unlink(missing_ok=True)


def _save_decoder(folder: Path, recipe: Recipe, parts: Sequence[Part], model: MultimodalLM) -> None:
    if adapted_layers(model) and recipe.adapt.lora is not None:
        if names := adapter_names(model):
            for name in names:
                save_adapters(model, folder / ADAPTER / name, recipe.adapt.lora, name)
            detach_lora(model)
        else:
            save_adapters(model, folder / ADAPTER, recipe.adapt.lora)
            merge_lora(model)
    if len(parts) == 1 and (ends := getattr(parts[0].task, "ends", None)) is not None:
        model.stop = tuple(model.vocabulary.span("text").start + index for index in ends)
    model.save_pretrained(folder)


def fine_tune(recipe: Recipe, task: Task, model: MultimodalLM, table: Table, lora: LoraConfig, config: TrainConfig) -> None:
    """Fit adapters to one table with a target, in place, and add them to the weights. Nothing is written.

    A run that learned from a teacher learns from the table alone now. Raises DataError where the table gives no task.
    """
    objective = recipe.objective.build()
    if hasattr(objective, "teacher_name"):
        objective = CausalConfig().build()
    records = Records([(OneTable(table, table.name), 1.0)], task.asks)
    samples = DrawnSamples(task, objective, model.vocabulary, records)
    adapt(model, AdaptConfig(lora=lora), recipe.seed)
    with TemporaryDirectory() as folder:
        Trainer(Learner(model, objective), samples, config, Path(folder) / "run", seed=recipe.seed).fit()
    merge_lora(model)
    model.eval()


def is_run_of(folder: Path | str, kind: str) -> bool:
    """Whether a folder holds a finished run of a task of this type, by its recipe alone."""
    path = Path(folder) / RECIPE
    return path.is_file() and any(task.type == kind for task in Recipe.read(path).tasks)


def load_run(folder: Path | str, overrides: Sequence[str] = (), fits: Callable[[Any], bool] | None = None) -> tuple[Recipe, Any, Any]:
    """The recipe, task and model (or own network of the task) of a finished run. Raises CheckpointError where the folder holds none.

    fits: told the config of each of several tasks, says which is wanted; the recipe is that of this task alone. Default: the first.
    """
    recipe, parts = _read_parts(folder, overrides)
    part = next((part for part in parts if fits is not None and fits(part.config)), parts[0])
    return part.recipe, part.task, _load_model(Path(folder), recipe, part)


def load_text_model(folder: Path | str) -> MultimodalLM:
    """A decoder of texts as `mmlm.load` gives it; where each task of a run has adapters, with those of its first task of texts."""
    model, path = load(folder), Path(folder)
    if (path / RECIPE).is_file() and _has_own_adapters(recipe := Recipe.read(path / RECIPE)):
        if name := next((task.called for task in recipe.tasks if task.type in TEXTS), None):
            load_adapters(model, path / ADAPTER / name)
            merge_lora(model)
    return model.eval()


def read_run(folder: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, dict[str, Any] | None]:
    """The recipe of a finished run and what was measured, None where nothing was. Raises CheckpointError where the folder holds none."""
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{folder}: no finished run: {RECIPE} is missing. `mmlm train` writes it when training ends.")
    recipe = Recipe.read(folder / RECIPE, overrides)
    return recipe, read_json(folder / METRICS) if (folder / METRICS).is_file() else None


def load_tokenizer(run: Path | str, name: str | None = None) -> Any:
    """A tokenizer of a finished run, such as a codec, as it was trained or fitted. name: its key in the recipe, needed beside others.

    Raises CheckpointError where the folder holds no run, RecipeError for a name that is none and for several tokenizers without a name.
    """
    known = read_run(Path(run))[0].tokenizers
    if name is None and len(known) != 1:
        raise RecipeError(f"{run}: has the tokenizers {', '.join(known) or 'none'}; name one of them.")
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise RecipeError(f"{run}: {unknown_name('tokenizer', chosen, known)}")
    found, folder = known[chosen].build(), Path(run) / TOKENIZERS / chosen
    if folder.is_dir():
        found.load(folder)
    return found


def load_parts(folder: Path | str, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Part], list[Any]]:
    """The recipe of a finished run, all its tasks, and the model for each, which is one and the same unless tasks have own adapters."""
    recipe, parts = _read_parts(folder, overrides)
    asked = parts if _has_own_adapters(recipe) else parts[:1]
    models = [_load_model(Path(folder), recipe, part) for part in asked]
    return recipe, parts, models if len(models) == len(parts) else models * len(parts)


def _read_parts(folder: Path | str, overrides: Sequence[str]) -> tuple[Recipe, list[Part]]:
    recipe, _ = read_run(Path(folder), overrides)
    return recipe, build_parts(recipe, Path(folder))


def _load_model(folder: Path, recipe: Recipe, part: Part) -> Any:
    """The model of a finished run for one of its tasks."""
    if isinstance(part.task, OwnNetwork):
        return part.task.load(folder)
    model = MultimodalLM.from_pretrained(folder)
    if _has_own_adapters(recipe):
        load_adapters(model, folder / ADAPTER / part.name)
        merge_lora(model)
    return model.eval()


def _has_own_adapters(recipe: Recipe) -> bool:
    return recipe.adapt.lora is not None and recipe.adapt.lora.per_task


def dry(recipe: Recipe) -> Recipe:
    """The same recipe for two steps, in a folder of its own."""
    short = recipe.train.model_copy(update={"steps": min(2, recipe.train.steps), "max_seconds": None, "log_every": 1})
    return recipe.model_copy(update={"train": short, "output": recipe.output.rstrip("/") + "-dry-run"})


def evaluate(folder: Path | str, overrides: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Measure a finished run beside its baselines; writes metrics.json, report.html and README.md and returns the metrics.

    progress(done, in all) is called after each table, or some records. Files that are there are replaced at the end, whole.
    """
    recipe, parts, models = load_parts(folder, overrides)
    if len(parts) == 1:
        return _evaluate(Path(folder), parts[0], models[0], progress)
    found = {}
    for part, model in zip(parts, models, strict=True):
        own = Path(folder) / part.name
        own.mkdir(exist_ok=True)
        found[part.name] = _evaluate(own, part, model, progress)
    _write_metrics(Path(folder), {"tasks": found})
    write_joint_report(Path(folder), recipe, found)
    write_card(Path(folder), recipe, {"tasks": found})
    return {"tasks": found}


def _evaluate(folder: Path, part: Part, model: Any, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    """Measure one task, into a folder."""
    recipe, task = part.recipe, part.task
    if getattr(part.config, "reads", "tables") == "tables":
        return _evaluate_tables(folder, recipe, task, model, progress)
    tests = test_records(recipe, task)
    if isinstance(task, LearnsPriors):
        drawn = Records.of_training(recipe, part.task)
        task.learn_priors(drawn.draw(evaluation_rng(recipe.seed, len(tests), at)) for at in range(FITTED_ON))
    if isinstance(task, KnowsTraining):
        task.take_training(Records.of_training(recipe, part.task).everything())
    if isinstance(task, TestsApart):
        task.begin_tests()
    is_heard = getattr(recipe.tasks[0], "makes_sound", False)
    found = measure(task, model, tests, progress, Judges(recipe.evaluate) if is_heard else None)
    metrics = measured_summary(found, task.over)
    _write_metrics(folder, metrics)
    write_measured_report(folder, recipe, found, metrics, task.shown)
    write_card(folder, recipe, metrics)
    return metrics


def test_records(recipe: Recipe, task: Any, count: int | None = None) -> dict[str, list[Any]]:
    """What a task is measured on, by source: of data.test, and what sources of data.train hold out. count: of each; default the recipe's.

    Raises RecipeError where there is none."""
    sources: dict[str, Source] = {
        name: config.build() for name, config in zip(source_names(recipe.data.test), recipe.data.test, strict=True)
    }
    for name, config in zip(source_names(recipe.data.train), recipe.data.train, strict=True):
        if getattr(config, "hold_out", 0) and (held_out := config.build().held_out_records()) is not None:
            sources[f"held out of {name}"] = held_out
    if not sources:
        raise RecipeError("data.test: is empty, and no source of data.train holds anything out; there is nothing to measure on.")
    size = recipe.data.test_samples if count is None else count
    return {
        name: records_of(source, task.asks, count=size, seed=recipe.seed, number=number)
        for number, (name, source) in enumerate(sources.items())
    }


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
    write_text_whole(folder / METRICS, json.dumps(without_nan(metrics), indent=2, allow_nan=False) + "\n")
