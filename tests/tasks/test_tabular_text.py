"""Tables as text: what a row may look back at, what a prediction is, and a run from recipe to filled table."""

import dataclasses

import numpy as np
import pytest
import torch

from mmlm.data.config import EpisodeConfig, StructuralTablesConfig
from mmlm.data.episodes import Episode
from mmlm.data.prior import StructuralTables
from mmlm.data.tables import Column, Table
from mmlm.generation import Sampling, TrieGrammar, generate, score_options
from mmlm.model import MultimodalLM
from mmlm.predictor import TabularPredictor
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, load_run, train
from mmlm.stream import pack, unpack
from mmlm.tokenizers.table_rows import END_COMPLETION, END_INPUT

RECIPE = """
schema: 1
name: tiny
task: {type: tabular_text, context: 1024, episode: {num_rows: 8, max_shots: 6, max_columns: 3, max_classes: 3}}
data: {train: [{type: structural_tables}]}
tokenizers: {text: {type: text, vocabulary_size: 300}}
backbone: {width: 32, num_layers: 2, pattern: [{mixer: MIXER}]}
train: {steps: 3, batch_size: 2, log_every: 1}
"""
MIXERS = {"attention": "{type: attention, num_heads: 2}", "mamba2": "{type: mamba2, head_size: 16, state_size: 16}"}


def made(mixer: str, *overrides: str):
    recipe = Recipe.read(RECIPE.replace("MIXER", MIXERS[mixer]), overrides)
    task = build_task(recipe)
    return recipe, task, build_model(recipe, task).eval()


def drawn(seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    return StructuralTables(StructuralTablesConfig()).draw(rng, EpisodeConfig(num_rows=8, max_shots=6, max_columns=3, max_classes=3))


@pytest.fixture(scope="module", params=MIXERS)
def parts(request):
    return made(request.param)


@torch.no_grad()
def states(model: MultimodalLM, task, streams) -> list[torch.Tensor]:
    batch = pack(task.arrange(streams), model.vocabulary)
    return unpack(model.hidden(batch)[0], batch.layout)


def test_tables_in_a_pack_are_as_alone_and_their_order_changes_nothing(parts):
    recipe, task, model = parts
    streams = [task.example(drawn(seed), np.random.default_rng(seed)) for seed in range(4)]
    together = states(model, task, streams)
    for stream, part in zip(streams, together, strict=True):
        torch.testing.assert_close(part, states(model, task, [stream])[0], rtol=0, atol=1e-5)
    turned = states(model, task, streams[::-1])[::-1]
    for part, other in zip(together, turned, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-5)
    task.config = task.config.model_copy(update={"packing": "plain"})
    (joined,) = states(model, task, streams)
    task.config = task.config.model_copy(update={"packing": "row"})
    rows = states(model, task, streams)
    task.config = task.config.model_copy(update={"packing": "table"})
    assert (torch.cat(together) - joined)[len(streams[0]) :].abs().max() > 1e-2
    torch.testing.assert_close(joined[: len(streams[0])], together[0], rtol=0, atol=1e-5)
    assert len(rows) == sum(len(stream.segments) for stream in streams)
    first = len(streams[0].segments[0])
    torch.testing.assert_close(rows[0], together[0][:first], rtol=0, atol=1e-5)
    assert (rows[1] - together[0][first : first + len(rows[1])]).abs().max() > 1e-2


def test_every_row_carries_loss_on_its_answer_and_the_end_alone(parts):
    _, task, model = parts
    episode = drawn(3)
    stream = task.example(episode, np.random.default_rng(0))
    assert len(stream.segments) == len(episode.labels)
    for segment, label in zip(stream.segments, episode.labels, strict=True):
        wanted = segment.ids[segment.weight > 0]
        assert task.text.decode(wanted.tolist()) == f"{episode.classes[label]}{END_COMPLETION}"
        assert int(segment.ids[segment.weight == 0][-1]) == task.text.token(END_INPUT)
    batch = pack([stream], model.vocabulary)
    answers = [token for segment in stream.segments for token in segment.ids[segment.weight > 0].tolist()]
    assert batch.labels[batch.weight > 0].tolist() == answers


def test_examples_that_were_trained_on_carry_no_loss():
    _, task, _ = made("attention")
    episode = drawn(3)
    plain = task.example(episode, np.random.default_rng(0))
    known = task.example(dataclasses.replace(episode, shots_are_trained_on=True), np.random.default_rng(0))
    assert 0 < episode.num_shots < len(known.segments)
    for row, (one, other) in enumerate(zip(plain.segments, known.segments, strict=True)):
        assert torch.equal(one.ids, other.ids) and one.weight.any()
        assert torch.equal(other.weight, one.weight if row >= episode.num_shots else torch.zeros(len(one.ids)))
    room = sum(len(segment.ids) for segment in known.segments[: episode.num_shots])
    task.config = task.config.model_copy(update={"context": room})
    assert task.example(dataclasses.replace(episode, shots_are_trained_on=True), np.random.default_rng(0)) is None


def test_rows_beyond_the_context_are_left_out_whole():
    _, task, _ = made("attention")
    whole = task.example(drawn(3), np.random.default_rng(0))
    task.config = task.config.model_copy(update={"context": len(whole) - 1})
    short = task.example(drawn(3), np.random.default_rng(0))
    assert [s.ids.tolist() for s in short.segments] == [s.ids.tolist() for s in whole.segments[:-1]]
    task.config = task.config.model_copy(update={"context": 32})
    assert task.example(drawn(3), np.random.default_rng(0)) is None


def test_a_prompt_leaves_room_for_the_longest_answer():
    _, task, _ = made("attention")
    problem = Episode(drawn(3).features.take(np.zeros(9, int)), np.array([0, 1] * 4 + [-1]), ["no", "certainly not"], 8, "answer")
    answers = [len(ids) for ids in task.text.ids([f"{name}{END_COMPLETION}" for name in problem.classes])]
    task.config = task.config.model_copy(update={"context": 4096})
    examples, (query,), _ = task._written(problem)
    rows = [len(ids) for ids in task.text.ids([f"{row}{END_COMPLETION}" for row in examples.split(END_COMPLETION)[:-1]])]
    whole = len(task.text.first) + sum(rows) + len(task.text.ids([query])[0]) + max(answers)
    for context, kept in ((whole, 8), (whole - 1, 7)):
        task.config = task.config.model_copy(update={"context": context})
        assert task._written(problem)[0].count(END_COMPLETION) == kept


def test_a_prediction_reads_the_examples_once_and_equals_each_prompt_alone(parts):
    _, task, model = parts
    problem = drawn(5)
    whole = task.predict_proba(model, problem)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-9)
    options = [torch.tensor(ids) for ids in task.text.ids([name + END_COMPLETION for name in problem.classes])]
    for row in range(len(whole)):
        prompt = torch.tensor(task.text.ids([task.prompt(problem, row)])[0])
        (alone,) = score_options(model, [prompt], [options])
        np.testing.assert_allclose(alone.softmax(-1).numpy(), whole[row], atol=1e-5)
    hidden = dataclasses.replace(problem, labels=np.where(np.arange(len(problem.labels)) < problem.num_shots, problem.labels, -1))
    np.testing.assert_array_equal(task.predict_proba(model, hidden), whole)


