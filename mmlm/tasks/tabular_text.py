"""Tabular prediction over text: every row is a prompt and its answer, the rows of a table follow one another.

All rows of a table carry loss on their answers, so one stream trains every number of examples at once; a row sees the rows before it in its
table and nothing of other tables (the row-causal tabular mask).
Cells that are pictures, sounds, molecules or numbers may be read by tokenizers of their own (`marked_cells`).
Source: TabuLa-8B, arXiv:2406.12031, sections 3 and 4.

Axes: q rows to predict   c classes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import DataError, RecipeError, unknown_name
from mmlm.data.config import EpisodeConfig
from mmlm.data.episodes import Episode
from mmlm.data.tables import Column, Table
from mmlm.generation import generate, score_options
from mmlm.model import MultimodalLM
from mmlm.model_config import ChannelConfig
from mmlm.sound import Sound
from mmlm.stream import Segment, Stream
from mmlm.tasks import calibration
from mmlm.tasks.answers import ClassAnswers
from mmlm.tasks.config import TabularTextConfig
from mmlm.tasks.marked_cells import MARK, Cell, CellReader, shown
from mmlm.tokenizers.base import TextLike
from mmlm.tokenizers.table_prompts import assemble, draw_choices
from mmlm.tokenizers.table_rows import END_COMPLETION, ShotStatistics, clean_label, completion, header, special_tokens, write_rows

CONTENT_FREE = ("N/A", "[MASK]", "")


class TabularTextTask(ClassAnswers):
    """Streams from tasks, and predictions from a model."""

    max_classes: int | None = None

    def __init__(self, config: TabularTextConfig, tokenizers: Mapping[str, Any]) -> None:
        if config.tokenizer not in tokenizers:
            raise RecipeError(f"tokenizers: {unknown_name('tokenizer', config.tokenizer, tokenizers)}")
        self.config, self.tokenizers = config, tokenizers
        self.text: TextLike = tokenizers[config.tokenizer]
        self.cells = CellReader(config.cells, tokenizers)
        self.text.add_tokens([*special_tokens(config.rows), "||"])

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The range of the texts, and those of cells with tokenizers of their own."""
        return {**self.text.sizes, **self.cells.vocabulary}

    @property
    def features(self) -> Mapping[str, int]:
        """Those of pictures."""
        return self.cells.features

    @property
    def channels(self) -> Mapping[str, ChannelConfig]:
        """Those of numbers."""
        return self.cells.channels

    def meet_model(self, model: MultimodalLM) -> None:
        """Raises RecipeError where the model reads other pictures."""
        self.cells.meet_model(model)

    @property
    def asks(self) -> EpisodeConfig:
        """How training tasks are drawn."""
        return self.config.episode

    def example(self, episode: Episode, rng: np.random.Generator) -> Stream | None:
        """The segments of each row, as many rows as the context holds; loss on every answer and its end, but for examples trained on."""
        prompts, answers, cells = self._training_rows(episode, rng)
        first = episode.num_shots if episode.shots_are_trained_on else 0
        segments, used, kept = self._first(), len(self.text.first), 0
        for prompt, answer in zip(self._segments(prompts, cells), self.text.ids(answers), strict=True):
            *before, last = prompt
            used += sum(map(len, prompt)) + len(answer)
            if used > self.config.context:
                break
            weight = torch.cat([torch.zeros(len(last)), torch.full((len(answer),), float(kept >= first))])
            segments += [*before, Segment("text", torch.cat([_ids(last), torch.tensor(answer)]), weight=weight)]
            kept += 1
        return Stream(segments) if kept > first else None

    def _first(self) -> list[Segment]:
        return [Segment("text", torch.tensor(self.text.first))] if self.text.first else []

    def _segments(self, texts: Sequence[str], cells: Sequence[Cell]) -> list[list[Segment]]:
        """Each text as its tokens, with the tokens of cells in place of their marks."""
        parts = [self.cells.cut(text, cells) for text in texts]
        ids = iter(self.text.ids([part for some in parts for part in some if isinstance(part, str)]))
        return [
            [Segment("text", torch.tensor(next(ids), dtype=torch.long)) if isinstance(part, str) else part for part in some]
            for some in parts
        ]

    def arrange(self, streams: Sequence[Stream]) -> list[Stream]:
        """Documents by `packing`: a table each, a row each, or everything in one."""
        if self.config.packing == "table":
            return list(streams)
        segments = [segment for stream in streams for segment in stream.segments]
        return [Stream(segments)] if self.config.packing == "plain" else [Stream(row) for row in self._rows(segments)]

    def _rows(self, segments: Sequence[Segment]) -> list[list[Segment]]:
        """The segments of each row: the last one ends with the end of an answer."""
        end, rows = self.text.token(END_COMPLETION), list[list[Segment]]([[]])
        for segment in segments:
            rows[-1].append(segment)
            if segment.modality == "text" and int(_ids(segment)[-1]) == end:
                rows.append([])
        return [row for row in rows if row]

    def texts(self, episode: Episode, rng: np.random.Generator) -> list[str]:
        """The rows with their answers, without what else than texts is in them."""
        prompts, answers, _ = self._training_rows(episode, rng)
        return [MARK.sub("", prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]

    def texts_of(self, name: str, episode: Episode, rng: np.random.Generator) -> list[str]:
        """Molecules for their own tokenizer, rows for that of texts."""
        found = self.cells.texts_of(name, episode.features)
        return self.texts(episode, rng) if found is None else found

    def sounds(self, episode: Episode) -> list[Sound]:
        """Those of the first row."""
        return self.cells.sounds(episode.features.take([0]))

    def _training_rows(self, episode: Episode, rng: np.random.Generator) -> tuple[list[str], list[str], list[Cell]]:
        config, names, cells = self.config, self._names(episode), list[Cell]()
        options: list[str] | list[list[str]] = names
        if len(names) > config.max_choices:
            options = [draw_choices(names, names[label], rng, config.max_choices) for label in episode.labels]
        features = self.cells.mark(episode.features, cells)
        prompts = write_rows(features, episode.target, options, config.rows, statistics=ShotStatistics.of(episode.shots), rng=rng)
        prompts[0] = header(features, episode.target, config.rows) + prompts[0]
        return prompts, [completion(names[label]) for label in episode.labels], cells

    def _names(self, problem: Episode) -> list[str]:
        """The classes as they are written: what the dictionary says of the target's codes."""
        meanings = self.config.rows.dictionary.get(problem.target, {})
        return [meanings.get(name, name) for name in problem.classes]

    def predict_proba(self, model: MultimodalLM, problem: Episode) -> np.ndarray:
        """Probabilities [q, c]: the answers of `problem.classes` scored after each prompt, calibrated as the config says.

        Raises DataError where the row to predict alone does not fit the context.
        """
        found_qc = self._scored(model, problem)
        if self.config.calibration == "none":
            return found_qc
        if self.config.calibration == "contextual":
            free = [self._scored(model, problem, word)[0] for word in CONTENT_FREE]
            return calibration.contextual(found_qc, np.stack(free))
        if problem.num_shots < calibration.FEWEST_EXAMPLES:  # too few to fit anything to
            return found_qc
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
        written = generate(model, [Stream([*prefix, *query]) for query in queries], stop=[end], max_new_tokens=64)
        texts = [self.text.decode([index for index in one.ids if index != end]).strip() for one in written]
        known = {clean_label(name): given for name, given in zip(self._names(problem), problem.classes, strict=True)}
        return [known.get(text) for text in texts]

    def prompt(self, problem: Episode, row: int = 0) -> str:
        """The prompt of a row to predict as the model reads it."""
        prefix, queries, cells = self._written(problem)
        return shown(self.text.decode(self.text.first) + prefix + queries[row], cells)

    def shown(self, problem: Episode) -> str:
        """The prompt of the first row to predict."""
        return self.prompt(problem).replace(END_COMPLETION, f"{END_COMPLETION}\n")

    def _prompts(self, problem: Episode, free: str | None = None) -> tuple[list[Segment], list[list[Segment]]]:
        """Segments of what stands before all rows to predict, and of each of these. free: see `_written`."""
        prefix, queries, cells = self._written(problem, free)
        before, *rows = self._segments([prefix, *queries], cells)
        return [*self._first(), *before], rows

    def _written(self, problem: Episode, free: str | None = None) -> tuple[str, list[str], list[Cell]]:
        """What stands before all rows to predict, each of these, and the cells that marks in them stand for.

        free: a word that stands in every cell of the one row that is then to be predicted.
        """
        rows, names, cells = self.config.rows.model_copy(update={"feature_dropout": 0.0}), self._names(problem), list[Cell]()
        statistics = ShotStatistics.of(problem.shots)
        rng = np.random.default_rng(0)
        features = self.cells.mark(problem.features, cells)
        prompts = write_rows(features, problem.target, names, rows, statistics=statistics, rng=rng)
        shots, queries = prompts[: problem.num_shots], prompts[problem.num_shots :]
        shots = [prompt + completion(names[label]) for prompt, label in zip(shots, problem.labels, strict=False)]
        if free is not None:
            queries = write_rows(_saying(free, features), problem.target, names, rows, statistics=ShotStatistics({}, {}), rng=rng)
        top = header(features, problem.target, rows)
        sizes = [sum(map(len, row)) for row in self._segments(queries, cells)]
        longest = queries[int(np.argmax(sizes))]
        answer = max(map(len, self.text.ids([completion(name) for name in names])))
        budget = self.config.context - len(self.text.first) - answer
        kept = assemble(shots, longest, budget, lambda text: sum(map(len, self._segments([text], cells)[0])), header=top).num_shots
        return top + "".join(shots[len(shots) - kept :]), queries, cells

    def _scored(self, model: MultimodalLM, problem: Episode, free: str | None = None) -> np.ndarray:
        if len(problem.classes) < 2:
            raise DataError(f"a prediction needs at least two possible answers, but {problem.target!r} has {len(problem.classes)}.")
        prefix, queries = self._prompts(problem, free)
        options = [torch.tensor(ids) for ids in self.text.ids([completion(name) for name in self._names(problem)])]
        scores: list[Tensor] = []
        for start in range(0, len(queries), self.config.rows_at_once):
            part = [Stream(query) for query in queries[start : start + self.config.rows_at_once]]
            shared = Stream(prefix) if prefix else None
            scores += score_options(model, part, [options] * len(part), length=self.config.score, prefix=shared)
        return torch.stack(scores).double().softmax(-1).cpu().numpy()


def _ids(segment: Segment) -> Tensor:
    assert segment.ids is not None
    return segment.ids


def _saying(word: str, table: Table) -> Table:
    """One row of the table's columns with the same word in all its cells."""
    return Table(table.name, [Column(name, "category", np.zeros(1), [word or " "]) for name in table.names])


def _without(problem: Episode, row: int) -> Episode:
    """One of the examples as the row to predict, after the others."""
    order = [at for at in range(problem.num_shots) if at != row] + [row]
    return dataclasses.replace(
        problem, features=problem.features.take(np.array(order)), labels=problem.labels[order], num_shots=problem.num_shots - 1
    )
