"""Rows whose cells are pictures, sounds, molecules and numbers: in one stream, scored as they are read, from recipe to prediction."""

from __future__ import annotations

import json

import numpy as np
import pandas
import pytest
import torch

from mmlm.analysis.drawing import write_png
from mmlm.base.errors import DataError, RecipeError
from mmlm.cli import main
from mmlm.data.audio_files import write_sound
from mmlm.data.config import EpisodeConfig
from mmlm.data.episodes import Episode
from mmlm.data.table_reader import read_table
from mmlm.data.tables import Column
from mmlm.generation import score_options
from mmlm.predictor import TabularPredictor
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, load_run, train
from mmlm.sound import Sound
from mmlm.stream import Stream, pack
from mmlm.tasks import marked_cells
from mmlm.tokenizers.table_rows import END_COMPLETION, completion
from mmlm.vocabulary import Vocabulary

RECIPE = """
schema: 1
name: cells
task:
  type: tabular_text
  packing: row
  episode: {num_rows: 6, max_shots: 3, max_columns: 4, max_classes: 2}
  cells: {pictures: patches, sounds: units, molecules: symbols, numbers: digits}
data: {train: [{type: table_file, path: TABLE, target: kind}]}
tokenizers:
  text: {type: text, vocabulary_size: 300}
  patches: {type: image_patches, patch: 8, max_side: 16}
  units: {type: units, num_units: 4}
  symbols: {type: molecules}
  digits: {type: numbers, whole_digits: 3, decimals: 1}
encoders: {vision: {type: patch_matrix}}
heads: {language_model: {type: language_model, ranges: [text]}}
backbone: {width: 32, num_layers: 2, pattern: [{type: attention, num_heads: 2}]}
train: {steps: 2, batch_size: 2, log_every: 1}
evaluate: {split: file, shots: [0, 8], seeds: 1}
"""
ROWS, MOLECULES = 120, ["CCO", "c1ccccc1", "CC[NH3+]", "C1CC1"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    pytest.importorskip("rdkit")
    pytest.importorskip("soundfile")
    folder, rng = tmp_path_factory.mktemp("cells"), np.random.default_rng(0)
    lines = ["photo,cry,smiles,weight,kind"]
    for number in range(ROWS):
        write_png(folder / f"{number}.png", rng.integers(0, 256, (14, 12, 3), dtype=np.uint8))
        tone = np.sin(np.arange(2000) * 0.02 * 2 ** (number % 5)) * np.linspace(0, 0.5, 2000)
        write_sound(folder / f"{number}.wav", Sound(tone.astype(np.float32), 16_000))
        lines.append(f"{number}.png,{number}.wav,{MOLECULES[number % 4]},{number + 0.5},{'ab'[number % 2]}")
    (folder / "some.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "some.csv"


def recipe(table, *overrides: str) -> Recipe:
    return Recipe.read(RECIPE.replace("TABLE", str(table)), overrides)


@pytest.fixture(scope="module")
def task(table):
    return build_task(recipe(table))


@pytest.fixture(scope="module")
def model(table, task):
    return build_model(recipe(table), task).eval()


def episode(table, num_shots: int = 2, rows: int = 4) -> Episode:
    found = read_table(table).take(range(rows))
    return Episode(found.drop(["kind"]), np.arange(rows) % 2, ["a", "b"], num_shots, "kind")


def test_each_cell_is_read_by_its_own_tokenizer_in_its_place(task, table):
    stream = task.example(episode(table), np.random.default_rng(0))
    rows = task.arrange([stream])
    assert len(rows) == 4
    first = [segment for segment in rows[0].segments if segment.modality != "text"]
    assert [segment.modality for segment in first] == ["vision", "unit", "molecule", "number"]
    assert task.cells.readers["molecule"].decode(first[2]) == "CCO" and task.cells.readers["number"].decode(first[3]) == 0.5
    assert first[0].features.shape[1] == 3 * 8 * 8 and all(segment.weight == 0 for segment in first)
    said = [task.text.decode(segment.ids.tolist()) for segment in rows[0].segments if segment.modality == "text"]
    assert [text for text in said if "The " in text][0].endswith("The photo is ") and said[1:3] == [". The cry is ", ". The smiles is "]
    assert said[-1].endswith(f"a{END_COMPLETION}")
    weight = torch.as_tensor(rows[0].segments[-1].weight)
    assert int((weight > 0).sum()) == len(task.text.ids([completion("a")])[0])
    batch = pack(rows, Vocabulary(task.vocabulary))
    assert int(batch.layout.document.max()) == 4


def test_molecules_and_texts_fit_tokenizers_of_their_own(task, table):
    rng = np.random.default_rng(0)
    drawn = recipe(table).data.train[0].build().draw(rng, EpisodeConfig(num_rows=6, max_shots=3))
    assert task.cells.readers["molecule"].ids("CC[NH3+]")[-1] == task.cells.readers["molecule"].index["[NH3+]"]
    assert task.cells.readers["sound"].is_fitted
    assert ".png" not in "".join(task.texts(drawn, rng)) and "What is the value of kind?" in task.texts(drawn, rng)[0]


def test_a_prediction_reads_the_cells_and_scores_as_training_does(task, model, table):
    problem = episode(table)
    chance_qc = task.predict_proba(model, problem)
    prefix, queries = task._prompts(problem)
    options = [torch.tensor(ids) for ids in task.text.ids([completion(name) for name in problem.classes])]
    whole = [score_options(model, [Stream([*prefix, *query])], [options])[0].double().softmax(-1) for query in queries]
    torch.testing.assert_close(torch.from_numpy(chance_qc), torch.stack(whole), rtol=0, atol=1e-5)
    for name in ("photo", "cry", "smiles", "weight"):
        column = problem.features.column(name)
        other = problem.features.with_column(column.take([0, 1, 3, 2]))
        changed = task.predict_proba(model, Episode(other, problem.labels, problem.classes, 2, "kind"))
        assert np.abs(changed - chance_qc).max() > 1e-6, name


def test_rows_alone_are_scored_as_together(task, model, table):
    found = task.predict_proba(model, episode(table, 0))
    rows = [episode(table).features.take([row]) for row in range(4)]
    alone = [task.predict_proba(model, Episode(row, np.zeros(1, int), ["a", "b"], 0, "kind"))[0] for row in rows]
    np.testing.assert_allclose(found, np.stack(alone), atol=1e-6)


def test_a_row_is_shown_with_what_its_cells_hold(task, table):
    told = task.prompt(episode(table), 1)
    assert f"The photo is <picture {table.parent / '3.png'}>. The cry is <sound " in told
    assert "The smiles is <molecule C1CC1>. The weight is <number 3.5>." in told


def test_cells_without_a_tokenizer_are_read_as_texts(table, caplog):
    plain = build_task(recipe(table, "task.cells={}", "tokenizers={text: {type: text, vocabulary_size: 300}}", "encoders={}"))
    assert plain.features == plain.channels == {} and set(plain.vocabulary) == {"text"}
    assert "The smiles is CC[NH3+]. The weight is 2.5." in plain.prompt(episode(table))
    assert "column 'photo' holds pictures, which are read as texts: task.cells.pictures names no tokenizer" in caplog.text


def test_a_run_is_trained_measured_and_asked(table, tmp_path, capsys):
    output = tmp_path / "run"
    train(recipe(table, f"output={output}"))
    again, task, model = load_run(output)
    problem = episode(table)
    assert task.predict_proba(model, problem).shape == (2, 2)
    assert main(["evaluate", str(output)]) == 0
    assert {"accuracy_0", "accuracy_8"} <= json.loads((output / "metrics.json").read_text())["metrics"].keys()
    asked = table.with_name("asked.csv")
    asked.write_text("photo,cry,smiles,weight\n1.png,1.wav,CCO,1.5\n", encoding="utf-8")
    filled = tmp_path / "filled.csv"
    capsys.readouterr()
    given = ["--table", str(asked), "--target", "kind", "--shots", str(table), "--output", str(filled)]
    assert main(["generate", str(output), *given]) == 0, capsys.readouterr().err
    assert filled.read_text().splitlines()[1].startswith("1.png,1.wav,CCO,1.5,")
    frame = pandas.read_csv(table)
    for column in ("photo", "cry"):
        frame[column] = [str(table.parent / name) for name in frame[column]]
    x, y = frame.drop(columns="kind"), frame["kind"]
    predictor = TabularPredictor(output, max_shots=3).fit(x, y)
    told = {column.name: column.medium and column.medium.kind for column in predictor.shots_.columns}
    assert told == {"photo": "picture", "cry": "sound", "smiles": "molecule", "weight": None}
    as_texts = TabularPredictor(output, max_shots=3, cells={"photo": "text", "cry": "text", "smiles": "text"}).fit(x, y)
    assert not np.allclose(predictor.predict_proba(x[:2]), as_texts.predict_proba(x[:2]))
    (table.parent / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="x, row 2, column 'photo': .*bad.png"):
        predictor.predict(x[:2].assign(photo=[x["photo"][0], str(table.parent / "bad.png")]))


def test_cells_are_remembered_up_to_a_size(task, table, monkeypatch):
    monkeypatch.setattr(marked_cells, "KEPT_BYTES", 5000)
    task.cells.known.clear()
    task.cells.size_bytes = 0
    for _ in range(2):
        task._prompts(episode(table))
        assert task.cells.size_bytes == sum(map(marked_cells._size_bytes, task.cells.known.values()))
        assert len(task.cells.known) == 1 or task.cells.size_bytes <= 5000


def test_a_cell_that_its_tokenizer_cannot_read_is_named(task, table):
    problem = episode(table)
    wide = problem.features.with_column(Column("weight", "number", np.array([1.0, 2.0, 3.0, 4000.0])))
    with pytest.raises(DataError, match="column 'weight': the number 4000 does not fit: whole_digits 3"):
        task.predict_proba(None, Episode(wide, problem.labels, problem.classes, 2, "kind"))
    marked = problem.features.with_column(Column("photo", "category", np.zeros(4), [chr(0xF0001)]))
    with pytest.raises(DataError, match="column 'photo': holds a character of the private plane"):
        task.predict_proba(None, Episode(marked, problem.labels, problem.classes, 2, "kind"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task.cells.sounds=patches", "task.cells.sounds: tokenizers.patches must be of the type units"),
        ("task.cells.pictures=photos", "tokenizers: unknown tokenizer 'photos'"),
        ("task.rows.metafeatures=true", "rows.metafeatures tell of numbers that are written as texts"),
        ("task.calibration=contextual", "calibration: contextual asks with texts in place of numbers"),
        ("encoders={}", "needs an encoder named vision"),
    ],
)
def test_what_does_not_fit_together_is_told(table, change, message):
    with pytest.raises(RecipeError, match=message):
        changed = recipe(table, change)
        build_model(changed, build_task(changed))