@pytest.mark.parametrize("calibration", ["contextual", "temperature", "prior"])
def test_calibration_changes_probabilities_and_keeps_them_probabilities(parts, calibration):
    _, task, model = parts
    problem = next(e for e in map(drawn, range(99)) if e.num_shots >= 5)
    problem.labels[: problem.num_shots - 1] = problem.labels[0]
    plain = task.predict_proba(model, problem)
    task.config = task.config.model_copy(update={"calibration": calibration})
    mended = task.predict_proba(model, problem)
    task.config = task.config.model_copy(update={"calibration": "none"})
    np.testing.assert_allclose(mended.sum(1), 1, atol=1e-6)
    assert np.abs(mended - plain).max() > 1e-4


def test_content_free_rows_get_even_chances_from_contextual_calibration():
    _, task, model = made("attention")
    columns = [Column("a", "category", np.array([0.0, 1.0, 2.0]), ["x", "y", "N/A"])]
    problem = Episode(Table("t", columns), np.array([0, 1, -1]), ["no", "yes"], 2, "answer")
    task.config = task.config.model_copy(update={"calibration": "contextual"})
    from mmlm.tasks import tabular_text

    free = tabular_text.CONTENT_FREE
    tabular_text.CONTENT_FREE = ("N/A",)
    try:
        np.testing.assert_allclose(task.predict_proba(model, problem), 0.5, atol=1e-6)
    finally:
        tabular_text.CONTENT_FREE = free


def label_sets(rng: np.random.Generator, ids: range, count: int) -> list[list[list[int]]]:
    """Random sets of labels, some of which begin others."""
    found = []
    for _ in range(count):
        some: set[tuple[int, ...]] = set()
        while len(some) < 5:
            base = tuple(rng.choice(ids, rng.integers(1, 4)).tolist())
            some |= {base, base[: max(1, len(base) - 1)]}
        found.append([list(label) for label in sorted(some)])
    return found


