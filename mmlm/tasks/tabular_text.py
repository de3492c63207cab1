"""Tabular prediction over text: every row is a prompt and its answer, the rows of a table follow one another.

All rows of a table carry loss on their answers, so one stream trains every number of examples at once; a row sees the rows before it in its
table and nothing of other tables (the row-causal tabular mask).
Source: TabuLa-8B, arXiv:2406.12031, sections 3 and 4.

Axes: q rows to predict   c classes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError, RecipeError, unknown_name
from mmlm.data.config import EpisodeConfig
from mmlm.data.episodes import Episode
from mmlm.data.tables import Column, Table
from mmlm.generation import generate, score_options
from mmlm.model import MultimodalLM
from mmlm.stream import Segment, Stream
from mmlm.tasks import calibration
from mmlm.tasks.answers import ClassAnswers
from mmlm.tasks.config import TabularTextConfig
from mmlm.tokenizers.base import TextLike
from mmlm.tokenizers.table_prompts import assemble, draw_choices
from mmlm.tokenizers.table_rows import END_COMPLETION, ShotStatistics, completion, header, special_tokens, write_rows

CONTENT_FREE = ("N/A", "[MASK]", "")


class TabularTextTask(ClassAnswers):
    """Streams from tasks, and predictions from a model."""

    features: Mapping[str, int] = {}
    max_classes: int | None = None

    def __init__(self, config: TabularTextConfig, tokenizers: Mapping[str, TextLike]) -> None:
        if config.tokenizer not in tokenizers:
            raise RecipeError(f"tokenizers: {unknown_name('tokenizer', config.tokenizer, tokenizers)}")
        self.config, self.tokenizers = config, tokenizers
        self.text = tokenizers[config.tokenizer]
        self.text.add_tokens([*special_tokens(config.rows), "||"])

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The range of the tokenizer."""
        return self.text.sizes

    @property
    def asks(self) -> EpisodeConfig:
        """How training tasks are drawn."""
        return self.config.episode

    def example(self, episode: Episode, rng: np.random.Generator) -> Stream | None:
        """A segment for each row, as many as the context holds; loss on every answer and its end, but for examples trained on."""
        prompts, answers = self._training_rows(episode, rng)
        ids = self.text.ids([*prompts, *answers])
        segments: list[Segment] = []
        used, first = 0, episode.num_shots if episode.shots_are_trained_on else 0
        for prompt, answer in zip(ids[: len(prompts)], ids[len(prompts) :], strict=True):
            before = [*self.text.first, *prompt] if not segments else prompt
            if used + len(before) + len(answer) > self.config.context:
                break
            used += len(before) + len(answer)
            weight = torch.zeros(len(before) + len(answer))
            weight[len(before) :] = float(len(segments) >= first)
            segments.append(Segment("text", torch.tensor(before + answer), weight=weight))
        return Stream(segments) if len(segments) > first else None

    def arrange(self, streams: Sequence[Stream]) -> list[Stream]:
        """Documents by `packing`: a table each, a row each, or everything in one."""
        if self.config.packing == "table":
            return list(streams)
        segments = [segment for stream in streams for segment in stream.segments]
        return [Stream(segments)] if self.config.packing == "plain" else [Stream([segment]) for segment in segments]

    def texts(self, episode: Episode, rng: np.random.Generator) -> list[str]:
        """The rows with their answers."""
        prompts, answers = self._training_rows(episode, rng)
        return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]

    def _training_rows(self, episode: Episode, rng: np.random.Generator) -> tuple[list[str], list[str]]:
        config, names = self.config, episode.classes
        options: list[str] | list[list[str]] = names
        if len(names) > config.max_choices:
            options = [draw_choices(names, names[label], rng, config.max_choices) for label in episode.labels]
        prompts = write_rows(episode.features, episode.target, options, config.rows, statistics=ShotStatistics.of(episode.shots), rng=rng)
        prompts[0] = header(episode.features, episode.target, config.rows) + prompts[0]
        return prompts, [completion(names[label]) for label in episode.labels]

    def predict_proba(self, model: MultimodalLM, problem: Episode) -> np.ndarray:
        """Probabilities [q, c]: the answers of `problem.classes` scored after each prompt, calibrated as the config says.

        Raises DataError where the row to predict alone does not fit the context.
        """
        found_qc = self._scored(model, problem)
        if self.config.calibration == "none":
            return found_qc
        if self.config.calibration == "contextual":
            free = [self._scored(model, _content_free(problem, word))[0] for word in CONTENT_FREE]
            return calibration.contextual(found_qc, np.stack(free))
        left_out_sc = np.concatenate([self._scored(model, _without(problem, row)) for row in range(problem.num_shots)])
        truth_s = problem.labels[: problem.num_shots]
        if self.config.calibration == "temperature":
            return calibration.with_temperature(found_qc, calibration.fit_temperature(left_out_sc, truth_s))
        exponent = calibration.fit_prior_exponent(left_out_sc, truth_s)
        return calibration.match_prior(found_qc, calibration.class_shares(truth_s, len(problem.classes)), exponent)

    def answers(self, model: MultimodalLM, problem: Episode) -> list[str | None]:
        """What the model writes after each prompt when it may write anything: one of the classes, or None for any other text."""
        prefix, queries = self._prompts(problem)
        end = self.text.token(END_COMPLETION)
        written = generate(model, [torch.cat([prefix, query]) for query in queries], stop=[end], max_new_tokens=64)
        texts = [self.text.decode([index for index in one.ids if index != end]).strip() for one in written]
        return [text if text in problem.classes else None for text in texts]

    def prompt(self, problem: Episode, row: int = 0) -> str:
        """The prompt of a row to predict as the model reads it."""
        prefix, queries = self._prompts(problem)
        return self.text.decode(torch.cat([prefix, queries[row]]).tolist())

    def shown(self, problem: Episode) -> str:
        """The prompt of the first row to predict."""
        return self.prompt(problem).replace(END_COMPLETION, f"{END_COMPLETION}\n")

    def _prompts(self, problem: Episode) -> tuple[Tensor, list[Tensor]]:
        """Ids of what stands before all rows to predict, and of each of these."""
        rows = self.config.rows
        statistics = ShotStatistics.of(problem.shots)
        rng = np.random.default_rng(0)
        prompts = write_rows(problem.features, problem.target, problem.classes, rows, statistics=statistics, rng=rng)
        shots, queries = prompts[: problem.num_shots], prompts[problem.num_shots :]
        shots = [prompt + completion(problem.classes[label]) for prompt, label in zip(shots, problem.labels, strict=False)]
        top = header(problem.features, problem.target, rows)
        query_ids = self.text.ids(queries)
        longest = queries[max(range(len(queries)), key=lambda at: len(query_ids[at]))]
        budget = self.config.context - len(self.text.first) - 1
        kept = assemble(shots, longest, budget, lambda text: len(self.text.ids([text])[0]), header=top).num_shots
        before = [*self.text.first, *self.text.ids([top + "".join(shots[len(shots) - kept :])])[0]]
        return torch.tensor(before, dtype=torch.long), [torch.tensor(ids) for ids in query_ids]

    def _scored(self, model: MultimodalLM, problem: Episode) -> np.ndarray:
        if len(problem.classes) < 2:
            raise DataError(f"a prediction needs at least two possible answers, but {problem.target!r} has {len(problem.classes)}.")
        prefix, queries = self._prompts(problem)
        options = [torch.tensor(ids) for ids in self.text.ids([completion(name) for name in problem.classes])]
        scores: list[Tensor] = []
        for start in range(0, len(queries), self.config.rows_at_once):
            part = queries[start : start + self.config.rows_at_once]
            shared = prefix if len(prefix) else None
            scores += score_options(model, part, [options] * len(part), length=self.config.score, prefix=shared)
        return torch.stack(scores).double().softmax(-1).cpu().numpy()


def _content_free(problem: Episode, word: str) -> Episode:
    """The same examples before one row that says nothing."""
    columns = []
    for column in problem.shots.columns:
        texts = column.as_category() if column.kind != "category" else column
        columns.append(Column(column.name, "category", np.append(texts.values, len(texts.words)), [*texts.words, word or " "]))
    labels = np.append(problem.labels[: problem.num_shots], -1)
    return dataclasses.replace(problem, features=Table(problem.features.name, columns), labels=labels)


def _without(problem: Episode, row: int) -> Episode:
    """One of the examples as the row to predict, after the others."""
    order = [at for at in range(problem.num_shots) if at != row] + [row]
    return dataclasses.replace(
        problem, features=problem.features.take(np.array(order)), labels=problem.labels[order], num_shots=problem.num_shots - 1
    )