def agree(model: MultimodalLM, end: int, rng: np.random.Generator, count: int) -> int:
    """How many random label sets get the same best label from scores as from constrained writing with as many beams as labels."""
    same = 0
    for labels in label_sets(rng, range(end), count):
        prompt = torch.from_numpy(rng.integers(0, end, 5))
        ended = [[*label, end] for label in labels]
        (scores,) = score_options(model, [prompt], [[torch.tensor(label) for label in ended]])
        written = generate(
            model, [prompt], max_new_tokens=5, sampling=Sampling(num_beams=16, length_penalty=0), stop=[end], grammar=TrieGrammar(ended)
        )
        same += written[0].ids == ended[int(scores.argmax())]
    return same


def test_the_best_score_is_what_constrained_writing_finds(parts):
    _, task, model = parts
    assert agree(model, task.text.token(END_COMPLETION), np.random.default_rng(0), 20) == 20


def test_a_run_goes_from_recipe_to_predictions_with_its_own_tokenizer(tmp_path):
    recipe = Recipe.read(RECIPE.replace("MIXER", MIXERS["attention"]), [f"output={tmp_path / 'run'}"])
    assert train(recipe).step == 3
    _, task, model = load_run(tmp_path / "run")
    assert task.text.sizes == model.vocabulary.sizes and (tmp_path / "run" / "tokenizers" / "text" / "tokenizer.json").is_file()
    predictor = TabularPredictor(tmp_path / "run").fit(np.arange(12.0).reshape(-1, 1), np.array(["low", "high"])[np.arange(12) // 6])
    chance = predictor.predict_proba(np.array([[1.0], [11.0]]))
    assert chance.shape == (2, 2) and set(predictor.predict(np.zeros((2, 1)))) <= {"low", "high"}
    problem = drawn(1)
    np.testing.assert_array_equal(task.predict_proba(model, problem), load_run(tmp_path / "run")[1].predict_proba(model, problem))
    assert len(task.answers(model, problem)) == len(problem.labels) - problem.num_shots


@pytest.mark.parametrize("calibration", ["contextual", "temperature", "prior"])
@pytest.mark.parametrize("num_shots", [0, 1])
def test_too_few_examples_to_fit_anything_to_leave_probabilities(calibration, num_shots):
    _, task, model = made("attention", f"task.calibration={calibration}")
    columns = [Column("a", "category", np.array([0.0, 1.0]), ["x", "y"])]
    problem = Episode(Table("t", columns), np.array([0, -1]), ["no", "yes"], num_shots, "answer")
    np.testing.assert_allclose(task.predict_proba(model, problem).sum(1), 1, atol=1e-6)


def measured(classes: list[str]) -> Episode:
    """Two examples and a row to predict, numbers with many places among their cells."""
    columns = [Column("a", "number", np.array([0.123456, 1.5, 2.25])), Column("b", "category", np.array([0.0, 0.0, 0.0]), ["x"])]
    return Episode(Table("t", columns), np.array([0, 1, -1]), classes, 2, "answer")


def test_content_free_prompts_show_the_examples_as_others_do():
    _, task, _ = made("attention", "task.rows.max_precision=2", "task.rows.metafeatures=true")
    examples, _, _ = task._written(measured(["no", "yes"]))
    same, free, _ = task._written(measured(["no", "yes"]), "N/A")
    assert same == examples and "is 0.12." in examples
    assert free == ["Predict the answer ||no||yes|| The a is N/A. The b is N/A. What is the value of answer? ||no||yes||<|endinput|>"]


def test_cells_are_dropped_while_training_alone():
    _, task, _ = made("attention", "task.rows.feature_dropout=0.9")
    problem = measured(["no", "yes"])
    examples, (query,), _ = task._written(problem)
    assert (examples + query).count("The a is") == (examples + query).count("The b is") == 3
    problem.labels[2] = 0
    rows = [text for seed in range(5) for text in task.texts(problem, np.random.default_rng(seed))]
    assert sum(text.count("The a is") + text.count("The b is") for text in rows) < 2 * len(rows)


def test_answers_are_written_by_their_dictionary_and_told_as_the_table_has_them(monkeypatch):
    from mmlm.tasks import tabular_text

    _, task, model = made("attention", 'task.rows.dictionary={answer: {"0": "Mr.", "1": Mrs}}')
    problem = measured(["0", "1"])
    assert "||Mr||Mrs||" in task.prompt(problem) and f"Mr{END_COMPLETION}" in task.prompt(problem)
    written = [task.text.ids([text])[0] for text in ("Mr", "Mrs", "0")]
    monkeypatch.setattr(tabular_text, "generate", lambda *_, **__: [type("Written", (), {"ids": ids}) for ids in written])
    assert task.answers(model, problem) == ["0", "1", None]
